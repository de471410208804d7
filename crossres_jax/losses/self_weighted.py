"""Losses that weigh a sample by the quality that a network sees in it (FTWA)."""

import jax
import jax.numpy as jnp
import numpy as np

from crossres_jax.losses.identity import label_smoothed_cross_entropy
from crossres_jax.losses.masks import masked_mean
from crossres_jax.losses.metric_learning import batch_hard_triplet

Array = jax.Array | np.ndarray


def self_weighted_cross_entropy(
    logits: Array,
    synthetic_logits: Array,
    labels: Array,
    weights: Array,
    synthetic_weights: Array,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """(w CE(f) + w′ CE(f′)) / (w + w′), one of the two terms of FTWA's Eq. (5).

    Args:
      logits: (B, M) float, f of the images' own vectors.
      synthetic_logits: (B, M) float, f′ of their synthetic counterparts.
      labels: (B,) int in [0, M).
      weights: (B,) float, w, positive.
      synthetic_weights: (B,) float, w′, positive.
      epsilon: ε of `label_smoothed_cross_entropy`.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if not weights.shape == synthetic_weights.shape == labels.shape:
        raise ValueError(
            "expected weights (B,) twice and labels (B,), found "
            f"{weights.shape}, {synthetic_weights.shape} and {labels.shape}"
        )
    own, synthetic = (
        label_smoothed_cross_entropy(x, labels, epsilon=epsilon)
        for x in (logits, synthetic_logits)
    )
    total = weights * own + synthetic_weights * synthetic
    return total / (weights + synthetic_weights)


def self_weighted_triplet(
    hr: tuple[Array, Array],
    lr: tuple[Array, Array],
    pids: Array,
    hr_weights: tuple[Array, Array],
    lr_weights: tuple[Array, Array],
    *,
    has_lr: Array,
    margin: float = 0.3,
) -> jax.Array:
    """(a Tri(v_HR ∪ v′_HR) + b Tri(v_LR ∪ v′_LR)) / (a + b), FTWA's Eq. (7).

    a = w_HR w′_HR and b = w_LR w′_LR, where a w is its mean over the batch, and Tri is
    the mean of `batch_hard_triplet`: v_HR and v′_HR belong to different images, and the
    equation has one weight for both sets (docs/methods.md).

    Args:
      hr: v_HR (B, D) of HR images, and v′_HR (B, D), made of LR images' features.
      lr: v_LR (B, D) of LR images, and v′_LR (B, D) of copies of HR images.
      pids: (B,) int, of HR and of LR images alike.
      hr_weights: w_HR and w′_HR, (B,) float each, positive.
      lr_weights: w_LR and w′_LR, (B,) float each, positive.
      has_lr: (B,) bool, False where there is no LR image: v_LR and v′_HR do not count.
        A mean over none is 1 as a weight, and 0 as a loss.
      margin: m, in units of distance.

    Returns:
      () float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    always = jnp.full(len(pids), True)
    losses, weights = [], []
    for vectors, (w, w_synthetic), (valid, valid_synthetic) in (
        (hr, hr_weights, (always, has_lr)),
        (lr, lr_weights, (has_lr, always)),
    ):
        both = jnp.concatenate([valid, valid_synthetic])
        triplet = batch_hard_triplet(
            jnp.concatenate(vectors),
            jnp.concatenate([pids, pids]),
            margin=margin,
            valid=both,
        )
        losses.append(masked_mean(triplet, both))
        weights.append(
            _mean_weight(w, valid) * _mean_weight(w_synthetic, valid_synthetic)
        )
    a, b = weights
    return (a * losses[0] + b * losses[1]) / (a + b)


def _mean_weight(weights, valid):
    return jnp.where(valid.any(), masked_mean(weights, valid), 1.0)
