"""Degradation, resizing and augmentation of single images and pairs, in TensorFlow ops.

Rounding happens in one place only: a degraded image is a stored file, so `degrade`
rounds to the 256 levels. `fit` does not round; it clips the overshoot of bicubic
interpolation.
"""

from collections.abc import Sequence

import tensorflow as tf

from crossres_jax.ops.images import IMAGENET_MEAN

_TRIES = 5  # of a random rectangle; one in twenty does not fit into a picture of 2:1
_METHODS = {
    "area": tf.image.ResizeMethod.AREA,
    "bilinear": tf.image.ResizeMethod.BILINEAR,
    "bicubic": tf.image.ResizeMethod.BICUBIC,
    "lanczos": tf.image.ResizeMethod.LANCZOS3,
}


def resize(image: tf.Tensor, size: Sequence[int] | tf.Tensor, kernel: str) -> tf.Tensor:
    """The one way in which images are resized: antialiased, on float pixels.

    Pillow on float images (mode "F") and `jax.image.resize` agree to a few thousandths
    of a grey level. "area" weights every pixel by the part of it that is covered, as
    OpenCV's INTER_AREA does; Pillow's BOX is the same where the rate divides the size,
    and takes whole pixels elsewhere.

    Args:
      image: (h, w, 3) uint8.
      size: (height, width).
      kernel: "area", "bilinear", "bicubic" or "lanczos".

    Returns:
      (height, width, 3) float32 grey levels, neither rounded nor clipped; an image of
      that size is returned as it is.
    """
    pixels = tf.cast(image, tf.float32)
    return tf.cond(
        tf.reduce_all(tf.equal(tf.shape(image)[:2], size)),
        lambda: pixels,
        lambda: tf.image.resize(pixels, size, _METHODS[kernel], antialias=True),
    )


def degrade(image: tf.Tensor, scale: int | tf.Tensor, kernel: str) -> tf.Tensor:
    """The low-resolution image that an MLR set stores.

    Args:
      image: (H, W, 3) uint8.
      scale: () int, the down-sampling rate; 1 leaves the image as it is.
      kernel: "area", "bilinear", "bicubic" or "lanczos".

    Returns:
      (⌊H/scale⌋, ⌊W/scale⌋, 3) uint8, rounded and clipped.
    """
    size = tf.shape(image)[:2] // tf.cast(scale, tf.int32)
    pixels = tf.round(resize(image, size, kernel))
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def fit(image: tf.Tensor, size: Sequence[int], kernel: str = "bicubic") -> tf.Tensor:
    """An image at the input size of the networks, by antialiased resizing.

    Every image goes through here once, high- and low-resolution alike.

    Args:
      image: (h, w, 3) uint8.
      size: (height, width).
      kernel: "area", "bilinear", "bicubic" or "lanczos".

    Returns:
      (height, width, 3) float32 in [0, 1].
    """
    pixels = tf.ensure_shape(resize(image, size, kernel), (*size, 3))
    return tf.clip_by_value(pixels, 0.0, 255.0) / 255.0


def augment(
    images: tf.Tensor,
    seed: Sequence[int | tf.Tensor] | tf.Tensor,
    *,
    flip: float,
    pad: int,
    erase: float = 0.0,
) -> tf.Tensor:
    """Flips, pads, crops and erases all given images in the same way.

    The usual augmentation of person re-ID: a mirror image with probability `flip`, then
    a black border of `pad` pixels and a crop of the original size at a random offset,
    then with probability `erase` a rectangle in ImageNet's mean colour (Zhong et al.,
    arXiv:1708.04896, and Luo et al., arXiv:1903.07071, sec. 3.2).

    Args:
      images: (N, H, W, 3) float32 in [0, 1]: versions of one image, such as its HR
        original and its LR copy.
      seed: (2,) int64, on which alone the result depends.
      flip: probability of the mirror image.
      pad: pixels, the largest shift in each direction.
      erase: probability of the rectangle.

    Returns:
      (N, H, W, 3) float32.
    """
    shape = tf.shape(images)
    coin, top, left = tf.unstack(tf.random.stateless_uniform([3], seed, alg="philox"))
    images = tf.cond(coin < flip, lambda: images[:, :, ::-1], lambda: images)
    images = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    top, left = (tf.cast(u * (2 * pad + 1), tf.int32) for u in (top, left))
    images = tf.slice(images, [0, top, left, 0], shape)
    return _erase(images, seed, erase) if erase else images


def _erase(images, seed, probability):
    """A rectangle of 2% to 40% of the area and a ratio of sides from 0.3 to 1/0.3."""
    seed = tf.random.experimental.stateless_fold_in(tf.convert_to_tensor(seed), 1)
    coin, *uniform = tf.unstack(
        tf.random.stateless_uniform([1 + 4 * _TRIES], seed, alg="philox")
    )
    area, ratio, top, left = tf.unstack(tf.reshape(tf.stack(uniform), [4, _TRIES]))
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
    area = (0.02 + 0.38 * area) * height * width
    ratio = 0.3 + (1 / 0.3 - 0.3) * ratio  # height by width
    tall, wide = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = tf.argmax(tf.cast(fits, tf.int32))  # of the tries whose rectangle fits
    top = tf.floor(top * (height - tall + 1))[first]
    left = tf.floor(left * (width - wide + 1))[first]
    rows, columns = tf.range(height)[:, None], tf.range(width)[None, :]
    inside = (rows >= top) & (rows < top + tall[first])
    inside &= (columns >= left) & (columns < left + wide[first])
    erased = inside & (coin < probability) & fits[first]
    return tf.where(erased[:, :, None], IMAGENET_MEAN, images)
