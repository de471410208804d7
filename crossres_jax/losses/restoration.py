"""Losses between restored and original pictures, or maps."""

import jax
import jax.numpy as jnp
import numpy as np


def mean_absolute_error(
    restored: jax.Array | np.ndarray, originals: jax.Array | np.ndarray
) -> jax.Array:
    """Mean absolute difference of every sample: the Manhattan distance per element.

    Eq. (5) of PS-HRNet prints the sum over pixels and samples; its released code, and
    the weight λ_SR = 0.5, belong to the mean, which is also independent of the size.

    Args:
      restored: (B, ...) float.
      originals: (B, ...) float, of the same shape.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ.
    """
    difference = jnp.abs(_difference(restored, originals))
    return difference.mean(axis=tuple(range(1, difference.ndim)))


def mean_squared_error(
    restored: jax.Array | np.ndarray, originals: jax.Array | np.ndarray
) -> jax.Array:
    """Mean squared difference of every sample.

    Eq. (2) of JBIM prints the squared Frobenius norm, this times the number of values.

    Args:
      restored: (B, ...) float.
      originals: (B, ...) float, of the same shape.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ.
    """
    squares = _difference(restored, originals) ** 2
    return squares.mean(axis=tuple(range(1, squares.ndim)))


def smooth_l1(
    restored: jax.Array | np.ndarray,
    originals: jax.Array | np.ndarray,
    *,
    beta: float = 1.0,
) -> jax.Array:
    """Mean over elements of d² / 2β where |d| < β, and of |d| − β/2 elsewhere.

    Girshick, arXiv:1504.08083, Eq. (3). DGRL's Eq. (5), between features, prints the
    sum; the mean is independent of their size.

    Args:
      restored: (B, ...) float.
      originals: (B, ...) float, of the same shape; both get a gradient.
      beta: β, positive, in units of the elements.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ.
    """
    d = jnp.abs(_difference(restored, originals))
    values = jnp.where(d < beta, d**2 / (2 * beta), d - beta / 2)
    return values.mean(axis=tuple(range(1, values.ndim)))


def foreground_mse(
    restored: jax.Array | np.ndarray,
    originals: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
) -> jax.Array:
    """Mean squared difference of every sample, weighted by a mask before the square.

    ‖M ⊙ (I^r′ − I^h)‖², Eq. (5) of FFSR + RIFE, divided by the number of values. A mask
    of ones makes it `mean_squared_error`.

    Args:
      restored: (B, H, W, C) float.
      originals: (B, H, W, C) float.
      mask: (H, W) float, M of all images, as `ops.masks.gaussian_mask` gives it, or
        (B, H, W), one for each.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if mask.shape not in (restored.shape[1:-1], restored.shape[:-1]):
        raise ValueError(
            "expected a mask (H, W) or (B, H, W) for images (B, H, W, C), found "
            f"{mask.shape} for {restored.shape}"
        )
    squares = (mask[..., None] * _difference(restored, originals)) ** 2
    return squares.mean(axis=(1, 2, 3))


def _difference(restored, originals):
    if restored.shape != originals.shape:
        raise ValueError(
            f"expected two equal shapes, found {restored.shape} and {originals.shape}"
        )
    return restored.astype(jnp.float32) - originals.astype(jnp.float32)
