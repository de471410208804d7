"""Losses that pull what one network finds to what another finds."""

from collections.abc import Sequence
from itertools import permutations

import jax
import jax.numpy as jnp
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


def mutual_kl(logits: Sequence[jax.Array | np.ndarray]) -> jax.Array:
    """Σ_i Σ_{j≠i} KL(p_j ‖ p_i) over all ordered pairs of classifiers.

    Eqs. (11) and (12) of DGRL, which sum over the samples, too. The target p_j gets no
    gradient, as in Li and Chen, "Dynamic Hierarchical Mimicking", CVPR 2020: every
    classifier is pulled to each other one by a term of its own.

    Args:
      logits: sequence of (B, M) float; p is their softmax.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ, or there are less than two.
    """
    shapes = [x.shape for x in logits]
    if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"expected logits (B, M) at least twice, found {shapes}")
    log_p = [jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits]
    pairs = permutations(log_p, 2)
    return sum(_kl(jax.lax.stop_gradient(target), p) for target, p in pairs)


def _kl(log_target, log_p):
    return (jnp.exp(log_target) * (log_target - log_p)).sum(axis=1)
