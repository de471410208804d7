"""Distances against NumPy, and their gradients at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.ops import distances, images


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(4, 7)).astype(
        np.float32
    )


def test_euclidean_distances_equal_the_norm_of_differences(rows):
    x, y = rows
    expected = np.linalg.norm(x[:, None] - y[None], axis=-1)
    np.testing.assert_allclose(distances.euclidean_distances(x, y), expected, rtol=1e-5)


def test_cosine_distances_ignore_lengths(rows):
    x, y = rows
    cosines = (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    np.testing.assert_allclose(
        distances.cosine_distances(3 * x, y), 1 - cosines, atol=1e-6
    )


def test_distances_are_float32_under_bfloat16(rows):
    x, y = (jnp.asarray(r, jnp.bfloat16) for r in rows)
    assert distances.euclidean_distances(x, y).dtype == jnp.float32
    assert distances.cosine_distances(x, y).dtype == jnp.float32


def test_gradient_of_the_distance_to_itself_is_finite(rows):
    gradient = jax.grad(lambda x: distances.euclidean_distances(x, x).sum())(rows[0])
    assert np.isfinite(gradient).all()


def test_zero_rows_normalise_to_zero():
    np.testing.assert_array_equal(distances.l2_normalize(jnp.zeros((2, 3))), 0.0)


def test_denormalize_inverts_normalize_and_clips():
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        images.denormalize(images.normalize(pixels)), pixels, atol=1e-6
    )
    assert float(images.denormalize(images.normalize(pixels + 1)).max()) == 1.0


def test_mirror_reverses_columns_only():
    pixels = np.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(images.mirror(pixels)[0, 0, 0], pixels[0, 0, 1])
