"""CMC, mAP and mINP of rankings, multi-shot and single-shot, block by block.

A *block* holds the distances of some queries to all gallery images. Each protocol
turns a block into the scores of its queries, and the scores of all blocks into means,
so that the whole (Q, G) matrix need not exist and both protocols share one pass:

    multi, single = [], []
    for rows in chunks_of_queries:
        block = distance(query[rows], gallery)
        multi.append(rank_multi_shot(block, pids[rows], gallery_pids, ...))
        single.append(rank_single_shot(block, pids[rows], gallery_pids))
    summarize(multi), summarize_draws(single)
    summarize(multi, scales == 4)  # only the queries down-sampled by 4

`evaluate_ranking` and `evaluate_single_shot` are the case of one block.

Ranks are counted, not sorted: a match stands behind the images that are nearer to the
query, and of those as near behind the ones earlier in the gallery, which is the order
of a stable sort. With few matches per query this beats sorting the gallery by far
(benchmarks/ranking.py).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MAX_RANK = 50  # where the CMC ends; the field reports ranks 1, 5, 10 and 20


class QueryScores(NamedTuple):
    """Scores of Q queries in T galleries; NaN where a query has no valid match.

    T is 1 under the multi-shot protocol, the number of draws under the single-shot one.

    Attributes:
      first_rank: (Q, T) float, the rank of the nearest match, from 1.
      average_precision: (Q, T) float in (0, 1].
      inverse_negative_penalty: (Q, T) float in (0, 1].
    """

    first_rank: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray


class Ranking(NamedTuple):
    """Means over all queries that have a valid match, as fractions.

    Attributes:
      cmc: (R,) float, at [r - 1] the share of queries with a match among the first r
        images; R is `MAX_RANK` also where the gallery is smaller.
      mAP: mean average precision.
      mINP: mean inverse negative penalty.
      num_valid_queries: how many queries the means are over.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    num_valid_queries: int


