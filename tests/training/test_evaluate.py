"""Evaluation: features to scores, with an oracle that needs no network."""

import numpy as np
import pytest

from crossres_jax.methods.contract import Method
from crossres_jax.ops.distances import euclidean_distances
from crossres_jax.training import evaluate
from crossres_jax.training.sharding import make_mesh

NUM_IDS, BATCH = 10, 4


def _embed(variables, images, *, role, resolution):
    return images[:, 0, 0, :]  # a pixel is the feature


METHOD = Method(
    init=lambda rng, batch: {},
    phases=(),
    embed=_embed,
    distance=euclidean_distances,
    restore=lambda variables, images, *, resolution: images,
)


def _batches(pixels, pids, camid, scales):
    """Batches of exactly four rows, the last one filled up with repeated rows."""
    rows = np.arange(-(-len(pids) // BATCH) * BATCH)
    for start in range(0, len(rows), BATCH):
        row = np.minimum(rows[start : start + BATCH], len(pids) - 1)
        images = np.broadcast_to(pixels[row, None, None], (BATCH, 16, 16, 3))
        images = images.astype(np.float32)
        yield {
            "lr": images,
            "hr": np.clip(images + 0.1, 0, 1),
            "has_hr": np.ones(BATCH, bool),
            "pid": pids[row],
            "camid": np.full(BATCH, camid),
            "scale": scales[row],
            "resolution": (1 / scales[row]).astype(np.float32),
            "valid": rows[start : start + BATCH] < len(pids),
            "index": row,
        }


def _evaluate(noise, **options):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.1, 0.9, size=(NUM_IDS, 3))
    pids = np.arange(NUM_IDS)
    scales = np.array([2, 3, 4, 2, 3, 4, 2, 3, 4, 2])
    wrong = pixels + noise * (scales == 4)[:, None] * rng.normal(size=pixels.shape)
    gallery = np.repeat(np.arange(NUM_IDS), 2)
    query_side, gallery_side = (
        evaluate.embed_images(METHOD, {}, batches, make_mesh(), role=role)
        for role, batches in (
            ("query", _batches(wrong, pids, 0, scales)),
            ("gallery", _batches(pixels[gallery], gallery, 1, np.ones(20, int))),
        )
    )
    return evaluate.compare(METHOD, query_side, gallery_side, **options)


def test_perfect_features_score_100_percent():
    results = _evaluate(noise=0.0).results
    assert results["rank1"] == results["mAP"] == results["mINP"] == 100
    assert results["multi_shot"]["mAP"] == 100
    assert results["num_queries"] == 10
    assert results["num_gallery"] == 20
    assert results["trials"] == {"count": 100, "rank1_std": 0, "mAP_std": 0}


def test_scores_fall_only_at_the_scale_that_is_spoiled():
    results = _evaluate(noise=3.0).results
    by_scale = results["by_scale"]
    assert by_scale["2"] == {"rank1": 100.0, "mAP": 100.0, "num_queries": 4}
    assert by_scale["3"]["rank1"] == 100
    assert by_scale["4"]["rank1"] < 50
    assert results["rank1"] == pytest.approx(70 + 0.3 * by_scale["4"]["rank1"])


def test_chunks_change_nothing():
    whole, chunked = _evaluate(3.0), _evaluate(3.0, chunk_size=3)
    assert whole.results == chunked.results
    np.testing.assert_array_equal(whole.ranked, chunked.ranked)


def test_ranked_lists_are_the_nearest_gallery_images():
    evaluation = _evaluate(noise=0.0, num_shown=4, num_ranked=2)
    np.testing.assert_array_equal(evaluation.shown, [0, 3, 6, 9])
    np.testing.assert_array_equal(
        evaluation.ranked, [[0, 1], [6, 7], [12, 13], [18, 19]]
    )


def test_psnr_of_a_constant_difference():
    sr = _evaluate(noise=0.0).results["sr"]
    assert sr["psnr"] == sr["psnr_bicubic"] == pytest.approx(20, abs=1e-3)  # 0.1² = 1%


def _official(pids, camids):
    """One side of a test set; what is alike has the same feature."""
    pids, camids = np.array(pids), np.array(camids)
    scale = np.ones_like(pids)
    return lambda features: evaluate.Embedded(
        np.array(features, np.float32)[:, None], pids, camids, scale, {}
    )


def test_multi_shot_scores_are_the_main_ones_where_they_are_official():
    query = _official([1, 2, 9], [1, 1, 1])([0.0, 10.0, 5.0])
    gallery = _official(
        pids=[1, 1, 0, 1, 2, -1, 2],
        camids=[1, 2, 3, 3, 2, 2, 1],
    )([0.0, 0.2, 0.1, 0.3, 10.3, 10.1, 10.0])
    # Query 1: its own camera's image is removed, the distractor stays: ranks 2 and 3.
    # Query 2: its own camera's image and junk are removed: rank 1. 9 has no match.
    evaluation = evaluate.compare(METHOD, query, gallery, evaluation="multi_shot")
    results = evaluation.results
    assert results["evaluation"] == "multi_shot"
    assert (results["rank1"], results["rank5"]) == (50, 100)
    assert results["mAP"] == pytest.approx(
        100 * ((1 / 2 + 2 / 3) / 2 + 1) / 2, abs=1e-3
    )
    assert (results["num_queries"], results["num_gallery"]) == (2, 7)
    assert results["by_scale"] == {
        "1": {"rank1": 50.0, "mAP": results["mAP"], "num_queries": 2}
    }
    assert "trials" not in results and "multi_shot" not in results
    np.testing.assert_array_equal(evaluation.ranked[0, :3], [2, 1, 3])
    np.testing.assert_array_equal(evaluation.ranked[1, :1], [4])


def test_multi_shot_scores_are_the_same_as_beside_single_shot_ones():
    single, multi = _evaluate(3.0), _evaluate(3.0, evaluation="multi_shot")
    main = {key: multi.results[key] for key in evaluate.SCORES}
    assert main == single.results["multi_shot"]
    assert single.results["evaluation"] == "single_shot"
    assert multi.results["sr"] == single.results["sr"]


def test_an_unknown_evaluation_is_refused():
    with pytest.raises(ValueError, match="'single_shot' or 'multi_shot', found 'both'"):
        _evaluate(0.0, evaluation="both")


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="images on the query side, found none"):
        evaluate.embed_images(METHOD, {}, [], make_mesh(), role="query")


