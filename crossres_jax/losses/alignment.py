"""Losses that pull the features of one network to those of another."""

from collections.abc import Sequence

import jax
import numpy as np

from crossres_jax.losses.restoration import mean_absolute_error


def feature_alignment(
    high: Sequence[jax.Array | np.ndarray], low: Sequence[jax.Array | np.ndarray]
) -> jax.Array:
    """Σ_i of the mean absolute difference between the i-th features of two networks.

    The pseudo-siamese loss, Eq. (11) of PS-HRNet; the mean over a feature's elements,
    where the equation prints the sum, is the released code's.

    Args:
      high: sequence of (B, D_i) float, the chosen set C_h of the HR network.
      low: sequence of (B, D_i) float, the same set C_l of the LR network.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the sets differ in length or shapes, or are empty.
    """
    if len(high) != len(low) or not high:
        raise ValueError(
            "expected two sets of equally many features, at least one each; found "
            f"{len(high)} and {len(low)}"
        )
    pairs = zip(high, low, strict=True)
    return sum(mean_absolute_error(c_l, c_h) for c_h, c_l in pairs)
