import dataclasses
import json

import numpy as np
import pytest

from crossres_jax import sampling
from input_pipeline import protocols
from input_pipeline.datasets.records import Index, Pairs
from input_pipeline.protocols import PROTOCOLS, Protocol, make_plan

NUM_IDS, NUM_CAMERAS, NUM_SHOTS = 20, 3, 2
PROTOCOL = Protocol(
    name="p",
    dataset="d",
    num_train=12,
    num_test=6,
    lr_cameras=(1,),
    rate="per_identity",
)


def make_index():
    """Labels as the generated pedestrians have them, with gaps between the pids."""
    pid, camid, shot = (
        np.indices((NUM_IDS, NUM_CAMERAS, NUM_SHOTS)).reshape(3, -1).astype(np.int64)
    )
    return Index(
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


INDEX = make_index()


MARKET = PROTOCOLS["market1501"]


def make_official_index():
    """Twelve identities train, six are tested; six distractors, six junk images."""
    index = make_index()
    identity = (index.pid - 3) // 7
    test, shot = (identity >= 12) & (identity < 18), np.arange(len(index.pid)) % 2
    role = np.where(test, np.where(shot == 0, "gallery", "query"), "gallery")
    role = np.where(identity < 12, "train", role)
    role = np.where(identity == 18, "distractor", role)
    # Nobody in training is seen by camera 0.
    pid = np.where(identity == 18, 0, np.where(identity == 19, -1, index.pid))
    seen = (role != "train") | (index.camid > 0)
    return Index(*(column[seen] for column in index._replace(pid=pid, role=role)))


OFFICIAL = make_official_index()


def make_real_index():
    """Camera 1 has the smaller images but one; four identities are in camera 0 alone.

    The mean area of camera 1 is below that of camera 0, though one of its images is
    the largest of all.
    """
    camera = INDEX.camid
    seen = (camera < 2) & ~((camera == 1) & (INDEX.pid > 3 + 15 * 7))
    index = Index(*(column[seen] for column in INDEX))
    height, width = np.where(index.camid == 0, [[60], [20]], [[30], [12]])
    first = np.flatnonzero(index.camid == 1)[0]
    height[first], width[first] = 120, 40
    return index._replace(height=height, width=width)


REAL = Protocol(name="r", dataset="d", num_train=8, num_test=8, low_resolution="real")


VARYING = dataclasses.replace(PROTOCOLS["vr_market1501"], widths=(4, 6, 10, 99))


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


@pytest.mark.parametrize(
    ("rounding", "sizes"),  # of 31×15
    [
        ("floor", ((2, 15, 7), (3, 10, 5), (4, 7, 3))),
        ("nearest", ((2, 16, 8), (3, 10, 5), (4, 8, 4))),
        ("ceil", ((2, 16, 8), (3, 11, 5), (4, 8, 4))),
    ],
)
def test_lr_size_is_rounded_as_the_protocol_says(rounding, sizes):
    protocol = dataclasses.replace(PROTOCOL, rounding=rounding)
    query = make_plan(protocol, INDEX).query
    for scale, height, width in sizes:
        assert set(query.height[query.scale == scale]) == {height}
        assert set(query.width[query.scale == scale]) == {width}


def test_no_size_falls_below_one_pixel():
    protocol = dataclasses.replace(PROTOCOL, scales=(16, 40))
    query = make_plan(protocol, INDEX).query
    assert set(query.width) == {1} and set(query.height) == {1}


def test_rates_are_dealt_to_images_in_equal_shares():
    protocol = dataclasses.replace(PROTOCOL, rate="per_image")
    plan = make_plan(protocol, INDEX)
    for side, num_low in ((plan.train, 24), (plan.query, 12)):
        counts = np.unique(side.scale[side.low], return_counts=True)
        assert [list(x) for x in counts] == [[2, 3, 4], [num_low // 3] * 3]
    rates = {}
    for pid, scale in zip(plan.train.pid, plan.train.scale, strict=True):
        rates.setdefault(int(pid), set()).add(float(scale))
    assert max(len(of_pid) for of_pid in rates.values()) == 3  # 1 and two others
    other = make_plan(dataclasses.replace(protocol, seed=1), INDEX)
    assert (other.train.scale != plan.train.scale).any()


def test_one_scale_is_everybodys():
    for rate in ("per_image", "per_identity"):
        protocol = dataclasses.replace(PROTOCOL, rate=rate, scales=(5,))
        plan = make_plan(protocol, INDEX)
        assert set(plan.query.scale) == {5} and set(plan.train.scale) == {1, 5}


def test_scale_one_is_not_low_resolution_but_with_other_damage():
    plain = dataclasses.replace(PROTOCOL, scales=(1,))
    plan = make_plan(plain, INDEX)
    assert not plan.query.low.any() and set(plan.query.camid) == {1}
    for damage in ({"jpeg_quality": 30}, {"blur": 1.5}):
        query = make_plan(dataclasses.replace(plain, **damage), INDEX).query
        assert query.low.all() and set(query.scale) == {1}


def test_half_of_the_images_of_each_identity_are_low_resolution():
    protocol = dataclasses.replace(PROTOCOL, low_resolution="half", lr_cameras=())
    plan = make_plan(protocol, INDEX)
    for side in (plan.train, plan.query, plan.gallery):
        per_pid = {pid: side.low[side.pid == pid].sum() for pid in np.unique(side.pid)}
        assert set(per_pid.values()) == ({0} if side is plan.gallery else {3})
    assert len(set(plan.query.camid)) > 1  # not a camera's
    odd = INDEX.pid * 0 == 0
    odd[0] = False  # five images are left of the first identity
    plan = make_plan(protocol, Index(*(column[odd] for column in INDEX)))
    everything = np.concatenate([plan.train.pid, plan.query.pid, plan.gallery.pid])
    low = np.concatenate([plan.train.low, plan.query.low, plan.gallery.low])
    assert low[everything == INDEX.pid[0]].sum() in (0, 2)  # ⌊5 / 2⌋, if drawn


def test_one_camera_of_each_identity_is_low_resolution():
    protocol = dataclasses.replace(
        PROTOCOL, low_resolution="per_identity", lr_cameras=()
    )
    plan = make_plan(protocol, INDEX)
    cameras = set()
    for pid in np.unique(plan.query.pid):
        (camid,) = set(plan.query.camid[plan.query.pid == pid])
        assert camid not in plan.gallery.camid[plan.gallery.pid == pid]
        assert (plan.query.pid == pid).sum() == 2
        cameras.add(camid)
    assert len(cameras) > 1


def test_shots_are_drawn_for_each_identity_and_camera():
    protocol = dataclasses.replace(PROTOCOL, num_shots=1)
    plan = make_plan(protocol, INDEX)
    for side, cameras in ((plan.train, 3), (plan.query, 1), (plan.gallery, 2)):
        seen = list(zip(side.pid.tolist(), side.camid.tolist(), strict=True))
        assert len(seen) == len(set(seen)) == cameras * len(set(side.pid))
    shots = {name[-5] for name in (*plan.train.name, *plan.gallery.name)}
    assert shots == {"0", "1"}


def test_the_camera_with_the_smaller_images_is_the_real_low_resolution():
    index = make_real_index()
    plan = make_plan(REAL, index)
    assert set(plan.query.camid) == {1} and set(plan.gallery.camid) == {0}
    assert plan.num_set_aside == 4
    swapped = make_plan(REAL, index._replace(camid=1 - index.camid))
    assert swapped.query.name.tolist() == plan.query.name.tolist()
    for side in (plan.train, plan.query, plan.gallery):
        np.testing.assert_array_equal(side.has_hr, side.camid == 0)
        np.testing.assert_array_equal(side.height, index.height[side.record])


def test_a_real_scale_is_that_of_the_mean_area_of_the_training_side():
    plan = make_plan(REAL, make_real_index())
    low = np.concatenate([plan.train.scale, plan.query.scale])[
        np.concatenate([plan.train.low, plan.query.low])
    ]
    expected = np.sqrt(60 * 20 / (30 * 12))
    # The one that is larger than the mean has scale 1.
    assert sorted(set(low.tolist())) == pytest.approx([1, expected], rel=1e-6)
    assert set(plan.gallery.scale) == {1}


def test_only_the_training_side_is_the_measure_of_a_real_scale():
    index = make_real_index()
    plan = make_plan(REAL, index)
    height = index.height.copy()
    height[plan.gallery.record] *= 3
    changed = make_plan(REAL, index._replace(height=height))
    np.testing.assert_array_equal(changed.query.scale, plan.query.scale)
    # Neither is a training image that cannot be decoded.
    high = plan.train.record[~plan.train.low][0]
    sizes = {"height": index.height.copy(), "width": index.width.copy()}
    for size in sizes.values():
        size[high] = 0
    changed = make_plan(REAL, index._replace(**sizes))
    np.testing.assert_array_equal(changed.query.scale, plan.query.scale)


STORED = Protocol(name="s", dataset="d", low_resolution="stored")


def make_stored(index):
    """Camera 1 is low-resolution; its first shots have originals, the last records."""
    shot = np.char.endswith(index.name, "_0.png")
    first = np.flatnonzero((index.camid == 1) & shot)
    originals = Index(
        name=np.char.add("hr/", index.name[first]),
        pid=np.full(len(first), -1),
        camid=np.full(len(first), -1),
        height=np.full(len(first), 62),
        width=np.full(len(first), 30),
        sha256=np.char.add("hr", index.sha256[first]),
        role=np.full(len(first), "original"),
    )
    original = np.arange(len(index.pid) + len(first))
    original[first] = original[len(index.pid) :]
    index = Index(*map(np.append, index, originals))
    return index, Pairs(original, scale=np.where(index.camid == 1, 2.5, 1.0))


def test_stored_images_are_low_resolution_as_they_are():
    index, pairs = make_stored(INDEX)
    plan = make_plan(STORED, index, pairs)
    protocols.check_disjoint(plan, index.sha256)
    assert plan.num_classes == 10 == len(set(plan.query.pid)) and not plan.num_set_aside
    assert set(plan.query.camid) == {1} and set(plan.gallery.camid) == {0, 2}
    for side in (plan.train, plan.query, plan.gallery):
        low, first = side.camid == 1, np.char.endswith(side.name, "_0.png")
        np.testing.assert_array_equal(side.low, low)
        np.testing.assert_array_equal(side.has_hr, ~low | first)
        np.testing.assert_array_equal(side.scale, np.where(low, 2.5, 1))
        assert (set(side.height), set(side.width)) == ({31}, {15})
        names = np.where(low & first, np.char.add("hr/", side.name), side.name)
        np.testing.assert_array_equal(index.name[side.original], names)


def test_official_roles_come_before_what_is_stored():
    index, pairs = make_stored(OFFICIAL)
    plan, official = make_plan(STORED, index, pairs), make_plan(MARKET, OFFICIAL)
    for side in ("train", "query", "gallery"):
        images = getattr(plan, side)
        np.testing.assert_array_equal(images.name, getattr(official, side).name)
        np.testing.assert_array_equal(images.low, images.camid == 1)
    words = np.where(np.isin(index.role, ("query", "gallery")), "test", index.role)
    plan = make_plan(STORED, index._replace(role=words), pairs)
    assert set(plan.query.camid) == {1} and plan.query.low.all()
    np.testing.assert_array_equal(plan.gallery.low, plan.gallery.camid == 1)
    assert set(plan.gallery.pid[plan.gallery.low]) == {0}  # distractors


def test_stored_images_need_no_cameras_and_are_needed():
    index, pairs = make_stored(INDEX)
    unseen = index._replace(camid=np.full(len(index.pid), -1))
    assert make_plan(STORED, unseen, pairs).query.low.all()
    none = Pairs(np.arange(len(index.pid)), np.ones(len(index.pid)))
    for found in (None, none):
        with pytest.raises(ValueError, match=r"s found no low-resolution picture in d"):
            make_plan(STORED, index, found)


def test_the_manifest_of_stored_images_is_the_same_on_every_machine():
    index, pairs = make_stored(INDEX)
    manifest = protocols.manifest(make_plan(STORED, index, pairs))
    assert manifest["sha256"] == (
        "d79451104ad6df445a8a112643e8ecd9a5b6260a11b532962239e5831d1b2c84"
    )
    order = sampling.permutation(len(index.pid), seed=3)
    place = np.argsort(order)  # of the record that was there
    shuffled = Pairs(place[pairs.original[order]], pairs.scale[order])
    index = Index(*(column[order] for column in index))
    assert protocols.manifest(make_plan(STORED, index, shuffled)) == manifest


@pytest.mark.parametrize(
    ("one", "other"), [("train", "query"), ("query", "train"), ("query", "gallery")]
)
def test_an_original_on_another_side_is_a_leak(one, other):
    index, pairs = make_stored(INDEX)
    plan = make_plan(STORED, index, pairs)
    images, elsewhere = getattr(plan, one), getattr(plan, other)
    original = images.original.copy()
    paired = np.flatnonzero(original != images.record)[0]
    for seen in (elsewhere.record[1], elsewhere.original[0]):
        original[paired] = seen
        wrong = plan._replace(**{one: images._replace(original=original)})
        sides = sorted((one, other), key=plan._fields.index)
        with pytest.raises(ValueError, match=f"of {sides[0]} are also in {sides[1]}"):
            protocols.check_disjoint(wrong, index.sha256)
    # On one side it may be that of several images.
    original[paired] = np.setdiff1d(images.original, images.record)[-1]
    shared = plan._replace(**{one: images._replace(original=original)})
    protocols.check_disjoint(shared, index.sha256)


def test_widths_are_dealt_in_equal_shares_and_keep_the_aspect():
    plan = make_plan(VARYING, OFFICIAL)
    for side in (plan.train, plan.query, plan.gallery):
        widths, counts = np.unique(side.width, return_counts=True)
        assert widths.tolist() == [4, 6, 10, 15] and np.ptp(counts) <= 1
        np.testing.assert_array_equal(side.height, 31 * side.width // 15)
        np.testing.assert_allclose(side.scale, 15 / side.width, rtol=1e-6)
        np.testing.assert_array_equal(side.low, side.width < 15)
        assert side.has_hr.all()


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


PINNED = {
    "camera": (
        PROTOCOL,
        make_index,
        "877ea068e1a562c37c65e690eb00b0450d718319c579fd093d5c7484e63566aa",
    ),
    "camera, per image": (
        dataclasses.replace(PROTOCOL, rate="per_image", rounding="nearest", split=3),
        make_index,
        "304ab09305085df2ae68a229c082c624ca6a105f90e11f97c12728c50d843cbf",
    ),
    "half": (
        dataclasses.replace(
            PROTOCOL, low_resolution="half", lr_cameras=(), num_shots=1
        ),
        make_index,
        "756166a9cea8dc0c8babe48d52d9869696fa34ee1246e053f35d82f6b7d52b33",
    ),
    "per identity": (
        dataclasses.replace(PROTOCOL, low_resolution="per_identity", lr_cameras=()),
        make_index,
        "6f1ca6389401c79879612044cad1da82ce9e35b16294cc0462c18986b5f60fc6",
    ),
    "real": (
        REAL,
        make_real_index,
        "a87fa4510def4b2d9ccfa70437cef9a924c9d1eaccca041e0d0e0b988dafb7a5",
    ),
    "official": (
        MARKET,
        make_official_index,
        "acd278735739e684a4f88cd051b258f96408405703044111f624c3dd6d3da931",
    ),
    "varying": (
        VARYING,
        make_official_index,
        "fb6aecefe0db68510b81b58bd702d22ce75aa5a7ffe4b053aa4640df545e0bfb",
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_manifest_is_the_same_on_every_machine(case):
    # Written in: a change makes old results incomparable.
    protocol, index, sha256 = PINNED[case]
    assert protocols.manifest(make_plan(protocol, index()))["sha256"] == sha256


@pytest.mark.parametrize("case", PINNED)
def test_manifest_does_not_depend_on_the_order_of_the_records(case):
    protocol, index, _ = PINNED[case]
    index = index()
    order = sampling.permutation(len(index.pid), seed=3)
    shuffled = Index(*(column[order] for column in index))
    assert protocols.manifest(make_plan(protocol, index)) == protocols.manifest(
        make_plan(protocol, shuffled)
    )


def test_manifest_counts_and_survives_json():
    manifest = protocols.manifest(make_plan(PROTOCOL, INDEX))
    assert manifest["counts"]["query"] == {
        "identities": 6,
        "images": 12,
        "cameras": {"1": 12},
        "scales": {"2": 4, "3": 4, "4": 4},
        "heights": [7, 15],
        "widths": [3, 7],
    }
    assert manifest["set_aside"] == 2
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


def test_a_split_made_by_image_and_not_by_identity_is_a_leak():
    plan = make_plan(PROTOCOL, INDEX)
    halves = np.arange(len(plan.train.pid)) % 2 == 0
    train, query = (
        protocols.Images(*(column[rows] for column in plan.train))
        for rows in (halves, ~halves)
    )
    wrong = plan._replace(train=train, query=query)
    with pytest.raises(ValueError, match=r"p leaks: the identities .* in train and in"):
        protocols.check_disjoint(wrong, INDEX.sha256)


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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kernel", "nearest", "kernel must be one of area, bilinear, bicubic, lanczos"),
        ("rounding", "up", "rounding must be one of floor, nearest, ceil, found 'up'"),
        ("rate", "single", "rate must be one of per_identity, per_image"),
        ("low_resolution", "some", "low_resolution must be one of none, camera, half"),
        ("evaluation", "cmc", "evaluation must be one of single_shot, multi_shot"),
        ("lr_cameras", (), r'which cameras are low.*lr_cameras="\(1,\)"'),
        ("scales", (), "scales must be whole numbers from 1 on"),
        ("scales", (0, 2), "scales must be whole numbers from 1 on"),
        ("scales", (2.5,), r"scales must be whole numbers, .* found \(2\.5,\)"),
        ("lr_cameras", ("1",), "lr_cameras must be whole numbers"),
        ("jpeg_quality", 96, "jpeg_quality must be from 0 to 95"),
        ("blur", -0.5, "blur not negative"),
        ("num_draws", 0, "single-shot scores need num_draws of at least 1"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROTOCOL, **{field: value})


def test_cameras_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match=r"market1501.*lr_cameras.*none"):
        dataclasses.replace(MARKET, lr_cameras=(3,))


@pytest.mark.parametrize("low_resolution", ["camera", "per_identity", "real"])
def test_a_protocol_of_cameras_needs_them(low_resolution):
    protocol = dataclasses.replace(
        PROTOCOL,
        low_resolution=low_resolution,
        lr_cameras=(1,) if low_resolution == "camera" else (),
        rate="per_image",
    )
    index = INDEX._replace(camid=np.full(len(INDEX.pid), -1))
    with pytest.raises(ValueError, match=r"camera of every image, found c0/0_0.png"):
        make_plan(protocol, index)
    half = dataclasses.replace(PROTOCOL, low_resolution="half", lr_cameras=())
    assert make_plan(half, index).query.low.all()


def test_an_identity_of_one_camera_is_named():
    seen = (INDEX.pid != 10) | (INDEX.camid == 1)
    index = Index(*(column[seen] for column in INDEX))
    with pytest.raises(
        ValueError, match=r"one kind alone of the identities 10 \(c1/1_0.png"
    ):
        make_plan(PROTOCOL, index)


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


def test_official_sides_are_the_makers_roles():
    plan = make_plan(MARKET, OFFICIAL)
    protocols.check_disjoint(plan, OFFICIAL.sha256)
    role = np.where(OFFICIAL.role == "distractor", "gallery", OFFICIAL.role)
    for side in ("train", "query", "gallery"):
        expected = OFFICIAL.name[(role == side) & (OFFICIAL.pid >= 0)]
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


def test_the_official_split_of_that_number_is_taken():
    words = np.where(OFFICIAL.role == "train", "train test", "test train")
    index = OFFICIAL._replace(role=words, pid=np.abs(OFFICIAL.pid))
    protocol = dataclasses.replace(
        PROTOCOL, num_train=None, num_test=None, lr_cameras=(2,)
    )
    one, other = (
        make_plan(dataclasses.replace(protocol, split=split), index) for split in (0, 1)
    )
    assert set(one.train.pid) == {*other.query.pid}
    assert set(other.train.pid) == {*one.query.pid}
    with pytest.raises(ValueError, match=r"has 2 official split\(s\).* found 2"):
        make_plan(dataclasses.replace(protocol, split=2), index)


def test_roles_that_are_not_tested_are_on_no_side():
    protocol = dataclasses.replace(
        MARKET, low_resolution="camera", lr_cameras=(1,), tested=("gallery",)
    )
    plan = make_plan(protocol, OFFICIAL)
    searched = {*plan.query.name, *plan.gallery.name}
    gallery = (OFFICIAL.role == "gallery") & (OFFICIAL.pid > 0)
    assert searched == {*OFFICIAL.name[gallery]}
    assert set(plan.query.camid) == {1} and set(plan.gallery.camid) == {0, 2}


def test_without_any_split_one_half_of_the_identities_trains():
    plan = make_plan(MARKET, INDEX)
    protocols.check_disjoint(plan, INDEX.sha256)
    assert plan.num_classes == len(set(plan.query.pid)) == 10
    # The first image of each identity in each camera is a query.
    assert {name[-5] for name in plan.query.name} == {"0"}
    assert len(plan.query.pid) == 30 == len(plan.gallery.pid)


def test_an_official_query_may_have_no_match():
    # It is not counted in the scores, as in the official code.
    pid = np.where(OFFICIAL.role == "gallery", 999, OFFICIAL.pid)
    plan = make_plan(MARKET, OFFICIAL._replace(pid=pid))
    assert set(plan.gallery.pid) == {0, 999} and len(set(plan.query.pid)) == 6
    with pytest.raises(ValueError, match=r"none of the 18 images of query has a match"):
        protocols.check_matches(plan)


def test_a_gallery_of_the_querys_camera_alone_finds_nothing_under_multi_shot():
    plan = make_plan(MARKET, OFFICIAL)
    protocols.check_matches(plan)
    same = plan._replace(gallery=plan.query)
    for evaluation, fails in (("multi_shot", True), ("single_shot", False)):
        protocol = dataclasses.replace(MARKET, evaluation=evaluation, num_draws=1)
        one_camera = same._replace(
            protocol=protocol,
            query=same.query._replace(camid=same.query.camid * 0),
            gallery=same.gallery._replace(camid=same.gallery.camid * 0),
        )
        if fails:
            with pytest.raises(ValueError, match="nothing to score"):
                protocols.check_matches(one_camera)
        else:
            protocols.check_matches(one_camera)


def test_held_out_identities_must_be_findable_too():
    plan = make_plan(HOLDING_OUT, INDEX)
    protocols.check_matches(plan)
    with pytest.raises(ValueError, match=r"of val_query has a match among the 12"):
        protocols.check_matches(plan._replace(val_gallery=plan.query))


def test_a_camera_that_no_image_has_is_refused():
    protocol = dataclasses.replace(PROTOCOL, lr_cameras=(1, 7))
    with pytest.raises(ValueError, match=r"lr_cameras 7 in d; choose among 0, 1, 2"):
        make_plan(protocol, INDEX)


def test_a_distractor_is_nobody_else():
    role = np.where(OFFICIAL.role == "distractor", "gallery", OFFICIAL.role)
    role[np.flatnonzero(OFFICIAL.role == "distractor")[0]] = "distractor"
    with pytest.raises(ValueError, match=r"distractors to be nobody else.* 0 under"):
        make_plan(MARKET, OFFICIAL._replace(role=role))


def test_a_split_that_would_not_be_looked_at_is_refused():
    with pytest.raises(ValueError, match=r"p draws who trains, and d says so itself"):
        make_plan(PROTOCOL, OFFICIAL)


@pytest.mark.parametrize(
    ("protocol", "field", "value"),
    [
        ("market1501", "kernel", "area"),
        ("market1501", "rounding", "ceil"),
        ("market1501", "blur", 1.0),
        ("market1501", "jpeg_quality", 30),
        ("market1501", "rate", "per_identity"),
        ("caviar", "rate", "per_identity"),
        ("paired_folder", "rate", "per_identity"),
        ("viper", "kernel", "area"),
    ],
)
def test_a_field_that_would_change_nothing_is_refused(protocol, field, value):
    with pytest.raises(ValueError, match=f"{protocol} does not look at {field}"):
        dataclasses.replace(PROTOCOLS[protocol], **{field: value})


def test_the_defaults_stay_as_the_hashes_know_them():
    # A field at its default is not hashed: another default would be another protocol.
    fields = dataclasses.fields(Protocol)
    assert {x.name: x.default for x in fields if x.name not in ("name", "dataset")} == {
        "num_train": None,
        "num_test": None,
        "tested": ("query", "gallery", "test", "distractor"),
        "num_shots": 0,
        "low_resolution": "camera",
        "lr_cameras": (),
        "rate": "per_image",
        "scales": (2, 3, 4),
        "widths": (),
        "kernel": "bicubic",
        "rounding": "floor",
        "blur": 0.0,
        "jpeg_quality": 0,
        "seed": 0,
        "split": 0,
        "val_ids": 0,
        "evaluation": "single_shot",
        "num_draws": 100,
    }


def test_the_hash_tells_what_the_images_do_not():
    def hash_of(protocol, **changes):
        plan = make_plan(dataclasses.replace(protocol, **changes), INDEX)
        return protocols.manifest(plan)["sha256"]

    changes = (
        {},
        {"kernel": "area"},
        {"blur": 1.0},
        {"jpeg_quality": 50},
        {"evaluation": "multi_shot"},
        {"num_draws": 10},
        {"dataset": "d/2"},
    )
    assert len({hash_of(PROTOCOL, **change) for change in changes}) == len(changes)


def test_an_identity_of_two_roles_is_a_leak():
    pid = OFFICIAL.pid.copy()
    pid[np.flatnonzero(OFFICIAL.role == "query")[0]] = 3  # who trains
    plan = make_plan(MARKET, OFFICIAL._replace(pid=pid))
    with pytest.raises(ValueError, match="market1501 leaks: the identities 3 are both"):
        protocols.check_disjoint(plan, OFFICIAL.sha256)


def test_a_split_without_training_images_is_refused():
    index = OFFICIAL._replace(role=np.where(OFFICIAL.role == "train", "", "query"))
    with pytest.raises(
        ValueError, match=r"official split .*no image with the role train in"
    ):
        make_plan(MARKET, index)


def test_an_official_split_is_the_only_one():
    with pytest.raises(
        ValueError, match=r"1 official split\(s\): split must be below that, found 3"
    ):
        make_plan(dataclasses.replace(MARKET, split=3), OFFICIAL)
