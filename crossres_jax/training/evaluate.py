"""Query and gallery → features → distances → scores, in pieces that fit in memory."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from crossres_jax.methods.contract import Ensemble, Method, Variables
from crossres_jax.metrics import (
    psnr,
    rank_multi_shot,
    rank_single_shot,
    ssim,
    summarize,
    summarize_draws,
)
from crossres_jax.training.sharding import prefetch, replicated, sharded

RANKS = (1, 5, 10, 20)
SCORES = (*(f"rank{r}" for r in RANKS), "mAP", "mINP")
MAX_PSNR = 100.0  # dB; a flat picture that is restored exactly would make it infinite


class Embedded(NamedTuple):
    """One side of a test set: N images.

    Attributes:
      features: pytree of (N, ...) float32, what `Method.embed` returned.
      pid, camid: (N,) int; a camera below 0 is not known.
      scale: (N,) real, how much smaller than its HR original an image is.
      quality: name → (M,) float, restoration figures of the M down-sampled images that
        have an HR original; empty if the method restores nothing.
    """

    features: Any
    pid: np.ndarray
    camid: np.ndarray
    scale: np.ndarray
    quality: Mapping[str, np.ndarray]


class Evaluation(NamedTuple):
    """Scores, and what a picture of ranked lists needs.

    Attributes:
      results: percentages and dB, the scores of docs/runs.md's `results.json`.
      shown: (S,) int, queries chosen evenly over the query list.
      ranked: (S, R) int, their nearest gallery images, nearest first.
    """

    results: dict
    shown: np.ndarray
    ranked: np.ndarray


def embed_images(
    method: Method,
    variables: Variables,
    batches: Iterable[Mapping],
    mesh: jax.sharding.Mesh,
    *,
    role: str,
) -> Embedded:
    """Features of one side of a test set.

    Args:
      method: whose `embed` and, for queries, `restore` are used.
      variables: of the method.
      batches: dicts with `lr`, `hr` (B, H, W, 3) in [0, 1], `has_hr`, `valid` (B,)
        bool, `pid`, `camid` (B,) int, `scale` and `resolution` (B,) float, and, of the
        gallery of a method with a `gallery_rate`, `synthetic_lr`; rows that are not
        valid fill the last batch up and are dropped.
      mesh: the devices.
      role: "query" or "gallery".

    Returns:
      Embedded, the valid rows in their order; figures of quality for queries only.

    Raises:
      ValueError: if there is no batch, or if a restored image is too small for SSIM.
    """
    embed = _jitted_embed(method.embed, mesh, role)
    restore = role == "query" and method.restore and jax.jit(method.restore)

    features, labels, quality = [], [], []
    for batch in prefetch(batches, mesh):
        valid = np.asarray(batch["valid"])
        rows = _rows(valid)
        features.append(jax.tree.map(rows, embed(variables, batch)))
        labels.append([rows(batch[key]) for key in ("pid", "camid", "scale")])
        degraded = valid & np.asarray((batch["scale"] > 1) & batch["has_hr"])
        if restore and degraded.any():
            rows = _rows(degraded)
            restored = rows(
                restore(variables, batch["lr"], resolution=batch["resolution"])
            )
            quality.append(_quality(restored, rows(batch["lr"]), rows(batch["hr"])))
    if not features:
        raise ValueError(f"expected images on the {role} side, found none.")
    return Embedded(
        jax.tree.map(lambda *parts: np.concatenate(parts), *features),
        *(np.concatenate(column) for column in zip(*labels, strict=True)),
        quality={
            key: np.concatenate([part[key] for part in quality])
            for key in (quality[0] if quality else ())
        },
    )


@functools.lru_cache(maxsize=4)
def _jitted_embed(embed, mesh, role):
    """Kept, so that validation compiles it once and not at every checkpoint."""

    def embed_batch(variables, batch):
        copies = {"copies": x} if (x := batch.get("synthetic_lr")) is not None else {}
        return embed(
            variables, batch["lr"], role=role, resolution=batch["resolution"], **copies
        )

    return jax.jit(embed_batch, in_shardings=(replicated(mesh), sharded(mesh)))


def _rows(chosen):
    """A function that takes the chosen rows of an array, onto the host."""
    return lambda x: np.asarray(x)[chosen]


def _quality(restored, bicubic, originals):
    return {
        "psnr": np.minimum(psnr(restored, originals), MAX_PSNR),
        "ssim": ssim(restored, originals),
        "psnr_bicubic": np.minimum(psnr(bicubic, originals), MAX_PSNR),
        "ssim_bicubic": ssim(bicubic, originals),
    }


def compare(
    method: Method | Ensemble,
    query: Embedded,
    gallery: Embedded,
    *,
    evaluation: Literal["single_shot", "multi_shot"] = "single_shot",
    num_draws: int = 100,
    seed: int = 0,
    ap: Literal["step", "trapezoid"] = "step",
    chunk_size: int = 256,
    num_shown: int = 8,
    num_ranked: int = 10,
) -> Evaluation:
    """Scores of all queries against the gallery.

    Args:
      method: whose `distance` is used.
      query: the query side.
      gallery: the gallery side.
      evaluation: which scores are the main ones: "single_shot", against one image of
        each identity, or "multi_shot", against all with the removal of the same
        camera's images, as Market-1501 does, where cameras are known.
      num_draws: gallery draws of the single-shot scores; 0 for no such scores.
      seed: of these draws.
      ap: "step" or "trapezoid", average precision of the multi-shot protocol.
      chunk_size: queries whose distances are held at a time.
      num_shown: queries whose ranked lists are returned.
      num_ranked: length of these lists.

    Returns:
      The main scores, by scale (rounded to whole numbers) too, and beside them the
      other ones, "multi_shot" or "single_shot"; with single-shot main scores `trials`,
      their spread over the draws. `num_queries` is how many queries have a match; the
      others are not counted, and a scale of such queries alone is left out. What
      multi-shot ranking removes is not shown.

    Raises:
      ValueError: if a distance is NaN, if none of the queries has a match in the
        gallery, if single-shot scores are to be the main ones without draws, or if
        `evaluation` or `ap` is neither.
    """
    if evaluation not in ("single_shot", "multi_shot"):
        raise ValueError(
            f"evaluation must be 'single_shot' or 'multi_shot', found {evaluation!r}"
        )
    num_queries = len(query.pid)
    shown = np.unique(
        np.linspace(0, num_queries - 1, min(num_shown, num_queries)).astype(int)
    )
    if evaluation == "single_shot" and num_draws < 1:
        raise ValueError(f"single-shot scores need gallery draws, found {num_draws}")
    # A camera that is not known is no query's own.
    gallery_camid = np.where(gallery.camid < 0, -2, gallery.camid)
    single, multi, ranked = [], [], []
    for start, distances in _distance_blocks(method, query, gallery, chunk_size):
        rows = slice(start, start + chunk_size)
        pids, camids = query.pid[rows], query.camid[rows]
        if num_draws:
            single.append(
                rank_single_shot(
                    distances, pids, gallery.pid, num_draws=num_draws, seed=seed
                )
            )
        multi.append(
            rank_multi_shot(distances, pids, gallery.pid, camids, gallery_camid, ap=ap)
        )
        for row in shown[(shown >= start) & (shown < start + len(pids))] - start:
            same = (gallery.pid == pids[row]) & (gallery_camid == camids[row])
            kept = np.where(same | (gallery.pid < 0), np.inf, distances[row])
            ranked.append(np.argsort(kept, kind="stable")[:num_ranked])

    main = single if evaluation == "single_shot" else multi
    overall = summarize_draws(main)
    results = {
        "evaluation": evaluation,
        "num_queries": overall.num_valid_queries,
        "num_gallery": len(gallery.pid),
        "num_identities": len(np.unique(query.pid)),
        **_percentages(overall),
        "by_scale": {},
    }
    scales = np.rint(query.scale).astype(int)
    matched = np.concatenate([block.first_rank[:, 0] for block in main]) > 0
    for scale in np.unique(scales[matched]):
        scores = summarize(main, scales == scale)
        results["by_scale"][str(scale)] = {
            "rank1": _percent(scores.cmc[0]),
            "mAP": _percent(scores.mAP),
            "num_queries": scores.num_valid_queries,
        }
    if evaluation == "single_shot":
        results["trials"] = {
            "count": num_draws,
            "rank1_std": _percent(overall.rank1_std),
            "mAP_std": _percent(overall.mAP_std),
        }
        results["multi_shot"] = _percentages(summarize(multi))
    elif single:
        results["single_shot"] = _percentages(summarize(single))
    if query.quality:
        results["sr"] = {
            key: round(float(values.mean()), 4) for key, values in query.quality.items()
        }
    return Evaluation(results, shown, np.array(ranked))


def mean_and_std(runs: Sequence[Mapping]) -> dict:
    """Mean and sample standard deviation of several runs' results, number by number.

    Args:
      runs: `Evaluation.results`, one per split or seed.

    Returns:
      `{"mean": …, "std": …}`, each with the scores of one run, and those of the scales
      that all runs have; std is 0 for one run.

    Raises:
      ValueError: if the runs do not have the same scores.
    """
    scales = set.intersection(*({*run["by_scale"]} for run in runs))
    scores = [
        {key: run[key] for key in (*SCORES, "sr") if key in run}
        | {"by_scale": {scale: run["by_scale"][scale] for scale in sorted(scales)}}
        for run in runs
    ]

    def over_runs(function):
        return jax.tree.map(lambda *x: round(float(function(x)), 3), *scores)

    return {
        "mean": over_runs(np.mean),
        "std": over_runs(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0),
    }


def _distance_blocks(method, query, gallery, chunk_size):
    """(first query, (chunk, G) distances); a block is computed while one is ranked."""
    distance = jax.jit(method.distance)
    gallery_features = jax.device_put(gallery.features)
    ahead = None
    for start in range(0, len(query.pid), chunk_size):
        rows = slice(start, start + chunk_size)
        part = jax.tree.map(lambda x, rows=rows: x[rows], query.features)
        block = start, distance(part, gallery_features)
        if ahead:
            yield ahead[0], np.asarray(ahead[1])
        ahead = block
    yield ahead[0], np.asarray(ahead[1])


def _percentages(scores) -> dict:
    return {
        **{f"rank{r}": _percent(scores.cmc[r - 1]) for r in RANKS},
        "mAP": _percent(scores.mAP),
        "mINP": _percent(scores.mINP),
    }


def _percent(fraction) -> float:
    return round(100 * float(fraction), 3)
