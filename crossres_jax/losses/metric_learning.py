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
    valid: jax.Array | np.ndarray | None = None,
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
      valid: (B,) bool; rows where it is False are neither anchors nor positives nor
        negatives. None counts all.

    Returns:
      (B,) float32, one loss per anchor; zero where an anchor has no positive beside
      itself or no negative, or is not valid.

    Raises:
      ValueError: if the shapes do not fit.
    """
    same, other = _pairs(features, pids, valid)
    distances = euclidean_distances(features, features)  # (B, B)
    positive = same & ~jnp.eye(len(pids), dtype=bool)
    hardest_positive = jnp.where(positive, distances, -jnp.inf).max(axis=1)
    hardest_negative = jnp.where(other, distances, jnp.inf).min(axis=1)
    has_both = positive.any(axis=1) & other.any(axis=1)
    difference = jnp.where(has_both, hardest_positive - hardest_negative, -jnp.inf)
    return jnp.maximum(margin + difference, 0.0)


def weighted_regularized_triplet(
    features: jax.Array | np.ndarray,
    pids: jax.Array | np.ndarray,
    *,
    valid: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Triplet loss of all positives and negatives, the harder the heavier; no margin.

    AGW (Ye et al., arXiv:2001.04193, sec. 4), DGRL's Eq. (8): log(1 + exp(Σ_j w_j d_j −
    Σ_k w_k d_k)), where w_j is the softmax of d over the positives and w_k that of −d
    over the negatives. As in AGW's released code an anchor is among its positives.
    Eq. (8) prints the hardest pair alone, with its weight; the code that it refers to
    sums over all.

    Args:
      features: (B, D) float, not normalised; Euclidean distance is used.
      pids: (B,) int identity labels.
      valid: (B,) bool; rows where it is False are neither anchors nor positives nor
        negatives. None counts all.

    Returns:
      (B,) float32, one loss per anchor; zero where an anchor has no negative or is not
      valid.

    Raises:
      ValueError: if the shapes do not fit.
    """
    same, other = _pairs(features, pids, valid)
    distances = euclidean_distances(features, features)  # (B, B)
    distances *= 1 - jnp.eye(len(pids))  # what rounding leaves of a row from itself
    positive = _softmax_mean(distances, distances, same)
    negative = _softmax_mean(distances, -distances, other)
    has_both = same.any(axis=1) & other.any(axis=1)
    return jnp.where(has_both, jax.nn.softplus(positive - negative), 0.0)


def center_loss(
    features: jax.Array | np.ndarray,
    pids: jax.Array | np.ndarray,
    centers: jax.Array | np.ndarray,
) -> jax.Array:
    """Half the squared distance of every feature from the centre of its identity.

    Wen et al., ECCV 2016, Eq. (2); Luo et al., arXiv:1903.07071, Eq. (3).

    Args:
      features: (B, D) float.
      pids: (B,) int in [0, M).
      centers: (M, D) float, of `update_centers`; they get no gradient.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    _check_centers(features, pids, centers)
    difference = features - jax.lax.stop_gradient(centers)[pids]
    return 0.5 * (difference.astype(jnp.float32) ** 2).sum(axis=1)


def update_centers(
    features: jax.Array | np.ndarray,
    pids: jax.Array | np.ndarray,
    centers: jax.Array | np.ndarray,
    *,
    rate: float = 0.5,
) -> jax.Array:
    """Moves the centres of a batch's identities towards its features.

    Wen et al., ECCV 2016, Eq. (4): c_j − α Σ_i δ(y_i = j)(c_j − x_i) / (1 + n_j), where
    n_j images of the batch show identity j.

    Args:
      features: (B, D) float; they get no gradient.
      pids: (B,) int in [0, M); a row with a number outside moves nothing.
      centers: (M, D) float32.
      rate: α.

    Returns:
      (M, D) float32; centres of identities that are not in the batch stay.

    Raises:
      ValueError: if the shapes do not fit.
    """
    _check_centers(features, pids, centers)
    shows = jax.nn.one_hot(pids, len(centers))  # (B, M)
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    counts = shows.sum(axis=0)[:, None]
    sums = jnp.matmul(shows.T, features, precision=jax.lax.Precision.HIGHEST)
    return centers - rate * (counts * centers - sums) / (1 + counts)


def _pairs(features, pids, valid):
    """Which rows show the same identity, and which another, both valid: (B, B) bool."""
    if features.ndim != 2 or pids.shape != features.shape[:1]:
        raise ValueError(
            "expected features (B, D) and pids (B,), found "
            f"{features.shape} and {pids.shape}"
        )
    valid = jnp.full(len(pids), True) if valid is None else valid
    compared = valid[:, None] & valid[None, :]
    same = pids[:, None] == pids[None, :]
    return compared & same, compared & ~same


def _softmax_mean(values, scores, mask):
    """Mean of each row where the mask holds, weighted by the softmax of the scores."""
    # A finite score, as the gradient of a row without any would else not be.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return (jax.nn.softmax(scores) * values).sum(axis=1)


def _check_centers(features, pids, centers):
    if pids.shape != features.shape[:1] or centers.shape[1:] != features.shape[1:]:
        raise ValueError(
            "expected features (B, D), pids (B,) and centers (M, D), found "
            f"{features.shape}, {pids.shape} and {centers.shape}"
        )
