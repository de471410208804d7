"""Losses as pure functions of arrays: per-sample values, weighted by the caller."""

from crossres_jax.losses.alignment import feature_alignment, mutual_kl
from crossres_jax.losses.identity import label_smoothed_cross_entropy
from crossres_jax.losses.masks import masked_mean
from crossres_jax.losses.metric_learning import (
    batch_hard_triplet,
    center_loss,
    update_centers,
    weighted_regularized_triplet,
)
from crossres_jax.losses.resolution import resolution_weighting
from crossres_jax.losses.restoration import (
    foreground_mse,
    mean_absolute_error,
    mean_squared_error,
    smooth_l1,
)
from crossres_jax.losses.self_weighted import (
    self_weighted_cross_entropy,
    self_weighted_triplet,
)

__all__ = [
    "batch_hard_triplet",
    "center_loss",
    "feature_alignment",
    "foreground_mse",
    "label_smoothed_cross_entropy",
    "masked_mean",
    "mean_absolute_error",
    "mean_squared_error",
    "mutual_kl",
    "resolution_weighting",
    "self_weighted_cross_entropy",
    "self_weighted_triplet",
    "smooth_l1",
    "update_centers",
    "weighted_regularized_triplet",
]
