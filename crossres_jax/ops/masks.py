"""Masks over an image's pixels."""

import jax
import jax.numpy as jnp


def gaussian_mask(height: int, width: int) -> jax.Array:
    """A Gaussian in the middle of an image: where a person is likely to be.

    FFSR + RIFE, sec. 4.1, which gives no size: the standard deviations are a quarter
    of the height and of the width, and the mean is 1, so that a loss keeps its scale.

    Args:
      height, width: of the image in pixels.

    Returns:
      (height, width) float32.
    """
    y, x = (
        (jnp.arange(side) - (side - 1) / 2) / (side / 4) for side in (height, width)
    )
    mask = jnp.exp(-(y[:, None] ** 2 + x**2) / 2)
    return mask / mask.mean()
