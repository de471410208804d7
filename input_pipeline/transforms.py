"""Degradation, resizing and augmentation of single images, in NumPy.

An image is resized by the weights of TensorFlow's own resizing, which are kept: nearly
all images of a data set have a few sizes. They are sparse matrices, whose products take
one thread: those of a BLAS library and those that make batches get in each other's way.

Rounding happens in one place only: a degraded image is a stored file, so `degrade`
rounds to the 256 levels. `fit` does not round; it clips the overshoot of bicubic
interpolation.
"""

import functools
import io

import numpy as np
import scipy.sparse
import tensorflow as tf
from PIL import Image

from crossres_jax.ops.images import IMAGENET_MEAN

_TRIES = 5  # of a random rectangle; one in twenty does not fit into a picture of 2:1
NUM_DRAWS = 4 + 4 * _TRIES  # random numbers that `augment` needs
_METHODS = {
    "area": tf.image.ResizeMethod.AREA,
    "bilinear": tf.image.ResizeMethod.BILINEAR,
    "bicubic": tf.image.ResizeMethod.BICUBIC,
    "lanczos": tf.image.ResizeMethod.LANCZOS3,
}


def resize(
    image: np.ndarray, size: tuple[int, int], kernel: str, *, blur: float = 0.0
) -> np.ndarray:
    """The one way in which images are resized: antialiased, on float pixels.

    Pillow on float images (mode "F") and `jax.image.resize` agree to a few thousandths
    of a grey level. "area" weights every pixel by the part of it that is covered, as
    OpenCV's INTER_AREA does; Pillow's BOX is the same where the rate divides the size,
    and takes whole pixels elsewhere.

    Args:
      image: (h, w, 3) uint8.
      size: (height, width).
      kernel: "area", "bilinear", "bicubic" or "lanczos".
      blur: standard deviation, in pixels of `image`, of a Gaussian blur before it.

    Returns:
      (height, width, 3) float32 grey levels, neither rounded nor clipped; without blur
      an image of that size is returned as it is.
    """
    (h, w, _), (height, width) = image.shape, size
    if (h, w) == (height, width) and not blur:
        return image.astype(np.float32)
    pixels = image.reshape(h, w * 3).T.astype(np.float32, order="C")  # (w·3, h)
    pixels = _weights(w, width, kernel, blur) @ pixels.reshape(w, 3 * h)
    pixels = pixels.reshape(width * 3, h).T  # (h, width·3)
    pixels = _weights(h, height, kernel, blur) @ pixels
    return pixels.reshape(height, width, 3)


def degrade(
    image: np.ndarray,
    size: tuple[int, int],
    kernel: str,
    *,
    blur: float = 0.0,
    jpeg_quality: int = 0,
) -> np.ndarray:
    """The low-resolution image that an MLR set stores.

    Args:
      image: (H, W, 3) uint8.
      size: (height, width) of the low-resolution image.
      kernel: "area", "bilinear", "bicubic" or "lanczos".
      blur: standard deviation, in pixels of `image`, of a Gaussian blur before it.
      jpeg_quality: 1 to 95, at which Pillow compresses the result; 0 stores it
        losslessly.

    Returns:
      (height, width, 3) uint8, rounded and clipped.
    """
    pixels = resize(image, size, kernel, blur=blur)
    pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    if not jpeg_quality:
        return pixels
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, format="jpeg", quality=jpeg_quality)
    return np.asarray(Image.open(stored))


def fit(
    image: np.ndarray, size: tuple[int, int], kernel: str = "bicubic"
) -> np.ndarray:
    """An image at the input size of the networks, by antialiased resizing.

    Every image goes through here once, high- and low-resolution alike.

    Args:
      image: (h, w, 3) uint8.
      size: (height, width).
      kernel: "area", "bilinear", "bicubic" or "lanczos".

    Returns:
      (height, width, 3) float32 in [0, 1].
    """
    pixels = _clipped(image, size, kernel)
    return np.divide(pixels, np.float32(255), out=pixels)


def _clipped(image, size, kernel):
    """What `fit` returns, in grey levels."""
    pixels = resize(image, size, kernel)
    return np.clip(pixels, 0.0, 255.0, out=pixels)


@functools.lru_cache(maxsize=1024)
def _weights(old, new, kernel, blur):
    """By which weights old rows make new ones, (new, old) sparse float32."""
    columns = tf.eye(old)[..., None]
    resized = tf.image.resize(columns, (new, old), _METHODS[kernel], antialias=True)
    weights = resized.numpy()[..., 0]  # (new, old)
    if blur:
        rows = np.arange(old)
        gauss = np.exp(-0.5 * ((rows[:, None] - rows) / blur) ** 2)
        weights = weights @ (gauss / gauss.sum(1, keepdims=True))
    weights = np.where(np.abs(weights) > 1e-6, weights, 0)
    return scipy.sparse.csr_array(weights, dtype=np.float32)


def augment(
    image: np.ndarray,
    draws: np.ndarray,
    size: tuple[int, int],
    kernel: str = "bicubic",
    *,
    flip: float,
    pad: int,
    erase: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """`fit`, then flips, pads, crops and erases; equal draws do the same to each image.

    The usual augmentation of person re-ID: a mirror image with probability `flip`, then
    a black border of `pad` pixels and a crop of the original size at a random offset,
    then with probability `erase` a rectangle in ImageNet's mean colour (Zhong et al.,
    arXiv:1708.04896, and Luo et al., arXiv:1903.07071, sec. 3.2).

    Args:
      image: (h, w, 3) uint8.
      draws: (NUM_DRAWS,) float in [0, 1), on which alone the augmentation depends.
      size: (H, W).
      kernel: as of `fit`.
      flip: probability of the mirror image.
      pad: pixels, the largest shift in each direction.
      erase: probability of the rectangle.
      out: (H, W, 3) float32 array that receives the result, a new one if None.

    Returns:
      (H, W, 3) float32 in [0, 1].
    """
    coin, top, left, coin_erase, *rectangles = draws.tolist()
    shifts = (pad - int(draw * (2 * pad + 1)) for draw in (top, left))
    (rows_to, rows), (columns_to, columns) = map(_shifted, shifts, size)
    pixels = _clipped(image[:, ::-1] if coin < flip else image, size, kernel)
    result = np.empty_like(pixels) if out is None else out
    result[...] = 0
    inside = result[rows_to, columns_to]
    np.divide(pixels[rows, columns], np.float32(255), out=inside)
    if coin_erase < erase:
        _erase(result, rectangles)
    return result


def _shifted(shift, size):
    """(where to, what from) along an axis of that size whose content is shifted."""
    start, stop = (min(max(edge, 0), size) for edge in (shift, size + shift))
    return slice(start, stop), slice(start - shift, stop - shift)


def _erase(image, draws):
    """A rectangle of 2% to 40% of the area and a ratio of sides from 0.3 to 1/0.3."""
    height, width, _ = image.shape
    for i in range(0, len(draws), 4):
        area, ratio, top, left = draws[i : i + 4]
        area = (0.02 + 0.38 * area) * height * width
        ratio = 0.3 + (1 / 0.3 - 0.3) * ratio  # height by width
        tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if tall < height and wide < width:
            top, left = int(top * (height - tall + 1)), int(left * (width - wide + 1))
            image[top : top + tall, left : left + wide] = IMAGENET_MEAN
            return
