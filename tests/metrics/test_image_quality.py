"""PSNR and SSIM against numbers worked by hand and a loop over windows."""

import numpy as np
import pytest

from crossres_jax.metrics import psnr, ssim


def random_images(shape=(2, 14, 12, 3), seed=0):
    return np.random.default_rng(seed).random(shape)


def slow_ssim(image, reference, max_value):
    """SSIM of one (H, W) channel, window by window."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    values = []
    for top in range(image.shape[0] - 10):
        for left in range(image.shape[1] - 10):
            a = image[top : top + 11, left : left + 11]
            b = reference[top : top + 11, left : left + 11]
            mean_a, mean_b = np.sum(weights * a), np.sum(weights * b)
            var_a = np.sum(weights * (a - mean_a) ** 2)
            var_b = np.sum(weights * (b - mean_b) ** 2)
            covariance = np.sum(weights * (a - mean_a) * (b - mean_b))
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return np.mean(values)


def test_psnr_of_constant_offsets():
    references = np.full((3, 4, 5, 3), 0.5)
    offsets = np.array([0.1, -0.01, 0.5]).reshape(-1, 1, 1, 1)
    expected = [20, 40, 20 * np.log10(2)]
    np.testing.assert_allclose(psnr(references + offsets, references), expected)


def test_psnr_takes_bytes():
    black, white = (
        np.zeros((1, 2, 2, 3), np.uint8),
        np.full((1, 2, 2, 3), 255, np.uint8),
    )
    np.testing.assert_allclose(psnr(black, white, max_value=255), 0, atol=1e-12)
    np.testing.assert_allclose(
        psnr(black, black + 1, max_value=255), 48.1308, atol=1e-4
    )


def test_psnr_of_equal_images_is_infinite():
    images = random_images()
    np.testing.assert_array_equal(psnr(images, images), [np.inf, np.inf])


def test_ssim_of_equal_images_is_one():
    images = random_images()
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-12)


def test_ssim_of_flat_images_is_the_luminance_term():
    # No variance and no covariance: (2 · ½ · ¼ + C1) / (½² + ¼² + C1).
    images, references = np.full((1, 11, 11, 3), 0.5), np.full((1, 11, 11, 3), 0.25)
    expected = (0.25 + 0.0001) / (0.3125 + 0.0001)
    np.testing.assert_allclose(ssim(images, references), [expected], rtol=1e-12)


def test_ssim_of_a_negative_is_negative():
    images = random_images()
    assert np.all(ssim(1 - images, images) < -0.5)


@pytest.mark.parametrize("max_value", [1.0, 255.0])
def test_ssim_equals_the_slow_loop(max_value):
    images, references = random_images(seed=1), random_images(seed=2)
    references = (0.7 * images + 0.3 * references) * max_value
    images = images * max_value
    expected = [
        np.mean([slow_ssim(x[..., c], y[..., c], max_value) for c in range(3)])
        for x, y in zip(images, references, strict=True)
    ]
    # Variance as a difference of means of squares: roundings of 1e-16 over C2 = 9e-4.
    np.testing.assert_allclose(
        ssim(images, references, max_value=max_value), expected, rtol=1e-12
    )


def test_images_smaller_than_the_window_are_refused():
    images = random_images((1, 11, 10, 3))
    with pytest.raises(ValueError, match="11×11 pixels, found 11×10"):
        ssim(images, images)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    "shapes", [((1, 12, 12, 3), (1, 12, 12, 1)), ((12, 12, 3),) * 2]
)
def test_shapes_must_agree(metric, shapes):
    with pytest.raises(ValueError, match=r"one shape \(B, H, W, C\)"):
        metric(*map(np.zeros, shapes))
