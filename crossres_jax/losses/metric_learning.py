"""Losses on the distances between the features of a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from crossres_jax.ops.distances import euclidean_distances


def batch_hard_triplet(
    features: jax.Array | np.ndarray,
    pids: jax.Array | np.ndarray,
    *,
    margin: float = 0.3,
) -> jax.Array:
    """Triplet loss with the hardest positive and the hardest negative of the batch.

    Eq. (7) of PS-HRNet, one of its five terms; Hermans et al., arXiv:1703.07737,
    Eq. (5): [m + max_p ‖f_a − f_p‖ − min_n ‖f_a − f_n‖]₊. Eq. (7) lets the negative
    run over all images with "j ≠ a"; a negative is meant, and taken, to be an image of
    another identity.

    Args:
      features: (B, D) float, not normalised; Euclidean distance is used.
      pids: (B,) int identity labels.
      margin: m, in units of distance (PS-HRNet: 0.1; its released code: 0.3).

    Returns:
      (B,) float32, one loss per anchor; zero where an anchor has no positive beside
      itself or no negative.

    Raises:
      ValueError: if the leading sizes differ.
    """
    if features.ndim != 2 or pids.shape != features.shape[:1]:
        raise ValueError(
            "expected features (B, D) and pids (B,), found "
            f"{features.shape} and {pids.shape}"
        )
    distances = euclidean_distances(features, features)  # (B, B)
    same = pids[:, None] == pids[None, :]
    positive = same & ~jnp.eye(len(pids), dtype=bool)
    hardest_positive = jnp.where(positive, distances, -jnp.inf).max(axis=1)
    hardest_negative = jnp.where(same, jnp.inf, distances).min(axis=1)
    has_both = positive.any(axis=1) & (~same).any(axis=1)
    difference = jnp.where(has_both, hardest_positive - hardest_negative, -jnp.inf)
    return jnp.maximum(margin + difference, 0.0)