class SingleShotRanking(NamedTuple):
    """`Ranking` averaged over gallery draws, and its spread.

    With one match per gallery, mAP and mINP both are the mean reciprocal rank.

    Attributes:
      cmc, mAP, mINP, num_valid_queries: as in `Ranking`.
      rank1_std: standard deviation of Rank-1 over the draws (population, ddof = 0).
      mAP_std: the same of mAP.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    num_valid_queries: int
    rank1_std: float
    mAP_std: float  # noqa: N815


def evaluate_ranking(
    distance_matrix: ArrayLike,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    ap: Literal["step", "trapezoid"] = "step",
) -> Ranking:
    """CMC, mAP and mINP of a whole distance matrix, multi-shot.

    `rank_multi_shot`, where protocol and arguments are described, then `summarize`.

    Args:
      distance_matrix: (Q, G) real.
      query_pids, gallery_pids: (Q,) and (G,) int; below 0 is junk.
      query_camids, gallery_camids: (Q,) and (G,) int, or neither.
      ap: "step" or "trapezoid".

    Returns:
      Ranking, as fractions.

    Raises:
      ValueError: as `rank_multi_shot`, and if no query has a valid match.
    """
    scores = rank_multi_shot(
        distance_matrix,
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        ap=ap,
    )
    return summarize([scores])


def evaluate_single_shot(
    distance_matrix: ArrayLike,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    *,
    num_draws: int = 100,
    seed: int = 0,
) -> SingleShotRanking:
    """CMC and mAP of a whole distance matrix, single-shot.

    `rank_single_shot`, where protocol and arguments are described, then
    `summarize_draws`.

    Args:
      distance_matrix: (Q, G) real.
      query_pids, gallery_pids: (Q,) and (G,) int; below 0 is junk.
      num_draws: how many galleries of one image per identity are drawn.
      seed: of the draws, non-negative.

    Returns:
      SingleShotRanking, as fractions.

    Raises:
      ValueError: as `rank_single_shot`, and if no query has a valid match.
    """
    scores = rank_single_shot(
        distance_matrix, query_pids, gallery_pids, num_draws=num_draws, seed=seed
    )
    return summarize_draws([scores])


def rank_multi_shot(
    distances: ArrayLike,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    ap: Literal["step", "trapezoid"] = "step",
) -> QueryScores:
    """Scores of queries under the protocol of Market-1501 (Zheng et al., ICCV 2015).

    A query is matched by the gallery images of its identity from other cameras. Those
    from its own camera are removed, and so is junk, the images with a negative pid.
    Distractors, pid 0 in Market-1501, stay as images that match no query; 0 gets no
    special treatment, so that data sets which count from 0 are ranked rightly too.

    With the ranks R_1 < ... < R_n of a query's matches, average precision is the mean
    of the precisions i / R_i at the hits ("step"), or of the means of precision at and
    just before a hit ("trapezoid", the original Market-1501 script, also PS-HRNet's;
    before rank 1 precision is 1). The inverse negative penalty is n / R_n (Ye et al.,
    arXiv:2001.04193).

    Args:
      distances: (Q, G) real, smaller is nearer, infinite allowed. Equal distances are
        ranked in the order of the gallery.
      query_pids: (Q,) int; one below 0 has no match.
      gallery_pids: (G,) int.
      query_camids: (Q,) int; without cameras nothing but junk is removed.
      gallery_camids: (G,) int, given if and only if `query_camids` is.
      ap: "step" or "trapezoid".

    Returns:
      QueryScores with T = 1.

    Raises:
      ValueError: if sizes differ, a distance is NaN, one kind of camera ids is given
        without the other, or `ap` is neither.
    """
    if ap not in ("step", "trapezoid"):
        raise ValueError(f"ap must be 'step' or 'trapezoid', found {ap!r}")
    distances, query_pids, gallery_pids = _checked(distances, query_pids, gallery_pids)
    query_camids, gallery_camids = _checked_cameras(
        query_pids, gallery_pids, query_camids, gallery_camids
    )

    junk = gallery_pids < 0
    scores = np.full((3, len(query_pids), 1), np.nan)
    for i, row in enumerate(distances):
        same_pid = gallery_pids == query_pids[i]
        removed = junk | (same_pid & (gallery_camids == query_camids[i]))
        matches = np.flatnonzero(same_pid & ~removed)
        if matches.size:
            kept = np.where(removed, np.nan, row)  # NaN is never nearer
            ranks = np.sort([_rank(kept, match) for match in matches])
            inverse_penalty = len(ranks) / ranks[-1]
            scores[:, i, 0] = ranks[0], _average_precision(ranks, ap), inverse_penalty
    return QueryScores(*scores)


def rank_single_shot(
    distances: ArrayLike,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    *,
    num_draws: int = 100,
    seed: int = 0,
) -> QueryScores:
    """Scores of queries in small galleries of one random image per identity.

    The protocol of SING (Jiao et al., AAAI 2018) for VIPeR, CUHK03 and CAVIAR. All
    queries, of this block and any other, meet the same draws (`draw_galleries`).
    Cameras play no part: query and gallery should come from different ones.

    Args:
      distances: (Q, G) real, as in `rank_multi_shot`.
      query_pids: (Q,) int.
      gallery_pids: (G,) int, all of the gallery; those below 0 are junk. Distractors
        with one common pid are one identity more: leave them out beforehand.
      num_draws: T, how many galleries are drawn.
      seed: of the draws, non-negative.

    Returns:
      QueryScores with T = `num_draws`.

    Raises:
      ValueError: if sizes differ, a distance is NaN, or `num_draws` is below 1.
    """
    distances, query_pids, gallery_pids = _checked(distances, query_pids, gallery_pids)
    draws = draw_galleries(gallery_pids, num_draws=num_draws, seed=seed)  # (T, P)
    identities = gallery_pids[draws[0]]  # (P,)
    ranks = np.full((len(query_pids), num_draws), np.nan)
    for i, row in enumerate(distances):
        match = draws[:, identities == query_pids[i]]  # (T, 1), or (T, 0) without one
        if match.size:
            drawn, matched = row[draws], row[match]
            nearer = (drawn < matched) | ((drawn == matched) & (draws < match))
            ranks[i] = 1 + np.count_nonzero(nearer, axis=1)
    return QueryScores(ranks, 1 / ranks, 1 / ranks)


def draw_galleries(
    gallery_pids: ArrayLike, *, num_draws: int = 100, seed: int = 0
) -> np.ndarray:
    """Draws one gallery image per identity, `num_draws` times.

    A function of its arguments alone, on every machine and under every NumPy: only
    the raw 64-bit stream of Philox is used, which NumPy keeps fixed, unlike the
    distributions made of it. The remainder favours no image by more than 1e-15.

    Args:
      gallery_pids: (G,) int; images with a negative pid are never drawn.
      num_draws: T, at least 1.
      seed: non-negative.

    Returns:
      (T, P) int indices into the gallery, a column per identity, in order of pid.

    Raises:
      ValueError: if `num_draws` is below 1.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, found {num_draws}")
    gallery_pids = np.asarray(gallery_pids)
    by_pid = np.argsort(gallery_pids, kind="stable")
    by_pid = by_pid[gallery_pids[by_pid] >= 0]
    _, starts, counts = np.unique(
        gallery_pids[by_pid], return_index=True, return_counts=True
    )
    random = np.random.Philox(key=seed).random_raw((num_draws, len(counts)))
    return by_pid[starts + (random % counts.astype(np.uint64)).astype(np.intp)]


