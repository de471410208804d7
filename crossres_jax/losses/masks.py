"""Means over the part of a batch that counts."""

import jax
import jax.numpy as jnp
import numpy as np


def masked_mean(
    values: jax.Array | np.ndarray, mask: jax.Array | np.ndarray
) -> jax.Array:
    """Mean of the values where the mask holds; zero where it holds nowhere.

    Args:
      values: (B,) float or bool.
      mask: (B,) bool.

    Returns:
      () float32. Values that the mask hides get no gradient, even if not finite.
    """
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
