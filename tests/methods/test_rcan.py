"""RCAN as a method: a restorer for each rate, and which one takes an image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import loss_and_gradient, norms

from crossres_jax.methods import rcan
from crossres_jax.modules.rcan import SameSizeRCAN
from crossres_jax.ops.images import normalize

NARROW = {"num_groups": 1, "num_blocks": 1, "channels": 4, "squeeze": 1}


@functools.cache
def _method():
    return rcan.build(3, **NARROW)


@functools.cache
def _variables():
    return jax.jit(_method().init)(jax.random.key(0), {"lr": jnp.zeros((1, 24, 12, 3))})


@pytest.fixture(scope="module")
def batch():
    lr, hr = np.random.default_rng(0).uniform(size=(2, 4, 24, 12, 3))
    return {
        "lr": lr.astype(np.float32),
        "hr": hr.astype(np.float32),
        "has_hr": np.array([True, True, True, False]),
    }


def test_each_phase_trains_the_restorer_of_its_rate_on_pairs(batch):
    phases = _method().phases
    assert [(x.name, x.trains, x.training_rate) for x in phases] == [
        *(("x2", "x2", 2), ("x3", "x3", 3), ("x4", "x4", 4))
    ]
    step = loss_and_gradient(_method(), "x3")
    output, gradient = step(_variables(), batch)
    assert gradient.keys() == {"x3"}
    assert norms(gradient)["x3"] > 0
    params = {"params": _variables()["params"]["x3"]}
    restored = SameSizeRCAN(3, **NARROW).apply(params, normalize(batch["lr"]))
    error = np.abs(restored - normalize(batch["hr"]))[batch["has_hr"]]
    np.testing.assert_allclose(output.loss, error.mean(), rtol=1e-5)
    other = batch | {
        "hr": np.where(np.arange(4)[:, None, None, None] == 3, 0, batch["hr"])
    }
    assert step(_variables(), other)[0].loss == output.loss


def _restored(images, resolution):
    resolution = jnp.array(resolution)
    return _restore()(_variables(), images, resolution=resolution)


@functools.cache
def _restore():
    return jax.jit(_method().restore)


def test_an_image_goes_to_the_restorer_of_the_nearest_rate(batch):
    images = jnp.repeat(batch["lr"][:1], 6, axis=0)
    found = _restored(images, [1.0, 0.8, 1 / 1.6, 1 / 2, 1 / 2.9, 1 / 6])
    np.testing.assert_allclose(found[0], images[0], atol=1e-6)  # not low-resolution
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[3])
    by_rate = [found[3], found[4], found[5]]
    for n, name in enumerate(("x2", "x3", "x4")):
        params = _variables()["params"]
        zeroed = {**params, name: jax.tree.map(jnp.zeros_like, params[name])}
        again = _restore()(
            {"params": zeroed, "batch_stats": {}},
            images,
            resolution=jnp.array([1.0, 0.8, 1 / 1.6, 1 / 2, 1 / 2.9, 1 / 6]),
        )[3:]
        changed = [
            not np.array_equal(x, y) for x, y in zip(by_rate, again, strict=True)
        ]
        assert changed == [m == n for m in range(3)]


def test_restored_pixels_are_what_is_compared(batch):
    resolution = jnp.full(4, 0.5)
    embed = functools.partial(_method().embed, _variables(), resolution=resolution)
    gallery = embed(batch["lr"], role="gallery")
    assert gallery.shape == (4, 3 * 1 * 3)
    mean = batch["lr"][0, :8, :8].mean((0, 1))
    np.testing.assert_allclose(gallery[0, :3], mean, atol=1e-6)
    assert not np.allclose(embed(batch["lr"], role="query"), gallery, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rates": (2, 5)}, "RCAN has no rate 5"), ({"dtype": "int8"}, "no dtype 'int8'")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rcan.build(3, **(NARROW | options))
