"""PSNR and SSIM of restored pictures against their originals."""

import numpy as np
from numpy.typing import ArrayLike

# Wang et al., IEEE TIP 2004, sec. III-C.
WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(
    images: ArrayLike, references: ArrayLike, *, max_value: float = 1.0
) -> np.ndarray:
    """Peak signal-to-noise ratio, 10 log10(max_value² / MSE), per image.

    The squared error is averaged over all pixels and the RGB channels, not over the
    luma that super-resolution papers often report.

    Args:
      images: (B, H, W, C) real, in [0, max_value]; not clipped here.
      references: (B, H, W, C), the originals.
      max_value: the largest value a pixel can have, 1 or 255.

    Returns:
      (B,) float64, in dB; infinite where image and original are equal, which makes a
      mean over images infinite too.

    Raises:
      ValueError: if the shapes differ or are not (B, H, W, C).
    """
    pairs = _pairs(images, references)
    mse = np.array([np.mean((x - y) ** 2) for x, y in pairs])  # (B,)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(max_value**2 / mse)


def ssim(
    images: ArrayLike, references: ArrayLike, *, max_value: float = 1.0
) -> np.ndarray:
    """Structural similarity per image (Wang et al., IEEE TIP 2004, Eq. 13).

    The convention of the paper: local means, variances and covariance under a Gaussian
    window of 11×11 pixels with sigma 1.5 and sum 1 (variances not Bessel-corrected),
    only where the window lies inside the image, no down-sampling beforehand. The paper
    has grey images; here every channel is compared by itself and the mean is taken
    over positions and channels.

    Args:
      images: (B, H, W, C) real, in [0, max_value].
      references: (B, H, W, C), the originals.
      max_value: the largest value a pixel can have, 1 or 255.

    Returns:
      (B,) float64 in [-1, 1], 1 where image and original are equal.

    Raises:
      ValueError: if the shapes differ or are not (B, H, W, C), or the images are
        smaller than the window.
    """
    pairs = _pairs(images, references)
    height, width = np.shape(images)[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, found "
            f"{height}×{width}; resize image and original to a common larger size"
        )
    rows, columns = _filter_matrix(height), _filter_matrix(width)
    c1, c2 = (K1 * max_value) ** 2, (K2 * max_value) ** 2

    def blur(x):  # (C, H, W) -> (C, H - 10, W - 10)
        return rows @ x @ columns.T

    def similarity(x, y):  # (C, H, W) each
        mean_x, mean_y = blur(x), blur(y)
        variances = blur(x * x + y * y) - mean_x**2 - mean_y**2  # of x plus of y
        covariance = blur(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        return np.mean(luminance * (2 * covariance + c2) / (variances + c2))

    return np.array([similarity(x, y) for x, y in pairs])


def _filter_matrix(size):
    """The Gaussian window slid along one axis, as a matrix (size - 10, size)."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    valid = size - WINDOW + 1
    return sum(weight * np.eye(valid, size, k) for k, weight in enumerate(weights))


def _pairs(images, references):
    """The images and their references one by one, as (C, H, W) float64.

    One by one, for the maps of one image fit the processor's cache. Floats, for
    differences of unsigned bytes wrap around, and of double precision, for the variance
    of a flat region is a small difference of large numbers.
    """
    images, references = np.asarray(images), np.asarray(references)
    if images.ndim != 4 or images.shape != references.shape:
        raise ValueError(
            "expected images and references of one shape (B, H, W, C), found "
            f"{images.shape} and {references.shape}"
        )
    return (
        # Contiguous: BLAS multiplies no others.
        [np.ascontiguousarray(x.transpose(2, 0, 1), dtype=np.float64) for x in pair]
        for pair in zip(images, references, strict=True)
    )
