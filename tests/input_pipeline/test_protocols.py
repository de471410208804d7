import dataclasses
import json

import numpy as np
import pytest

from crossres_jax import sampling
from input_pipeline import protocols
from input_pipeline.datasets.records import Index
from input_pipeline.protocols import PROTOCOLS, Protocol, make_plan

NUM_IDS, NUM_CAMERAS, NUM_SHOTS = 20, 3, 2
PROTOCOL = Protocol(name="p", dataset="d", num_train=12, num_test=6, lr_camera=1)


def make_index(order=None):
    """Labels as the generated pedestrians have them, with gaps between the pids."""
    pid, camid, shot = (
        np.indices((NUM_IDS, NUM_CAMERAS, NUM_SHOTS)).reshape(3, -1).astype(np.int64)
    )
    index = Index(
        name=np.array(
            [f"c{c}/{p}_{s}.png" for p, c, s in zip(pid, camid, shot, strict=True)]
        ),
        pid=pid * 7 + 3,
        camid=camid,
        height=np.full(len(pid), 31),
        width=np.full(len(pid), 15),
        sha256=np.array([f"{i:064x}" for i in range(len(pid))]),
        role=np.full(len(pid), ""),
    )
    return index if order is None else Index(*(column[order] for column in index))


INDEX = make_index()


def test_sides_have_disjoint_identities_and_all_their_images():
    plan = make_plan(PROTOCOL, INDEX)
    train, query, gallery = (set(side.pid) for side in plan[1:4])
    assert (len(train), len(query), plan.num_classes) == (12, 6, 12)
    assert query == gallery and not train & query
    assert [len(side.pid) for side in plan[1:4]] == [12 * 6, 6 * 2, 6 * 4]
    protocols.check_disjoint(plan, INDEX.sha256)


def test_queries_are_the_lr_camera_and_gallery_the_others():
    plan = make_plan(PROTOCOL, INDEX)
    assert set(plan.query.camid) == {1} and set(plan.gallery.camid) == {0, 2}
    assert set(plan.query.scale) == {2, 3, 4} and set(plan.gallery.scale) == {1}


def test_only_images_of_the_lr_camera_are_degraded():
    train = make_plan(PROTOCOL, INDEX).train
    np.testing.assert_array_equal(train.scale > 1, train.camid == 1)


