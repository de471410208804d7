"""Rankings worked by hand, and slow loops straight from the definitions."""

import numpy as np
import pytest

from crossres_jax.metrics import (
    MAX_RANK,
    draw_galleries,
    evaluate_ranking,
    evaluate_single_shot,
    rank_multi_shot,
    rank_single_shot,
    summarize,
    summarize_draws,
)

# One query of identity 1 from camera 0. Without what does not count, the order is
# 2, match, distractor, match: hits at ranks 2 and 4.
DISTANCES = [[0.10, 0.20, 0.30, 0.05, 0.40, 0.50]]
GALLERY_PIDS = [1, 2, 1, -1, 0, 1]
GALLERY_CAMIDS = [0, 1, 1, 1, 0, 2]


def rank_by_hand(**options):
    return evaluate_ranking(
        DISTANCES, [1], GALLERY_PIDS, [0], GALLERY_CAMIDS, **options
    )


def rank_one_query(distances, matches):
    """Ranks a gallery of which `matches` says which images are the query's."""
    return evaluate_ranking([distances], [1], np.where(matches, 1, 2))


def random_problem(seed, num_queries=30, num_gallery=60):
    """Distances of few values, so that most are tied, and labels of every kind."""
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 6, (num_queries, num_gallery))
    query_pids = rng.integers(0, 11, num_queries)  # identity 10 has no gallery image
    gallery_pids = rng.integers(-1, 10, num_gallery)
    query_camids = rng.integers(0, 3, num_queries)
    gallery_camids = rng.integers(0, 3, num_gallery)
    return distances, query_pids, gallery_pids, query_camids, gallery_camids


def slow_ranking(distances, q_pids, g_pids, q_camids, g_camids, ap):
    """CMC, mAP, mINP and number of valid queries as the original script walks them."""
    cmcs, aps, inps = [], [], []
    for row, q_pid, q_camid in zip(distances, q_pids, q_camids, strict=True):
        hits = []
        for g in sorted(range(len(g_pids)), key=lambda g: (row[g], g)):
            same_camera = g_pids[g] == q_pid and g_camids[g] == q_camid
            if g_pids[g] >= 0 and not same_camera:
                hits.append(g_pids[g] == q_pid)
        if not any(hits):
            continue
        total, found, average, old_precision, last = sum(hits), 0, 0.0, 1.0, 0
        for rank, hit in enumerate(hits, start=1):
            found += hit
            precision = found / rank
            if hit:
                last = rank
                if ap == "step":
                    average += precision / total
                else:
                    average += (old_precision + precision) / 2 / total
            old_precision = precision
        cmcs.append([any(hits[:r]) for r in range(1, MAX_RANK + 1)])
        aps.append(average)
        inps.append(total / last)
    return np.mean(cmcs, axis=0), np.mean(aps), np.mean(inps), len(aps)


def slow_single_shot(distances, q_pids, g_pids, draws):
    """CMC (T, R), mean reciprocal rank (T,) and number of valid queries."""
    cmcs, mrrs = [], []
    for draw in draws:
        ranks = []
        for row, q_pid in zip(distances, q_pids, strict=True):
            ranked = sorted(draw, key=lambda g: (row[g], g))
            ranks += [r for r, g in enumerate(ranked, 1) if g_pids[g] == q_pid]
        cmcs.append([np.mean(np.array(ranks) <= r) for r in range(1, MAX_RANK + 1)])
        mrrs.append(np.mean(1 / np.array(ranks)))
    return np.array(cmcs), np.array(mrrs), len(ranks)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# The multi-shot protocol


def test_same_camera_and_junk_are_removed_and_distractors_stay():
    result = rank_by_hand()
    np.testing.assert_array_equal(result.cmc, [0] + [1] * (MAX_RANK - 1))
    assert result.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mINP == 2 / 4
    assert result.num_valid_queries == 1


def test_trapezoid_averages_precision_at_and_just_before_each_hit():
    result = rank_by_hand(ap="trapezoid")
    assert result.mAP == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert result.mINP == 2 / 4