def summarize(
    blocks: Sequence[QueryScores], where: ArrayLike | slice = slice(None)
) -> Ranking:
    """Means of the scores of all blocks, or of the queries chosen by `where`.

    Under the single-shot protocol the means are over queries and draws.

    Args:
      blocks: the scores, in the order of the queries.
      where: a boolean mask (Q,) over the queries of all blocks, or their indices.

    Returns:
      Ranking. Queries without a valid match are left out.

    Raises:
      ValueError: if no chosen query has a valid match.
    """
    first_rank, average_precision, inverse_penalty = _valid_scores(blocks, where)
    return Ranking(
        cmc=np.array([np.mean(first_rank <= r) for r in range(1, MAX_RANK + 1)]),
        mAP=float(average_precision.mean()),
        mINP=float(inverse_penalty.mean()),
        num_valid_queries=len(first_rank),
    )


def summarize_draws(
    blocks: Sequence[QueryScores], where: ArrayLike | slice = slice(None)
) -> SingleShotRanking:
    """`summarize` for the single-shot protocol, with the spread over the draws.

    Args:
      blocks: the scores, in the order of the queries.
      where: as in `summarize`.

    Returns:
      SingleShotRanking.

    Raises:
      ValueError: if no chosen query has a valid match.
    """
    first_rank, average_precision, _ = _valid_scores(blocks, where)
    return SingleShotRanking(
        *summarize(blocks, where),
        rank1_std=float(np.mean(first_rank == 1, axis=0).std()),
        mAP_std=float(average_precision.mean(axis=0).std()),
    )


def _rank(row, item):
    """The rank of an item: behind the nearer, and the as near of lower index."""
    before, after = row[:item] <= row[item], row[item + 1 :] < row[item]
    return 1 + np.count_nonzero(before) + np.count_nonzero(after)


def _average_precision(ranks, ap):
    hits = np.arange(1, len(ranks) + 1)
    precision = hits / ranks
    if ap == "step":
        return precision.mean()
    just_before = np.divide(
        hits - 1, ranks - 1, out=np.ones(len(ranks)), where=ranks > 1
    )
    return np.mean((just_before + precision) / 2)


def _valid_scores(blocks, where):
    scores = [np.concatenate(parts)[where] for parts in zip(*blocks, strict=True)]
    valid = ~np.isnan(scores[0][:, 0])
    if not valid.any():
        raise ValueError(
            "expected a query with a match in the gallery, found none among "
            f"{len(valid)} queries; check that query and gallery share identities and, "
            "if camera ids are given, that these were seen by different cameras"
        )
    return [score[valid] for score in scores]


def _checked(distances, query_pids, gallery_pids):
    distances, query_pids, gallery_pids = map(
        np.asarray, (distances, query_pids, gallery_pids)
    )
    expected = (*query_pids.shape, *gallery_pids.shape)
    if distances.shape != expected or distances.ndim != 2:
        raise ValueError(
            f"expected distances of shape (queries, gallery) = {expected}, found "
            f"{distances.shape}; give all gallery pids and this block's query pids"
        )
    num_nan = np.count_nonzero(np.isnan(distances))
    if num_nan:
        raise ValueError(
            f"expected distances that can be ranked, found {num_nan} NaN among "
            f"{distances.size}; look for NaN in the embeddings they come from"
        )
    # float, for removed images become NaN; lossless for narrower types.
    dtype = np.result_type(distances, np.float32)
    return distances.astype(dtype, copy=False), query_pids, gallery_pids


def _checked_cameras(query_pids, gallery_pids, query_camids, gallery_camids):
    if query_camids is None and gallery_camids is None:
        return np.zeros_like(query_pids), np.ones_like(gallery_pids)  # never the same
    if query_camids is None or gallery_camids is None:
        raise ValueError(
            "expected camera ids of query and gallery or of neither, found only those "
            f"of the {'gallery' if query_camids is None else 'query'}; leave both out "
            "to rank without cameras"
        )
    query_camids, gallery_camids = np.asarray(query_camids), np.asarray(gallery_camids)
    expected = query_pids.shape, gallery_pids.shape
    found = query_camids.shape, gallery_camids.shape
    if found != expected:
        raise ValueError(
            "expected one camera id per query and gallery pid, shapes "
            f"{expected}, found {found}; give both in the order of the pids"
        )
    return query_camids, gallery_camids
