import io

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from crossres_jax.ops.images import IMAGENET_MEAN
from input_pipeline import transforms

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
# In grey levels. TensorFlow computes sampling positions in float32, to about 1e-5 of a
# pixel, and between neighbours of noise lie up to 255 levels.
ATOL = 4e-3


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)


def pillow_resize(pixels, size, resampling):
    """Pillow's float path, channel by channel."""
    channels = [
        Image.fromarray(pixels[..., c].astype(np.float32)).resize(
            size[::-1], PILLOW[resampling]
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def covered_mean(pixels, size):
    """Area down-sampling, pixel by pixel: the mean weighted by what is covered."""
    for axis, target in enumerate(size):
        edges = np.linspace(0, pixels.shape[axis], target + 1)
        places = np.arange(pixels.shape[axis])
        weights = np.clip(
            np.minimum(edges[1:, None], places + 1)
            - np.maximum(edges[:-1, None], places),
            *(0, None),
        )
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


def rounded(pixels):
    return np.clip(np.round(pixels), 0, 255)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degrading_is_pillows_float_resize_rounded(image, kernel, scale):
    size = (128 // scale, 64 // scale)
    pixels = transforms.resize(image, size, kernel)
    expected = pillow_resize(image, size, kernel)
    np.testing.assert_allclose(pixels, expected, atol=ATOL)
    degraded = transforms.degrade(image, size, kernel)
    assert degraded.dtype == np.uint8 and degraded.shape == (*size, 3)
    # A value within ATOL of a half may be rounded to either side.
    unsure = np.abs(expected % 1 - 0.5) < ATOL
    np.testing.assert_array_equal(degraded[~unsure], rounded(expected)[~unsure])


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(42, 16), (256, 128), (128, 70), (7, 200)])
def test_resizing_is_tensorflows_and_jaxs(image, kernel, size):
    pixels = transforms.resize(image, size, kernel)
    expected = tf.image.resize(image, size, kernel.replace("os", "os3"), antialias=True)
    # Float32 sums of up to 255 levels in another order.
    np.testing.assert_allclose(pixels, expected, atol=3e-4)
    if kernel != "area":
        method = {"bicubic": "cubic", "lanczos": "lanczos3"}.get(kernel, kernel)
        expected = jax.image.resize(image.astype(np.float32), (*size, 3), method)
        np.testing.assert_allclose(pixels, expected, atol=ATOL)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_area_weights_pixels_by_what_is_covered(image, scale):
    size = (128 // scale, 64 // scale)
    pixels = transforms.resize(image, size, "area")
    np.testing.assert_allclose(pixels, covered_mean(image, size), atol=ATOL)


@pytest.mark.parametrize("scale", [2, 4])
def test_area_is_pillows_box_where_the_rate_divides_the_size(image, scale):
    size = (128 // scale, 64 // scale)
    pixels = transforms.resize(image, size, "area")
    np.testing.assert_allclose(pixels, pillow_resize(image, size, "area"), atol=ATOL)


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic", "lanczos"])
def test_scale_one_leaves_the_image_unchanged(image, kernel):
    np.testing.assert_array_equal(transforms.degrade(image, (128, 64), kernel), image)


def test_overshoot_of_bicubic_is_clipped_and_not_wrapped():
    stripes = np.zeros((32, 16, 3), np.uint8)
    stripes[:, 8:] = 255
    for scale in (2, 3):
        size = 32 // scale, 16 // scale
        row = transforms.degrade(stripes, size, "bicubic")[0, :, 0]
        assert (np.diff(row.astype(int)) >= 0).all()
    fitted = transforms.fit(stripes, (64, 32))
    assert fitted.min() == 0 and fitted.max() == 1


def test_blur_is_a_gaussian_before_the_resizing():
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    blurred = transforms.resize(dot, (41, 41), "bicubic", blur=2.0)[..., 0]
    places = np.arange(41) - 20
    gauss = np.exp(-0.5 * (places / 2.0) ** 2)
    gauss /= gauss.sum()
    np.testing.assert_allclose(blurred, 255 * np.outer(gauss, gauss), atol=2e-3)
    grey = np.full((30, 20, 3), 77, np.uint8)  # edges neither darken nor brighten
    np.testing.assert_allclose(
        transforms.resize(grey, (10, 7), "bicubic", blur=3.0), 77, atol=1e-2
    )


def test_blurring_and_halving_is_done_in_that_order(image):
    blurred = transforms.resize(image, (128, 64), "bicubic", blur=1.0)
    both = transforms.resize(image, (64, 32), "bicubic", blur=1.0)
    after = np.stack(
        [
            Image.fromarray(blurred[..., c]).resize((32, 64), Image.Resampling.BICUBIC)
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(both, after, atol=ATOL)


@pytest.mark.parametrize("quality", [10, 95])
def test_a_stored_jpeg_is_pillows_of_that_quality(image, quality):
    plain = transforms.degrade(image, (64, 32), "bicubic")
    stored = transforms.degrade(image, (64, 32), "bicubic", jpeg_quality=quality)
    encoded = io.BytesIO()
    Image.fromarray(plain).save(encoded, format="jpeg", quality=quality)
    np.testing.assert_array_equal(stored, np.asarray(Image.open(encoded)))
    assert not np.array_equal(stored, plain)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(128, 48), (42, 16), (39, 17), (300, 140)])
def test_fit_is_pillows_float_resize_clipped(shape, kernel):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    fitted = transforms.fit(pixels, (96, 48), kernel)
    expected = pillow_resize(pixels, (96, 48), kernel).clip(0, 255)
    assert fitted.dtype == np.float32
    np.testing.assert_allclose(fitted * 255, expected, atol=ATOL)


def test_fit_of_an_image_of_the_input_size_changes_nothing(image):
    np.testing.assert_array_equal(
        transforms.fit(image, (128, 64)), image.astype(np.float32) / np.float32(255)
    )


def augmented(images, seed, flip=0.5, pad=10, erase=0.0):
    """At the size that they have."""
    draws = np.random.default_rng(seed).random(transforms.NUM_DRAWS)
    options = {"size": images.shape[1:3], "flip": flip, "pad": pad, "erase": erase}
    return np.stack([transforms.augment(image, draws, **options) for image in images])


def find_augmentation(original, result, pad):
    """The (flipped, top, left) that turn `original` into `result`."""
    original = original.astype(np.float32) / 255
    height, width, _ = original.shape
    found = []
    for flipped in (False, True):
        padded = np.pad(
            original[:, ::-1] if flipped else original, ((pad, pad), (pad, pad), (0, 0))
        )
        found += [
            (flipped, top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if (padded[top : top + height, left : left + width] == result).all()
        ]
    (only,) = found
    return only


@pytest.fixture(scope="module")
def pair():
    return np.random.default_rng(2).integers(0, 256, (2, 16, 8, 3), np.uint8)


def test_images_of_a_pair_share_flip_and_crop(pair):
    for slot in range(20):
        one, other = augmented(pair, [0, slot], pad=3)
        assert find_augmentation(pair[0], one, 3) == find_augmentation(
            pair[1], other, 3
        )


def test_augmentation_uses_every_flip_and_offset(pair):
    drawn = [
        find_augmentation(pair[0], augmented(pair, [5, slot], pad=2)[0], 2)
        for slot in range(300)
    ]
    flipped, top, left = map(np.array, zip(*drawn, strict=True))
    assert set(top) == set(left) == {0, 1, 2, 3, 4}
    # 300 coins: one standard deviation is 0.029.
    np.testing.assert_allclose(flipped.mean(), 0.5, atol=0.12)
    # The three draws are independent: all 50 combinations would need about 225.
    assert len(set(drawn)) > 45


def test_augmentation_depends_on_the_draws_alone(pair):
    np.testing.assert_array_equal(augmented(pair, [1, 2]), augmented(pair, [1, 2]))
    results = {augmented(pair, [a, b]).tobytes() for a in range(3) for b in range(3)}
    assert len(results) == 9


def test_flip_probability_zero_and_one(pair):
    for slot in range(5):
        plain, flipped = (augmented(pair, [0, slot], flip, 0) for flip in (0.0, 1.0))
        np.testing.assert_array_equal(plain, pair.astype(np.float32) / 255)
        np.testing.assert_array_equal(flipped, plain[:, :, ::-1])


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_augmentation_is_of_the_image_at_the_input_size(image, kernel):
    for slot in range(5):
        draws = np.random.default_rng([6, slot]).random(transforms.NUM_DRAWS)
        options = {"flip": 1.0, "pad": 9, "erase": 0.5}
        out = np.full((96, 48, 3), np.nan, np.float32)
        result = transforms.augment(image, draws, (96, 48), kernel, **options, out=out)
        assert result is out
        fitted = np.uint8(np.rint(transforms.fit(image, (96, 48), kernel) * 255))
        expected = transforms.augment(fitted, draws, (96, 48), **options)
        np.testing.assert_allclose(out, expected, atol=0.51 / 255)


def test_pad_may_exceed_the_size(pair):
    results = [augmented(pair, [7, slot], pad=20) for slot in range(20)]
    assert any((result == 0).all() for result in results)
    assert all(result.shape == pair.shape for result in results)


def test_border_that_is_shifted_in_is_black(pair):
    ones = np.full_like(pair, 255)
    results = [augmented(ones, [0, slot], pad=4) for slot in range(10)]
    assert any((result == 0).any() for result in results)
    assert all(set(np.unique(result)) <= {0.0, 1.0} for result in results)


def erased(slot, size=(2, 64, 32), erase=1.0):
    """(N, H, W) bool, where a rectangle was erased from grey pictures."""
    images = np.full((*size, 3), 51, np.uint8)
    result = augmented(images, [0, slot], flip=0.0, pad=0, erase=erase)
    gone = ~np.isclose(result, 51 / 255).all(axis=-1)
    np.testing.assert_allclose(
        result[gone], np.broadcast_to(IMAGENET_MEAN, (gone.sum(), 3))
    )
    return gone


def test_a_rectangle_is_erased_from_both_images_of_a_pair():
    areas, ratios, corners = [], [], set()
    for slot in range(200):
        one, other = erased(slot)
        np.testing.assert_array_equal(one, other)
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert one.sum() == len(rows) * len(columns)  # a rectangle, without holes
        areas.append(one.mean())
        ratios.append(len(rows) / len(columns))
        corners.add((rows[0], columns[0]))
    # Sides are whole pixels, which moves the smallest areas by a few percent.
    assert 0.015 < min(areas) < 0.05 and 0.35 < max(areas) < 0.42
    assert 0.2 < min(ratios) < 0.6 and 2.5 < max(ratios) < 4
    assert len(corners) > 100


def test_erasing_happens_as_often_as_it_should():
    happened = [erased(slot, erase=0.3).any() for slot in range(300)]
    # 300 coins of 0.3: one standard deviation is 0.026.
    np.testing.assert_allclose(np.mean(happened), 0.3, atol=0.11)
    assert not any(erased(slot, erase=0.0).any() for slot in range(10))


def test_erasing_leaves_flip_and_crop_as_they_were(pair):
    for slot in range(10):
        plain, gone = (augmented(pair, [0, slot], erase=e) for e in (0.0, 1.0))
        kept = ~np.isclose(gone, IMAGENET_MEAN).all(axis=-1)
        np.testing.assert_array_equal(plain[kept], gone[kept])
