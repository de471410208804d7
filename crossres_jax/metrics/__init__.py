"""How good a ranking or a restored picture is; NumPy in, plain numbers out."""

from crossres_jax.metrics.image_quality import psnr, ssim
from crossres_jax.metrics.objective import reid_objective
from crossres_jax.metrics.retrieval import (
    MAX_RANK,
    QueryScores,
    Ranking,
    SingleShotRanking,
    draw_galleries,
    evaluate_ranking,
    evaluate_single_shot,
    rank_multi_shot,
    rank_single_shot,
    summarize,
    summarize_draws,
)

__all__ = [
    "MAX_RANK",
    "QueryScores",
    "Ranking",
    "SingleShotRanking",
    "draw_galleries",
    "evaluate_ranking",
    "evaluate_single_shot",
    "psnr",
    "rank_multi_shot",
    "rank_single_shot",
    "reid_objective",
    "ssim",
    "summarize",
    "summarize_draws",
]
