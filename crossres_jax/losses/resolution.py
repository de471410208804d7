"""Losses that tie a network to the resolution of its input."""

import jax
import jax.numpy as jnp
import numpy as np


def resolution_weighting(
    w_low: jax.Array | np.ndarray,
    w_high: jax.Array | np.ndarray,
    resolution: jax.Array | np.ndarray,
) -> jax.Array:
    """Σ_t (w_t^L − (1 − r))² + (w_t^H − r)², Eqs. (7) and (9) of FFSR + RIFE.

    Args:
      w_low: (T, B) float, weights of the low-resolution streams of T blocks.
      w_high: (T, B) float, weights of the high-resolution streams.
      resolution: (B,) float, r in (0, 1], 1 for the highest resolution.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if w_low.shape != w_high.shape or w_low.shape[1:] != resolution.shape:
        raise ValueError(
            "expected weights (T, B) twice and resolutions (B,), found "
            f"{w_low.shape}, {w_high.shape} and {resolution.shape}"
        )
    errors = (w_low - (1 - resolution)) ** 2 + (w_high - resolution) ** 2
    return errors.astype(jnp.float32).sum(axis=0)