@pytest.mark.parametrize("side", ["train", "query"])
def test_equal_thirds_of_the_identities_have_each_scale(side):
    images = getattr(make_plan(PROTOCOL, INDEX), side)
    per_scale = {
        scale: set(images.pid[images.scale == scale].tolist()) for scale in (2, 3, 4)
    }
    sizes = [len(pids) for pids in per_scale.values()]
    assert sizes == [len(set(images.pid)) // 3] * 3
    assert len(set().union(*per_scale.values())) == sum(sizes)  # one scale each


def test_lr_size_is_rounded_down():
    query = make_plan(PROTOCOL, INDEX).query
    for scale, height, width in ((2, 15, 7), (3, 10, 5), (4, 7, 3)):
        assert set(query.height[query.scale == scale]) == {height}
        assert set(query.width[query.scale == scale]) == {width}


def test_training_labels_are_contiguous_and_test_images_have_none():
    plan = make_plan(PROTOCOL, INDEX)
    assert np.unique(plan.train.label).tolist() == list(range(12))
    pairs = set(zip(plan.train.label.tolist(), plan.train.pid.tolist(), strict=True))
    assert len(pairs) == 12
    assert set(plan.query.label) == set(plan.gallery.label) == {-1}


def test_rows_describe_their_records():
    for side in make_plan(PROTOCOL, INDEX)[1:4]:
        np.testing.assert_array_equal(side.name, INDEX.name[side.record])
        np.testing.assert_array_equal(side.pid, INDEX.pid[side.record])
        np.testing.assert_array_equal(side.camid, INDEX.camid[side.record])


def test_splits_and_seeds_differ_and_repeat():
    def hash_of(**changes):
        protocol = dataclasses.replace(PROTOCOL, **changes)
        return protocols.manifest(make_plan(protocol, INDEX))["sha256"]

    def queried(split):
        plan = make_plan(dataclasses.replace(PROTOCOL, split=split), INDEX)
        return frozenset(plan.query.pid.tolist())

    hashes = [hash_of(split=split) for split in range(10)] + [hash_of(seed=1)]
    assert len(set(hashes)) == 11
    assert hash_of(split=4) == hashes[4]
    assert len({queried(split) for split in range(10)}) == 10


def test_manifest_is_the_same_on_every_machine():
    # Written in when the protocols were made: a change makes old results incomparable.
    manifest = protocols.manifest(make_plan(PROTOCOL, INDEX))
    assert manifest["sha256"] == (
        "fcaf5ce27a575e276d9a25968c37532048e1d5f94d364fcbb8d810dd704324f5"
    )


def test_manifest_does_not_depend_on_the_order_of_the_records():
    shuffled = make_index(sampling.permutation(len(INDEX.pid), seed=3))
    assert protocols.manifest(make_plan(PROTOCOL, INDEX)) == protocols.manifest(
        make_plan(PROTOCOL, shuffled)
    )


def test_manifest_counts_and_survives_json():
    manifest = protocols.manifest(make_plan(PROTOCOL, INDEX))
    assert manifest["counts"]["query"] == {
        "identities": 6,
        "images": 12,
        "cameras": {"1": 12},
        "scales": {"2": 4, "3": 4, "4": 4},
    }
    assert manifest["counts"]["train"]["scales"] == {"1": 48, "2": 8, "3": 8, "4": 8}
    assert manifest["protocol"]["name"] == "p"
    again = json.loads(json.dumps(manifest))
    assert again["counts"] == manifest["counts"]


@pytest.mark.parametrize(
    ("side", "column"),
    [
        *(("query", "name"), ("gallery", "pid"), ("train", "camid")),
        *(("query", "scale"), ("train", "width"), ("gallery", "height")),
    ],
)
def test_any_change_of_an_image_changes_the_hash(side, column):
    plan = make_plan(PROTOCOL, INDEX)
    images = getattr(plan, side)
    values = getattr(images, column).copy()
    values[0] = "other" if column == "name" else values[0] + 1
    changed = plan._replace(**{side: images._replace(**{column: values})})
    assert protocols.manifest(changed)["sha256"] != protocols.manifest(plan)["sha256"]


@pytest.mark.parametrize("side", ["query", "gallery", "val_query", "val_gallery"])
def test_identity_that_also_trains_is_a_leak(side):
    plan = make_plan(HOLDING_OUT, INDEX)
    images = getattr(plan, side)
    pid = images.pid.copy()
    pid[3] = plan.train.pid[0]
    wrong = plan._replace(**{side: images._replace(pid=pid)})
    with pytest.raises(ValueError, match=f"{pid[3]} are both in train and in {side}"):
        protocols.check_disjoint(wrong, INDEX.sha256)


@pytest.mark.parametrize(
    ("one", "other"), [("train", "query"), ("train", "gallery"), ("query", "gallery")]
)
def test_image_on_two_sides_is_a_leak(one, other):
    plan = make_plan(PROTOCOL, INDEX)
    record = getattr(plan, other).record.copy()
    record[2] = getattr(plan, one).record[1]
    name = getattr(plan, one).name[1]
    wrong = plan._replace(**{other: getattr(plan, other)._replace(record=record)})
    with pytest.raises(ValueError, match=f"images {name} of {one} are also in {other}"):
        protocols.check_disjoint(wrong, INDEX.sha256)


@pytest.mark.parametrize(
    ("one", "other"), [("train", "query"), ("train", "gallery"), ("query", "gallery")]
)
def test_same_bytes_on_two_sides_are_a_leak(one, other):
    plan = make_plan(PROTOCOL, INDEX)
    sha256 = INDEX.sha256.copy()
    sha256[getattr(plan, other).record[0]] = sha256[getattr(plan, one).record[4]]
    name = getattr(plan, one).name[4]
    with pytest.raises(ValueError, match=f"{name} of {one} are also in {other}"):
        protocols.check_disjoint(plan, sha256)


def test_long_list_of_leaked_identities_is_cut():
    plan = make_plan(PROTOCOL, INDEX)
    with pytest.raises(ValueError, match="and 7 more are both"):
        protocols.check_disjoint(plan._replace(query=plan.train), INDEX.sha256)


HOLDING_OUT = dataclasses.replace(PROTOCOL, val_ids=3)


def test_held_out_identities_neither_train_nor_are_tested():
    plan = make_plan(HOLDING_OUT, INDEX)
    protocols.check_disjoint(plan, INDEX.sha256)
    train, val, test = (
        set(side.pid) for side in (plan.train, plan.val_query, plan.query)
    )
    assert (len(train), len(val), plan.num_classes) == (9, 3, 9)
    assert set(plan.val_gallery.pid) == val
    assert not train & val and not test & val
    assert set(plan.train.label) == set(range(9))
    assert set(plan.val_query.scale) == {2, 3, 4}  # one of each
    assert set(plan.val_query.camid) == {1} and set(plan.val_gallery.camid) == {0, 2}


def test_the_test_side_does_not_depend_on_who_is_held_out():
    without, holding_out = make_plan(PROTOCOL, INDEX), make_plan(HOLDING_OUT, INDEX)
    for side in ("query", "gallery"):
        for one, other in zip(
            getattr(without, side), getattr(holding_out, side), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    everybody = {*without.train.name}
    assert {*holding_out.train.name} < everybody
    held_out = {*holding_out.val_query.name, *holding_out.val_gallery.name}
    assert everybody - {*holding_out.train.name} == held_out


def test_manifest_tells_who_is_held_out():
    manifest = protocols.manifest(make_plan(HOLDING_OUT, INDEX))
    assert manifest["counts"]["val_query"]["identities"] == 3
    assert manifest["protocol"]["val_ids"] == 3
    assert (
        manifest["sha256"] != protocols.manifest(make_plan(PROTOCOL, INDEX))["sha256"]
    )


def test_a_tested_identity_among_the_held_out_is_a_leak():
    plan = make_plan(HOLDING_OUT, INDEX)
    with pytest.raises(ValueError, match="both in query and in val_query"):
        protocols.check_disjoint(plan._replace(val_query=plan.query), INDEX.sha256)


def test_two_identities_must_be_left_to_train_on():
    protocol = dataclasses.replace(PROTOCOL, val_ids=11)
    with pytest.raises(ValueError, match="val_ids holds out 11 of 12"):
        make_plan(protocol, INDEX)


def test_a_single_identity_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"must be 0 or at least 2, found 1"):
        make_plan(dataclasses.replace(PROTOCOL, val_ids=1), INDEX)


def test_too_few_identities_are_refused():
    protocol = dataclasses.replace(PROTOCOL, num_train=15)
    with pytest.raises(ValueError, match=r"needs 15 training and 6 test .*found 20"):
        make_plan(protocol, INDEX)


def test_unknown_kernel_is_refused():
    protocol = dataclasses.replace(PROTOCOL, kernel="nearest")
    with pytest.raises(
        ValueError, match=r"'nearest'.*area, bilinear, bicubic, lanczos"
    ):
        make_plan(protocol, INDEX)


def test_viper_protocol_halves_the_identities():
    pid = np.tile(np.arange(632), 2)
    index = Index(
        name=np.array([f"{i}.bmp" for i in range(1264)]),
        pid=pid,
        camid=np.repeat([0, 1], 632),
        height=np.full(1264, 128),
        width=np.full(1264, 48),
        sha256=np.array([str(i) for i in range(1264)]),
        role=np.full(1264, ""),
    )
    counts = protocols.manifest(make_plan(PROTOCOLS["mlr_viper"], index))["counts"]
    thirds = {"2": 106, "3": 105, "4": 105}
    assert counts["train"]["images"] == 632
    assert counts["train"]["scales"] == {"1": 316} | thirds
    assert counts["query"]["scales"] == thirds
    assert counts["gallery"]["scales"] == {"1": 316}


MARKET = PROTOCOLS["market1501"]


def make_official_index():
    """Twelve identities train, six are tested; six distractors, six junk images."""
    index = make_index()
    identity = (index.pid - 3) // 7
    test, shot = (identity >= 12) & (identity < 18), np.arange(len(index.pid)) % 2
    role = np.where(test, np.where(shot == 0, "gallery", "query"), "gallery")
    role[identity < 12] = "train"
    # Nobody in training is seen by camera 0.
    pid = np.where(identity == 18, 0, np.where(identity == 19, -1, index.pid))
    seen = (role != "train") | (index.camid > 0)
    return Index(*(column[seen] for column in index._replace(pid=pid, role=role)))


OFFICIAL = make_official_index()


def test_official_sides_are_the_makers_roles():
    plan = make_plan(MARKET, OFFICIAL)
    protocols.check_disjoint(plan, OFFICIAL.sha256)
    for side in ("train", "query", "gallery"):
        expected = OFFICIAL.name[(OFFICIAL.role == side) & (OFFICIAL.pid >= 0)]
        assert getattr(plan, side).name.tolist() == expected.tolist()
    assert plan.num_classes == 12 and set(plan.train.label) == set(range(12))
    assert set(plan.query.label) == set(plan.gallery.label) == {-1}


def test_official_gallery_has_distractors_and_no_junk():
    plan = make_plan(MARKET, OFFICIAL)
    assert set(plan.gallery.pid) == {*plan.query.pid, 0}
    assert (plan.gallery.pid == 0).sum() == 6 and -1 in OFFICIAL.pid


def test_nothing_is_degraded_without_a_low_resolution_camera():
    for side in make_plan(MARKET, OFFICIAL)[1:4]:
        assert set(side.scale) == {1} and side.has_hr.all()
        assert (set(side.height), set(side.width)) == ({31}, {15})


def test_held_out_identities_are_searched_with_one_image_of_each_camera():
    plan = make_plan(dataclasses.replace(MARKET, val_ids=3), OFFICIAL)
    protocols.check_disjoint(plan, OFFICIAL.sha256)
    held_out = set(plan.val_query.pid.tolist())
    assert len(held_out) == 3
    assert not held_out & {*plan.train.pid, *plan.query.pid, *plan.gallery.pid}
    each = [(pid, camid) for pid in sorted(held_out) for camid in (1, 2)]
    for side in (plan.val_query, plan.val_gallery):
        found = zip(side.pid.tolist(), side.camid.tolist(), strict=True)
        assert sorted(found) == each
    assert plan.num_classes == 9
    without = make_plan(MARKET, OFFICIAL)
    for side in ("query", "gallery"):
        for one, other in zip(getattr(without, side), getattr(plan, side), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_seed_decides_who_is_held_out_of_an_official_split():
    def held_out(seed):
        protocol = dataclasses.replace(MARKET, val_ids=3, seed=seed)
        return frozenset(make_plan(protocol, OFFICIAL).val_query.pid.tolist())

    assert held_out(0) == held_out(0)
    assert len({held_out(seed) for seed in range(5)}) > 1


def test_an_official_query_may_have_no_match():
    # It is not counted in the scores, as in the official code.
    pid = np.where(OFFICIAL.role == "gallery", 0, OFFICIAL.pid)
    plan = make_plan(MARKET, OFFICIAL._replace(pid=pid))
    assert set(plan.gallery.pid) == {0} and len(set(plan.query.pid)) == 6


def test_how_the_ranking_is_scored_is_no_part_of_the_manifest():
    single = dataclasses.replace(MARKET, evaluation="single_shot")
    assert protocols.manifest(make_plan(MARKET, OFFICIAL)) == protocols.manifest(
        make_plan(single, OFFICIAL)
    )


def test_official_manifest_is_the_same_on_every_machine():
    # Written in when the protocol was made: a change makes old results incomparable.
    manifest = protocols.manifest(make_plan(MARKET, OFFICIAL))
    assert manifest["sha256"] == (
        "73eabafa0360c5e0e5bce9e4dd937fe3920487a49937259fd1d7bdb899c75000"
    )


def test_an_identity_of_two_roles_is_a_leak():
    pid = OFFICIAL.pid.copy()
    pid[np.flatnonzero(OFFICIAL.role == "query")[0]] = 3  # who trains
    plan = make_plan(MARKET, OFFICIAL._replace(pid=pid))
    with pytest.raises(ValueError, match="market1501 leaks: the identities 3 are both"):
        protocols.check_disjoint(plan, OFFICIAL.sha256)


def test_data_without_roles_have_no_official_split():
    with pytest.raises(
        ValueError, match=r"official split .*no image with the role tra"
    ):
        make_plan(MARKET, INDEX)


def test_an_official_split_is_the_only_one():
    with pytest.raises(ValueError, match=r"one split, .*: split must be 0, found 3"):
        make_plan(dataclasses.replace(MARKET, split=3), OFFICIAL)