def test_splits_that_lack_a_scale_are_averaged_over_the_others():
    one = _evaluate(0.0).results
    other = {**one, "by_scale": {x: one["by_scale"][x] for x in ("2", "4")}}
    mean = evaluate.mean_and_std([one, other])["mean"]
    assert mean["by_scale"].keys() == {"2", "4"} and mean["rank1"] == one["rank1"]


def _sides(query_pids, query_camids, query_scales, gallery_pids, gallery_camids):
    rng = np.random.default_rng(0)

    def side(pids, camids, scales):
        return evaluate.Embedded(
            rng.normal(size=(len(pids), 3)).astype(np.float32),
            *(np.array(x) for x in (pids, camids, scales)),
            quality={},
        )

    return (
        side(query_pids, query_camids, query_scales),
        side(gallery_pids, gallery_camids, [1.0] * len(gallery_pids)),
    )


def test_a_scale_without_a_match_is_left_out_and_scales_are_rounded():
    query, gallery = _sides([1, 2, 3], [0] * 3, [1.6, 2.4, 2.6], [1, 2], [1, 1])
    results = evaluate.compare(METHOD, query, gallery).results
    assert results["num_queries"] == 2
    assert {x: y["num_queries"] for x, y in results["by_scale"].items()} == {"2": 2}


def test_without_cameras_no_match_is_taken_for_the_querys_own():
    sides = [1, 2], [-1, -1], [1, 1], [1, 2, 2], [-1, -1, -1]
    evaluation = evaluate.compare(METHOD, *_sides(*sides), evaluation="multi_shot")
    assert evaluation.results["num_queries"] == 2
    assert evaluation.ranked.shape == (2, 3)
    assert set(map(tuple, np.sort(evaluation.ranked))) == {(0, 1, 2)}
    # One camera that is not known leaves the others as they are.
    query, gallery = _sides([1, 2], [0, 0], [1, 1], [1, 2, 2], [0, -1, 0])
    results = evaluate.compare(METHOD, query, gallery, evaluation="multi_shot").results
    assert results["num_queries"] == 1


def test_the_other_scores_stand_beside_the_main_ones():
    multi = _evaluate(0.5, evaluation="multi_shot", num_draws=5).results
    single = _evaluate(0.5, evaluation="single_shot", num_draws=5).results
    assert "trials" not in multi and "single_shot" not in single
    for score, value in multi["single_shot"].items():
        assert value == single[score]
    for score, value in single["multi_shot"].items():
        assert value == multi[score]
    assert (
        "single_shot"
        not in _evaluate(0.5, evaluation="multi_shot", num_draws=0).results
    )