@pytest.mark.parametrize(
    ("ap", "expected"),
    [
        ("step", (1 + 2 / 3 + 3 / 5) / 3),
        ("trapezoid", (1 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3),
    ],
)
def test_without_cameras_only_junk_is_removed(ap, expected):
    result = evaluate_ranking(DISTANCES, [1], GALLERY_PIDS, ap=ap)  # hits at 1, 3, 5
    assert result.cmc[0] == 1
    assert result.mAP == pytest.approx(expected)
    assert result.mINP == 3 / 5


def test_ties_are_ranked_in_the_order_of_the_gallery():
    tied = [1.0, 1.0, 1.0, 1.0]
    assert rank_one_query(tied, [1, 0, 0, 0]).mAP == 1
    assert rank_one_query(tied, [0, 0, 0, 1]).mAP == 1 / 4
    assert rank_one_query(tied, [0, 1, 0, 1]).mAP == (1 / 2 + 2 / 4) / 2


def test_distances_keep_their_precision():
    assert rank_one_query([1.0, np.nextafter(1, 0)], [0, 1]).mAP == 1
    assert rank_one_query(np.array([2**24 + 1, 2**24], np.int32), [0, 1]).mAP == 1


def test_infinite_distances_rank_last():
    assert rank_one_query([np.inf, 3.0, 2.0], [1, 0, 0]).mAP == 1 / 3
    result = evaluate_ranking([[np.inf, np.inf]], [1], [-1, 1])  # junk is not before it
    assert result.mAP == 1


def test_queries_without_a_valid_match_are_left_out():
    distances = [[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]
    # Identity 3 is not in the gallery, and 2 only from the query's own camera.
    result = evaluate_ranking(distances, [1, 3, 2], [1, 2], [0, 0, 0], [1, 0])
    assert result.num_valid_queries == 1
    assert (result.cmc[0], result.mAP, result.mINP) == (1, 1, 1)


def test_junk_matches_no_query():
    result = evaluate_ranking([[1.0, 2.0], [1.0, 2.0]], [-1, 1], [-1, 1])
    assert result.num_valid_queries == 1


@pytest.mark.parametrize("ap", ["step", "trapezoid"])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_equals_the_slow_loops(seed, ap):
    problem = random_problem(seed)
    cmc, *rest = evaluate_ranking(*problem, ap=ap)
    slow_cmc, *slow_rest = slow_ranking(*problem, ap)
    np.testing.assert_array_equal(cmc, slow_cmc)
    # The same few fractions summed in another order: some roundings of 1e-16.
    np.testing.assert_allclose(rest, slow_rest, rtol=1e-14)
    assert rest[-1] < len(problem[1])  # some queries had no match


def test_distances_are_left_as_they_were():
    distances = np.array(DISTANCES)
    evaluate_ranking(distances, [1], GALLERY_PIDS, [0], GALLERY_CAMIDS)
    np.testing.assert_array_equal(distances, DISTANCES)


# The single-shot protocol


def test_a_gallery_of_one_image_per_identity_leaves_nothing_to_chance():
    distances = [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    result = evaluate_single_shot(distances, [7, 9], [7, 8, 9])  # ranks 3 and 2
    np.testing.assert_array_equal(result.cmc[:3], [0, 1 / 2, 1])
    assert result.mAP == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result.num_valid_queries == 2
    assert result.rank1_std == 0
    assert result.mAP_std == pytest.approx(0, abs=1e-15)  # a rounding of the mean


def test_spread_is_over_draws():
    # Whether identity 1 is drawn as image 0 or 2 decides between ranks 1 and 2.
    gallery_pids = [1, 2, 1]
    share = np.mean(draw_galleries(gallery_pids)[:, 0] == 0)
    result = evaluate_single_shot([[1.0, 2.0, 3.0]], [1], gallery_pids)
    assert 0.3 < share < 0.7  # 4 standard deviations of 100 fair draws
    assert result.cmc[0] == pytest.approx(share)
    assert result.mAP == pytest.approx(share + (1 - share) / 2)
    assert result.rank1_std == pytest.approx(np.sqrt(share * (1 - share)))
    assert result.mAP_std == pytest.approx(result.rank1_std / 2)


@pytest.mark.parametrize("seed", range(3))
def test_single_shot_equals_the_slow_loops(seed):
    distances, query_pids, gallery_pids, *_ = random_problem(seed)
    result = evaluate_single_shot(distances, query_pids, gallery_pids, seed=seed)
    draws = draw_galleries(gallery_pids, seed=seed)
    cmc, mrr, num_valid = slow_single_shot(distances, query_pids, gallery_pids, draws)
    assert result.num_valid_queries == num_valid < len(query_pids)
    # Means of means against means: some roundings of 1e-16.
    np.testing.assert_allclose(result.cmc, cmc.mean(axis=0), rtol=1e-14)
    assert result.mAP == pytest.approx(mrr.mean(), rel=1e-14)
    assert result.mINP == result.mAP
    assert result.rank1_std == pytest.approx(cmc[:, 0].std(), rel=1e-12)
    assert result.mAP_std == pytest.approx(mrr.std(), rel=1e-12)


def test_draws_hold_one_image_of_each_identity_and_reach_all():
    gallery_pids = np.array([7, 3, 7, -1, 3, 7, 0])
    draws = draw_galleries(gallery_pids)
    assert draws.shape == (100, 3)
    np.testing.assert_array_equal(gallery_pids[draws], [[0, 3, 7]] * 100)
    assert set(draws.flat) == {0, 1, 2, 4, 5, 6}


def test_draws_are_a_fixed_function_of_the_seed():
    gallery_pids = [7, 3, 7, -1, 3, 7, 0]
    # Written down once: another NumPy or machine must give the same.
    expected = [[6, 1, 0], [6, 4, 0], [6, 1, 0], [6, 1, 5]]
    assert draw_galleries(gallery_pids, num_draws=4).tolist() == expected
    assert draw_galleries(gallery_pids, num_draws=5)[:4].tolist() == expected
    assert draw_galleries(gallery_pids, num_draws=4, seed=1).tolist() != expected


# Blocks and subsets


def test_blocks_give_exactly_what_the_whole_matrix_gives():
    distances, query_pids, gallery_pids, query_camids, gallery_camids = random_problem(
        0
    )
    multi, single = [], []
    for rows in np.split(np.arange(len(query_pids)), [1, 8, 8, 20]):  # one is empty
        block, pids = distances[rows], query_pids[rows]
        multi.append(
            rank_multi_shot(
                block, pids, gallery_pids, query_camids[rows], gallery_camids
            )
        )
        single.append(rank_single_shot(block, pids, gallery_pids, seed=3))
    assert_equal(
        summarize(multi),
        evaluate_ranking(
            distances, query_pids, gallery_pids, query_camids, gallery_camids
        ),
    )
    assert_equal(
        summarize_draws(single),
        evaluate_single_shot(distances, query_pids, gallery_pids, seed=3),
    )


def test_a_subset_scores_as_if_its_queries_were_alone():
    distances, query_pids, gallery_pids, *_ = random_problem(1)
    subset = np.arange(len(query_pids)) % 3 == 0
    alone = distances[subset], query_pids[subset], gallery_pids
    halves = np.split(distances, 2), np.split(query_pids, 2)
    pairs = list(zip(*halves, strict=True))
    multi = [rank_multi_shot(block, pids, gallery_pids) for block, pids in pairs]
    single = [rank_single_shot(block, pids, gallery_pids) for block, pids in pairs]
    assert_equal(summarize(multi, subset), evaluate_ranking(*alone))
    assert_equal(summarize(multi, np.flatnonzero(subset)), evaluate_ranking(*alone))
    assert_equal(summarize_draws(single, subset), evaluate_single_shot(*alone))


def test_scores_are_those_of_each_query():
    distances = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    scores = rank_multi_shot(distances, [5, 6], [4, 5, 5])  # hits at 2 and 3; none
    np.testing.assert_array_equal(scores.first_rank, [[2], [np.nan]])
    np.testing.assert_allclose(
        scores.average_precision, [[(1 / 2 + 2 / 3) / 2], [np.nan]]
    )
    np.testing.assert_allclose(scores.inverse_negative_penalty, [[2 / 3], [np.nan]])


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, 2.0]], [1], [1]), r"shape \(queries, gallery\) = \(1, 1\)"),
        (([1.0], [1], [1]), "shape"),
        (([[np.nan, 1.0]], [1], [1, 2]), "found 1 NaN among 2"),
        (([[1.0]], [1], [2]), "found none among 1 queries"),
        (([[1.0]], [1], [-1]), "found none among 1 queries"),
    ],
)
@pytest.mark.parametrize("evaluate", [evaluate_ranking, evaluate_single_shot])
def test_what_cannot_be_ranked_is_refused(evaluate, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)


@pytest.mark.parametrize(
    ("camids", "message"),
    [
        (([0], None), "only those of the query"),
        ((None, [0]), "only those of the gallery"),
        (([0, 1], [0]), "one camera id per query and gallery pid"),
        (([0], [0, 1]), "one camera id per query and gallery pid"),
        (([0], [0]), "seen by different cameras"),
    ],
)
def test_camera_ids_must_fit(camids, message):
    with pytest.raises(ValueError, match=message):
        evaluate_ranking([[1.0]], [1], [1], *camids)


def test_options_must_be_known():
    with pytest.raises(ValueError, match="found 'voc'"):
        evaluate_ranking([[1.0]], [1], [1], ap="voc")
    with pytest.raises(ValueError, match="num_draws must be at least 1, found 0"):
        evaluate_single_shot([[1.0]], [1], [1], num_draws=0)


def test_a_subset_without_a_match_is_refused():
    scores = rank_multi_shot([[1.0], [1.0]], [1, 2], [1])
    with pytest.raises(ValueError, match="none among 1 queries"):
        summarize([scores], [False, True])
