import dataclasses
import importlib
import io
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from crossres_jax import sampling
from input_pipeline import pipeline, protocols, transforms
from input_pipeline.datasets import records
from input_pipeline.pipeline import eval_batches, open_data, train_batches


@pytest.fixture
def data(make_config):
    return open_data(make_config())


def batches(data, seed=0, start_step=0, num_steps=4):
    return list(
        train_batches(data, seed=seed, start_step=start_step, num_steps=num_steps)
    )


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def original(data, images, row):
    position = int(images.record[row])
    return records.read_pixels(data.source, [position], [images.name[row]])[0]


def stored_lr(pixels, images, row):
    """The image as the MLR set stores it."""
    size = images.height[row], images.width[row]
    assert size == tuple(np.array((32, 16)) // int(images.scale[row]))
    return transforms.degrade(pixels, size, "bicubic")


def test_training_batch_has_the_promised_arrays(data):
    (batch,) = batches(data, num_steps=1)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "lr": ((12, 32, 16, 3), "float32"),
        "hr": ((12, 32, 16, 3), "float32"),
        "has_hr": ((12,), "bool"),
        "label": ((12,), "int32"),
        "camid": ((12,), "int32"),
        "scale": ((12,), "float32"),
        "resolution": ((12,), "float32"),
        "relative_width": ((12,), "float32"),
        "index": ((12,), "int32"),
    }
    for key in ("lr", "hr"):
        assert 0 <= batch[key].min() < batch[key].max() <= 1


def test_training_batches_are_the_sampler_s_plan(data):
    train = data.plan.train
    assert data.steps_per_epoch == 4 and data.plan.num_classes == 8
    for step, batch in enumerate(batches(data, seed=3, num_steps=6)):
        expected = sampling.plan_batch(3, step, train.label, num_ids=4, num_instances=3)
        np.testing.assert_array_equal(batch["index"], expected)
        for key in ("label", "camid", "scale", "has_hr"):
            np.testing.assert_array_equal(batch[key], getattr(train, key)[expected])
        assert len(set(batch["label"])) == 4
        assert (batch["label"].reshape(4, 3) == batch["label"][::3, None]).all()
        np.testing.assert_allclose(batch["resolution"], 1 / batch["scale"], rtol=1e-6)


def test_resumed_batches_are_the_tail_of_the_full_run_bit_for_bit(data):
    full = batches(data, seed=1, num_steps=6)
    tail = batches(data, seed=1, start_step=4, num_steps=2)
    for one, other in zip(full[4:], tail, strict=True):
        assert_same(one, other)


def test_seed_decides_images_and_augmentation(data, make_config):
    (one,), (other,) = batches(data, 1, num_steps=1), batches(data, 2, num_steps=1)
    assert not np.array_equal(one["index"], other["index"])
    again = open_data(make_config())
    assert_same(one, batches(again, 1, num_steps=1)[0])


def test_repeated_image_is_augmented_anew(make_config):
    data = open_data(make_config(num_instances=20))
    assert data.num_repeating == 8
    (batch,) = batches(data, num_steps=1)
    _, counts = np.unique(batch["index"], return_counts=True)
    assert counts.max() > 2
    assert len({image.tobytes() for image in batch["hr"]}) > len(counts)


def test_lr_equals_hr_exactly_where_nothing_is_degraded(data):
    for batch in batches(data):
        same = (batch["lr"] == batch["hr"]).all((1, 2, 3))
        np.testing.assert_array_equal(same, batch["scale"] == 1)


def test_lr_is_the_degraded_original_where_it_is_degraded(make_config):
    data = open_data(make_config(flip=0.0, pad=0))
    train = data.plan.train
    (batch,) = batches(data, num_steps=1)
    assert (batch["scale"] > 1).any()
    for row, index in enumerate(batch["index"]):
        pixels = original(data, train, index)
        np.testing.assert_array_equal(
            batch["hr"][row], transforms.fit(pixels, (32, 16))
        )
        stored = stored_lr(pixels, train, index)
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )


def test_another_kernel_resizes_what_is_not_degraded(make_config):
    options = {"flip": 0.0, "pad": 0, "image_size": (48, 24)}
    (plain,) = batches(open_data(make_config(**options)), num_steps=1)
    data = open_data(make_config(**options, resize="bilinear"))
    (batch,) = batches(data, num_steps=1)
    degraded = batch["scale"] > 1
    assert degraded.any() and not degraded.all()
    np.testing.assert_array_equal(batch["lr"][degraded], plain["lr"][degraded])
    for row in np.flatnonzero(~degraded):
        pixels = original(data, data.plan.train, batch["index"][row])
        expected = transforms.fit(pixels, (48, 24), "bilinear")
        np.testing.assert_array_equal(batch["lr"][row], expected)
        np.testing.assert_array_equal(batch["hr"][row], expected)
        assert np.abs(batch["lr"][row] - plain["lr"][row]).max() > 0.01


def test_erasing_is_the_same_in_lr_and_hr(make_config):
    plain = batches(open_data(make_config()))
    gone = batches(open_data(make_config(erase=1.0)))
    for before, after in zip(plain, gone, strict=True):
        lr, hr = ((before[k] != after[k]).any(-1) for k in ("lr", "hr"))
        assert lr.any((1, 2)).all()
        # Both are erased where either was, but where a pixel had that very colour.
        assert (lr != hr).mean() < 0.001


def test_lr_and_hr_share_flip_and_crop(make_config):
    plain = batches(open_data(make_config(flip=0.0, pad=0)))
    moved = batches(open_data(make_config(flip=0.5, pad=4)))
    degraded = 0
    for before, after in zip(plain, moved, strict=True):
        np.testing.assert_array_equal(before["index"], after["index"])
        for row in np.flatnonzero(before["scale"] > 1):
            hr = find_move(before["hr"][row], after["hr"][row])
            lr = find_move(before["lr"][row], after["lr"][row])
            assert hr == lr
            degraded += 1
    assert degraded > 8


def test_flip_and_crop_change_with_seed_and_step(make_config):
    def moves(seed, step):
        (before,), (after,) = (
            batches(open_data(make_config(flip=flip, pad=pad)), seed, step, 1)
            for flip, pad in ((0.0, 0), (0.5, 4))
        )
        return [
            find_move(*pair) for pair in zip(before["hr"], after["hr"], strict=True)
        ]

    drawn = [moves(seed, step) for seed in (1, 2) for step in (0, 1)]
    assert len({tuple(moves) for moves in drawn}) == 4


def find_move(image, moved, pad=4):
    """The flip and offset of which `moved` is the result, but for rounding errors."""
    height, width, _ = image.shape
    for step in (1, -1):
        padded = np.pad(image[:, ::step], ((pad, pad), (pad, pad), (0, 0)))
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                inside = padded[top : top + height, left : left + width]
                if np.allclose(inside, moved, rtol=0, atol=2e-5):
                    return step, top, left
    raise AssertionError("not a flip and crop of the image")


def test_a_script_ends_while_batches_are_made_ahead(make_config):
    script = f"""
from types import SimpleNamespace as namespace
from input_pipeline import pipeline
data = pipeline.open_data({make_config(cache_dir=str(make_config().cache_dir))!r})
batches = pipeline.train_batches(data, seed=0, start_step=0, num_steps=10**6)
print(next(batches)["hr"].shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(12, 32, 16, 3)\n"


def test_synthetic_lr_gives_every_pair_a_copy_at_a_rate_of_its_own(make_config):
    data = open_data(make_config(tuples="synthetic", flip=0.0, pad=0))
    drawn = batches(data, seed=5, num_steps=3)
    for step, batch in enumerate(drawn):
        expected = sampling.plan_scales(5, step, 12, (2, 3, 4))
        np.testing.assert_array_equal(batch["scale"], expected)
        np.testing.assert_allclose(batch["resolution"], 1 / expected, rtol=1e-6)
    row, index = 7, drawn[0]["index"][7]
    pixels = original(data, data.plan.train, index)
    size = tuple(np.array((32, 16)) // int(drawn[0]["scale"][row]))
    lr = transforms.degrade(pixels, size, "bicubic")
    np.testing.assert_array_equal(drawn[0]["lr"][row], transforms.fit(lr, (32, 16)))
    assert_same(drawn[2], batches(data, seed=5, start_step=2, num_steps=1)[0])


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_evaluation_shows_every_image_once_in_batches_of_one_size(data, side):
    images = getattr(data.plan, side)
    shown = list(eval_batches(data, side))
    assert {batch["lr"].shape for batch in shown} == {(5, 32, 16, 3)}
    valid = np.concatenate([batch["valid"] for batch in shown])
    index = np.concatenate([batch["index"] for batch in shown])
    assert valid.sum() == len(images.pid) and len(valid) - valid.sum() in range(1, 5)
    np.testing.assert_array_equal(index[valid], np.arange(len(images.pid)))
    assert set(index[~valid]) == {len(images.pid) - 1}
    for batch in shown:
        for key in ("pid", "camid", "scale", "has_hr"):
            expected = getattr(images, key)[batch["index"]]
            np.testing.assert_array_equal(batch[key], expected)
        assert batch["pid"].dtype == np.int64 and "label" not in batch


def test_evaluation_images_are_not_augmented(data):
    query = data.plan.query
    batch = next(eval_batches(data, "query"))
    for row, index in enumerate(batch["index"]):
        pixels = original(data, query, index)
        stored = stored_lr(pixels, query, index)
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )
        np.testing.assert_array_equal(
            batch["hr"][row], transforms.fit(pixels, (32, 16))
        )


def test_copies_of_one_rate(make_config):
    """In a gallery's batches, and in training ones of either kind of tuple."""
    data = open_data(make_config(flip=0.0, pad=0))
    gallery = next(eval_batches(data, "gallery", copy_rate=3))
    (synthetic, cross), changes = ([], []), {"flip": 0.0, "pad": 0, "num_ids": 3}
    for kept, tuples in ((synthetic, "synthetic"), (cross, "cross")):
        training = open_data(make_config(tuples=tuples, **changes))
        steps = {"seed": 0, "start_step": 0, "num_steps": 1}
        kept += [training, next(train_batches(training, copy_rate=3, **steps))]
    assert set(synthetic[1]["scale"]) == set(cross[1]["synthetic_scale"]) == {3}
    for images, batch, key in (
        (data.plan.gallery, gallery, "synthetic_lr"),
        (synthetic[0].plan.train, synthetic[1], "lr"),
        (cross[0].plan.train, cross[1], "synthetic_lr"),
    ):
        for row, index in enumerate(batch["index"]):
            copy = transforms.degrade(original(data, images, index), (10, 5), "bicubic")
            np.testing.assert_array_equal(
                batch[key][row], transforms.fit(copy, (32, 16))
            )
    assert "synthetic_lr" not in next(eval_batches(data, "gallery"))


def test_kernel_split_and_seed_of_the_config_replace_the_protocols_own(make_config):
    own = open_data(make_config())
    area = open_data(make_config(kernel="area"))
    assert own.plan.protocol.kernel == "bicubic" and area.plan.protocol.kernel == "area"
    one, other = (next(eval_batches(d, "query"))["lr"] for d in (own, area))
    assert np.abs(one - other).max() > 0.01
    hashes = {
        open_data(make_config(**change)).manifest["sha256"]
        for change in ({}, {"kernel": "area"}, {"split": 1}, {"seed": 1})
    }
    assert len(hashes) == 4


@pytest.fixture
def damage(monkeypatch, tmp_path, make_config):
    """A function that opens the tiny set with damaged pictures of these names."""
    own = records.record

    def open_damaged(names, **changes):
        def record(name, image_bytes, **labels):
            cut = image_bytes[:50] if name in names else image_bytes
            return own(name, b"" if name in names[1:] else cut, **labels)

        monkeypatch.setattr(records, "record", record)
        return open_data(make_config(cache_dir=str(tmp_path), **changes))

    return open_damaged


def test_unreadable_training_images_are_left_out_by_name(damage, data):
    names = data.plan.train.name[[5, 30]].tolist()
    damaged = damage(names)
    assert damaged.quarantined == names and data.quarantined == []
    kept = ~np.isin(data.plan.train.name, names)
    for one, other in zip(damaged.plan.train, data.plan.train, strict=True):
        if one.dtype.kind != "i" or len(one) != len(other):
            np.testing.assert_array_equal(one, other[kept])
    assert damaged.manifest["sha256"] != data.manifest["sha256"]
    assert damaged.manifest["counts"]["query"] == data.manifest["counts"]["query"]
    for batch in batches(damaged, num_steps=8):
        assert np.isfinite(batch["lr"]).all()


def test_too_many_unreadable_training_images_are_refused(damage, data):
    names = data.plan.train.name[:3].tolist()
    with pytest.raises(
        ValueError,
        match=rf"{names[0]}: not a readable .* 3 training images .* at most 2 .*delete",
    ):
        damage(names, max_quarantined=2)


@pytest.mark.parametrize("side", ["query", "gallery", "val_query", "val_gallery"])
def test_no_unreadable_image_is_searched(damage, make_config, side):
    data = open_data(make_config(val_ids=2))
    name = getattr(data.plan, side).name[1]
    with pytest.raises(
        ValueError, match=rf"{name}: not a readable image, .*in {side} .*Replace it"
    ):
        damage([name], val_ids=2)


def test_an_identity_without_a_readable_image_is_no_class(damage, data):
    train = data.plan.train
    names = train.name[train.label == 3].tolist()
    damaged = damage(names)
    assert len(names) == 6 and damaged.plan.num_classes == 7
    assert set(damaged.plan.train.label) == set(range(7))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounding", "ceil"),
        ("rate", "per_image"),
        ("evaluation", "multi_shot"),
        ("num_draws", 7),
        ("scales", [5, 6]),
        ("lr_cameras", [1]),
        ("jpeg_quality", 40),
        ("blur", 0.5),
    ],
)
def test_a_field_of_the_config_is_the_protocols(make_config, field, value):
    protocol = open_data(make_config(**{field: value})).plan.protocol
    expected = tuple(value) if isinstance(value, list) else value
    assert getattr(protocol, field) == expected


class CorruptSource:
    """Records of which one is cut off."""

    def __init__(self, source, position):
        self.source, self.position = source, position
        self.kept = {}

    def keep(self, position, pixels):
        pass

    def __getitems__(self, positions):
        images = [self.source[position]["image"] for position in positions]
        if self.position in positions:
            images[positions.index(self.position)] = images[0][:99]
        return [{"image": image} for image in images]


@pytest.mark.parametrize("side", ["train", "query", "gallery"])
def test_record_that_is_damaged_later_is_named_when_it_is_met(data, side):
    images = getattr(data.plan, side)
    corrupt = data._replace(source=CorruptSource(data.source, images.record[-1]))
    with pytest.raises(ValueError, match=rf"^{images.name[-1]}: not a readable image"):
        if side == "train":
            batches(corrupt, num_steps=20)
        else:
            list(eval_batches(corrupt, side))


def test_leaking_plan_is_refused_on_opening(make_config, monkeypatch):
    def wrong_plan(*args):
        plan = make_plan(*args)
        return plan._replace(gallery=plan.train)

    make_plan = protocols.make_plan
    monkeypatch.setattr(protocols, "make_plan", wrong_plan)
    with pytest.raises(ValueError, match="mlr_pedestrians_tiny leaks"):
        open_data(make_config())


def test_unknown_names_are_refused_with_the_known_ones(make_config):
    with pytest.raises(ValueError, match=r"'mlr_nowhere': choose one of .*mlr_viper"):
        open_data(make_config(protocol="mlr_nowhere"))
    with pytest.raises(ValueError, match=r"tuples must be one of image, syn.*'some'"):
        open_data(make_config(tuples="some"))
    with pytest.raises(ValueError, match=r"resize must be one of area, .* 'nearest'"):
        open_data(make_config(resize="nearest"))


def test_missing_archive_is_refused_with_what_to_do(make_config, tmp_path):
    config = make_config(
        protocol="mlr_viper", dir=str(tmp_path / "no"), cache_dir=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"(?s)no does not exist.*VIPeR\.v1\.0\.zip"):
        open_data(config)


def test_more_identities_than_there_are_is_refused(make_config):
    with pytest.raises(ValueError, match=r"P=9 .* found 8"):
        open_data(make_config(num_ids=9))


def test_tensorflow_leaves_the_gpu_alone(monkeypatch):
    hidden = []
    monkeypatch.setattr(
        pipeline.tf.config, "set_visible_devices", lambda *args: hidden.append(args)
    )
    importlib.reload(pipeline)
    assert hidden == [([], "GPU")]


def test_real_viper_trains_and_evaluates(make_config, real_data_dir):
    data = open_data(
        make_config(
            protocol="mlr_viper",
            dir=real_data_dir,
            image_size=(64, 32),
            num_instances=2,
            eval_batch_size=100,
        )
    )
    counts = data.manifest["counts"]
    assert counts["train"]["identities"] == counts["query"]["identities"] == 316
    assert counts["query"]["scales"] == {"2": 106, "3": 105, "4": 105}
    assert counts["gallery"]["scales"] == {"1": 316}
    assert data.steps_per_epoch == 79 and data.num_repeating == 0
    (batch,) = batches(data, num_steps=1)
    assert set(zip(batch["label"], batch["camid"], strict=True)) == {
        (label, camid) for label in set(batch["label"]) for camid in (0, 1)
    }
    assert sum(batch["valid"].sum() for batch in eval_batches(data, "query")) == 316


@pytest.fixture
def market_config(make_config, market_files, write_zip, tmp_path):
    """A function that gives the config of `open_data` on a generated Market-1501."""
    write_zip(tmp_path / "Market-1501-v15.09.15.zip", market_files)

    def make(**changes):
        fields = {
            "protocol": "market1501",
            "dir": str(tmp_path),
            "cache_dir": str(tmp_path / "cache"),
        }
        return make_config(**fields | changes)

    return make


def test_official_protocol_trains_and_is_searched(market_config):
    data = open_data(market_config(num_ids=2))
    counts = data.manifest["counts"]
    assert {side: counts[side]["images"] for side in counts} == {
        "train": 12,
        "query": 6,
        "gallery": 9 + 2,
    }
    assert data.manifest["protocol"]["dataset"] == "market1501/1.1.0"
    (batch,) = batches(data, num_steps=1)
    np.testing.assert_array_equal(batch["lr"], batch["hr"])
    assert set(batch["scale"]) == {1}
    shown = list(eval_batches(data, "gallery"))
    pid = np.concatenate([batch["pid"][batch["valid"]] for batch in shown])
    camid = np.concatenate([batch["camid"][batch["valid"]] for batch in shown])
    assert sorted(zip(pid.tolist(), camid.tolist(), strict=True)) == [
        *((0, 1), (0, 1)),
        *((pid, camid) for pid in (1, 3, 5) for camid in (1, 2, 3)),
    ]


def test_synthetic_lr_needs_a_protocol_that_down_samples(market_config):
    for tuples in ("synthetic", "cross"):
        with pytest.raises(ValueError, match=r"needs .*market1501, whose scales are"):
            open_data(market_config(tuples=tuples))


def test_real_market_has_its_official_sides(make_config, real_market_dir):
    data = open_data(
        make_config(protocol="market1501", dir=real_market_dir, val_ids=100)
    )
    counts = data.manifest["counts"]
    query, gallery = counts["query"], counts["gallery"]
    assert (query["identities"], query["images"]) == (750, 3_368)
    assert query["cameras"] == dict(
        zip("123456", (668, 530, 717, 248, 622, 583), strict=True)
    )
    assert (gallery["identities"], gallery["images"]) == (751, 13_115 + 2_798)
    held_out, val_query = set(data.plan.val_query.pid), counts["val_query"]
    assert len(held_out) == 100 == counts["val_gallery"]["identities"]
    assert counts["train"]["identities"] == 651
    together = (
        counts[side]["images"] for side in ("train", "val_query", "val_gallery")
    )
    assert sum(together) == 12_936 and val_query["scales"].keys() == {"1"}
    batch = next(eval_batches(data, "query"))
    assert batch["lr"].shape == (5, 32, 16, 3)


def test_real_market_has_camera_3_on_the_low_resolution_side(
    make_config, real_market_dir
):
    config = make_config(protocol="mlr_market1501", dir=real_market_dir)
    counts = open_data(config).manifest["counts"]
    assert counts["train"]["images"] == 12_936
    assert counts["query"]["cameras"] == {"3": 2_822}
    assert counts["query"]["scales"] == {"2": 941, "3": 941, "4": 940}
    gallery = dict(zip("12456", (2114, 1740, 890, 2380, 3169), strict=True))
    assert counts["gallery"]["cameras"] == gallery
    assert counts["gallery"]["images"] == 10_293


def test_real_caviar_has_its_near_camera_on_the_high_resolution_side(
    make_config, real_caviar_dir
):
    for split in (0, 9):
        config = make_config(protocol="caviar", dir=real_caviar_dir, split=split)
        data = open_data(config)
        counts = data.manifest["counts"]
        assert data.manifest["set_aside"] == 22
        identities = {side: counts[side]["identities"] for side in counts}
        assert identities == {"train": 25, "query": 25, "gallery": 25}
        images = {side: counts[side]["images"] for side in counts}
        assert images == {"train": 500, "query": 250, "gallery": 250}
        near = [f"{shot:03d}" for shot in range(1, 11)]
        assert sorted({name[4:7] for name in data.plan.gallery.name}) == near


def cross_batches(make_config, seed=0, start_step=0, num_steps=3, **changes):
    data = open_data(make_config(tuples="cross", **changes))
    steps = {"seed": seed, "start_step": start_step, "num_steps": num_steps}
    return data, list(train_batches(data, **steps))


def test_cross_tuples_have_the_promised_arrays(make_config):
    _, (batch,) = cross_batches(make_config, num_steps=1)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    picture, number, real = (
        ((12, 32, 16, 3), "float32"),
        ((12,), "int32"),
        ((12,), "float32"),
    )
    assert shapes == {
        **dict.fromkeys(("hr", "synthetic_lr", "lr"), picture),
        **dict.fromkeys(("label", "camid", "lr_camid", "index", "lr_index"), number),
        **dict.fromkeys(("scale", "synthetic_scale"), real),
        **dict.fromkeys(("resolution", "synthetic_resolution"), real),
        "has_lr": ((12,), "bool"),
    }


def test_a_cross_tuple_shows_one_identity_in_both_resolutions(make_config):
    data, drawn = cross_batches(make_config, num_steps=6)
    train = data.plan.train
    for batch in drawn:
        assert batch["has_lr"].all()
        assert not train.low[batch["index"]].any()
        assert train.low[batch["lr_index"]].all()
        for key in ("index", "lr_index"):
            np.testing.assert_array_equal(train.label[batch[key]], batch["label"])
        np.testing.assert_array_equal(batch["camid"], train.camid[batch["index"]])
        assert set(batch["lr_camid"]) == {0} and 0 not in batch["camid"]
        np.testing.assert_array_equal(batch["scale"], train.scale[batch["lr_index"]])
        assert set(batch["synthetic_scale"]) <= {2, 3, 4}
        for kind in ("", "synthetic_"):
            scale, resolution = batch[f"{kind}scale"], batch[f"{kind}resolution"]
            np.testing.assert_allclose(resolution, 1 / scale, rtol=1e-6)
        # Two LR images of each identity, three slots: both are shown.
        for rows in batch["lr_index"].reshape(4, 3):
            assert len(set(rows)) == 2


def test_the_pixels_of_a_cross_tuple_are_the_images_and_the_copy(make_config):
    data, (batch,) = cross_batches(make_config, num_steps=1, flip=0.0, pad=0)
    train = data.plan.train
    for row, (i, lr_i) in enumerate(
        zip(batch["index"], batch["lr_index"], strict=True)
    ):
        pixels = original(data, train, i)
        np.testing.assert_array_equal(
            batch["hr"][row], transforms.fit(pixels, (32, 16))
        )
        size = tuple(np.array((32, 16)) // int(batch["synthetic_scale"][row]))
        copy = transforms.degrade(pixels, size, "bicubic")
        np.testing.assert_array_equal(
            batch["synthetic_lr"][row], transforms.fit(copy, (32, 16))
        )
        stored = stored_lr(original(data, train, lr_i), train, lr_i)
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )


def test_the_copy_moves_with_its_original_and_the_other_image_does_not(make_config):
    plain, moved = (
        cross_batches(make_config, num_steps=4, **options)[1]
        for options in ({"flip": 0.0, "pad": 0}, {"flip": 0.5, "pad": 4})
    )
    differ = 0
    for before, after in zip(plain, moved, strict=True):
        for row in range(12):
            hr, copy, lr = (
                find_move(before[key][row], after[key][row])
                for key in ("hr", "synthetic_lr", "lr")
            )
            assert hr == copy
            differ += hr != lr
    assert differ > 40  # of 48; one in 162 is equal by chance


def test_resumed_cross_tuples_are_the_tail_of_the_full_run(make_config):
    _, full = cross_batches(make_config, seed=7, num_steps=5)
    _, tail = cross_batches(make_config, seed=7, start_step=3, num_steps=2)
    for one, other in zip(full[3:], tail, strict=True):
        assert_same(one, other)


def test_an_identity_without_a_low_resolution_image_is_masked(make_config, monkeypatch):
    def plan_without(*args):
        plan = make_plan(*args)
        kept = ~(plan.train.low & (plan.train.label < 4))
        train = protocols.Images(*(column[kept] for column in plan.train))
        return plan._replace(train=train)

    make_plan = protocols.make_plan
    monkeypatch.setattr(protocols, "make_plan", plan_without)
    _, drawn = cross_batches(make_config, num_steps=4)
    lacking = 0
    for batch in drawn:
        np.testing.assert_array_equal(batch["has_lr"], batch["label"] >= 4)
        for key in ("lr_index", "lr_camid"):
            np.testing.assert_array_equal(batch[key] < 0, ~batch["has_lr"])
        rows = ~batch["has_lr"]
        np.testing.assert_array_equal(batch["lr"][rows], batch["synthetic_lr"][rows])
        np.testing.assert_array_equal(
            batch["scale"][rows], batch["synthetic_scale"][rows]
        )
        lacking += rows.sum()
    assert lacking > 0


@pytest.fixture
def caviar_config(make_config, caviar_files, write_zip, tmp_path):
    """A function that gives the config of `open_data` on a generated CAVIAR4REID."""
    write_zip(tmp_path / "CAVIAR4REID.zip", caviar_files)
    name, protocol = "caviar", protocols.PROTOCOLS["caviar"]
    small = dataclasses.replace(protocol, num_train=4, num_test=2)

    def make(**changes):
        fields = {
            "protocol": name,
            "dir": str(tmp_path),
            "cache_dir": str(tmp_path / "cache"),
        }
        return make_config(**fields | changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocols.PROTOCOLS, name, small)
        yield make


def test_real_low_resolution_has_no_original(caviar_config):
    data = open_data(caviar_config())
    assert data.manifest["set_aside"] == 2
    train = data.plan.train
    for batch in batches(data, num_steps=6):
        np.testing.assert_array_equal(batch["has_hr"], batch["camid"] == 0)
        np.testing.assert_array_equal(batch["lr"], batch["hr"])
        np.testing.assert_array_equal(batch["scale"], train.scale[batch["index"]])
        assert (batch["scale"][~batch["has_hr"]] > 1).all()
    for side, camid in (("query", 1), ("gallery", 0)):
        for batch in eval_batches(data, side):
            assert set(batch["camid"]) == {camid}
            assert (batch["has_hr"] == (camid == 0)).all()


def test_synthetic_copies_are_made_of_what_has_an_original(caviar_config):
    data = open_data(caviar_config(tuples="synthetic", flip=0.0, pad=0))
    for batch in batches(data, num_steps=4):
        same = (batch["lr"] == batch["hr"]).all((1, 2, 3))
        np.testing.assert_array_equal(same, ~batch["has_hr"])
        assert set(batch["scale"][batch["has_hr"]]) <= {2, 3, 4}
    # At rate 1 a copy is its original; a real low-resolution image is as wide as it is.
    data = open_data(caviar_config(tuples="synthetic", copy_scales=(1, 2)))
    train = data.plan.train
    drawn = batches(data, num_steps=8)
    for batch in drawn:
        same = (batch["lr"] == batch["hr"]).all((1, 2, 3))
        np.testing.assert_array_equal(same, batch["scale"] * batch["has_hr"] != 2)
        width = train.width[batch["index"]] / np.where(same, 1, 2)
        np.testing.assert_allclose(
            batch["relative_width"], width / train.width.max(), rtol=1e-6
        )
    assert {*np.concatenate([b["scale"][b["has_hr"]] for b in drawn])} == {1, 2}
    (batch,) = batches(open_data(caviar_config(tuples="cross")), num_steps=1)
    assert batch["has_lr"].all() and set(batch["lr_camid"]) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copy_scales": (2,)}, r"'image' has no synthetic copies, found .*\(2,\)"),
        ({"copy_scales": (0.5,), "tuples": "cross"}, "whole numbers from 1 on"),
    ],
)
def test_rates_of_copies_that_cannot_be_are_refused(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        open_data(make_config(**changes))


def test_cross_tuples_need_both_resolutions(market_config):
    with pytest.raises(
        ValueError, match=r"'cross' needs .*one kind alone under vr_mar"
    ):
        open_data(market_config(protocol="vr_market1501", tuples="cross", num_ids=2))


def test_varying_widths_are_what_the_batch_shows(market_config):
    data = open_data(
        market_config(protocol="vr_market1501", num_ids=2, pad=0, flip=0.0)
    )
    query = data.plan.query
    batch = next(eval_batches(data, "query"))
    assert batch["has_hr"].all() and (batch["scale"] >= 2).all()
    widest = data.plan.train.width.max()
    np.testing.assert_allclose(
        batch["relative_width"],
        np.minimum(query.width[batch["index"]] / widest, 1),
        rtol=1e-6,
    )
    for row, i in enumerate(batch["index"]):
        assert query.height[i] == 2 * query.width[i]
        pixels = original(data, query, i)
        size = query.height[i], query.width[i]
        stored = transforms.degrade(pixels, size, "bicubic")
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )


def test_a_side_at_another_resolution(make_config):
    data = open_data(make_config())
    query = pipeline.at_resolution(data, query=Fraction(3, 8)).plan.query
    assert query.low.all()
    np.testing.assert_allclose(query.scale, 8 / 3)
    gallery = data.plan.gallery
    smaller = pipeline.at_resolution(data, gallery=Fraction(3, 8), query=Fraction(1))
    np.testing.assert_array_equal(smaller.plan.gallery.height, gallery.height * 3 // 8)
    batch = next(eval_batches(smaller, "gallery", copy_rate=2))
    for row, i in enumerate(batch["index"]):
        pixels = original(data, gallery, i)
        stored = transforms.degrade(
            pixels, tuple(np.array(pixels.shape[:2]) * 3 // 8), "bicubic"
        )
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )
        copy = transforms.degrade(
            stored, tuple(np.array(stored.shape[:2]) // 2), "bicubic"
        )
        np.testing.assert_array_equal(
            batch["synthetic_lr"][row], transforms.fit(copy, (32, 16))
        )
    for batch in eval_batches(smaller, "query"):  # at 1 the originals themselves
        np.testing.assert_array_equal(batch["lr"], batch["hr"])
    np.testing.assert_array_equal(
        data.plan.query.scale, open_data(make_config()).plan.query.scale
    )


def test_a_resolution_needs_originals_and_a_fraction(caviar_config, make_config):
    with pytest.raises(ValueError, match=r"original of every query .*found 20 image"):
        pipeline.at_resolution(open_data(caviar_config()), query=Fraction(1, 2))
    with pytest.raises(ValueError, match="above 0 and up to 1, found 3/2"):
        pipeline.at_resolution(open_data(make_config()), query=Fraction(3, 2))


def test_degradations_beyond_the_papers_reach_the_pixels(make_config):
    plain = open_data(make_config())
    for change in ({"blur": 2.0}, {"jpeg_quality": 10}, {"scales": (8,)}):
        data = open_data(make_config(**change))
        one, other = (next(eval_batches(d, "query")) for d in (plain, data))
        assert np.abs(one["lr"] - other["lr"]).max() > 0.05
        np.testing.assert_array_equal(one["hr"], other["hr"])
        assert data.manifest["sha256"] != plain.manifest["sha256"]


def test_decoding_and_resizing_are_pillows(market_config):
    """The whole path from the bytes, against Pillow alone."""
    data = open_data(market_config(protocol="mlr_market1501", num_ids=2))
    plan = data.plan
    for side in ("query", "gallery"):
        batch = next(eval_batches(data, side))
        for row, i in enumerate(batch["index"]):
            images = getattr(plan, side)
            stored = data.source[int(images.record[i])]["image"]
            picture = Image.open(io.BytesIO(stored)).convert("RGB")
            pixels = np.asarray(picture)
            if side == "query":
                size = images.width[i], images.height[i]
                pixels = np.clip(np.rint(pillow_resize(pixels, size)), 0, 255)
            expected = np.clip(pillow_resize(pixels, (16, 32)), 0, 255) / 255
            # 0.02 grey levels, or one where a pixel of the small image was rounded to
            # the other side.
            off = np.abs(batch["lr"][row] - expected) * 255
            assert np.quantile(off, 0.999) < 0.02 and off.max() < 1.5


def pillow_resize(pixels, size):
    """Pillow's float path, channel by channel."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(pixels[..., c].astype(np.float32)).resize(
                    tuple(int(x) for x in size), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ],
        -1,
    )


class TestStoredPairs:
    """Low-resolution pictures, and originals of some of them, in a folder."""

    @pytest.fixture
    def open_pairs(self, make_config, write_folder, tmp_path):
        """A function that opens pairs: camera 1 has the low-resolution pictures.

        Those of the last of the three training identities have no originals, and
        neither have those of the last tested one.
        """
        top = write_folder("pid,camid,path,split,scale,original")

        def opened(**changes):
            fields = {
                "protocol": "paired_folder",
                "dir": str(top),
                "cache_dir": str(tmp_path / "cache"),
                "num_ids": 3,
                "num_instances": 4,
            }
            return open_data(make_config(**fields | changes))

        return opened

    def pixels(self, data, images, row):
        """A picture as it is stored, and its original."""
        positions = [int(images.record[row]), int(images.original[row])]
        return records.read_pixels(data.source, positions, ["stored", "original"])

    def assert_shown(self, data, images, batch, kernel="bicubic"):
        for row, i in enumerate(batch["index"]):
            for key, pixels in zip(
                ("lr", "hr"), self.pixels(data, images, i), strict=True
            ):
                expected = transforms.fit(pixels, (32, 16), kernel)
                np.testing.assert_array_equal(batch[key][row], expected)

    @pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
    def test_both_are_shown_as_they_are_stored(self, open_pairs, kernel):
        data = open_pairs(flip=0.0, pad=0, resize=kernel)
        train = data.plan.train
        (batch,) = batches(data, num_steps=1)
        self.assert_shown(data, train, batch, kernel)
        paired = (train.low & train.has_hr)[batch["index"]]
        differ = (batch["lr"] != batch["hr"]).any((1, 2, 3))
        np.testing.assert_array_equal(differ, paired)
        assert paired.any() and not batch["has_hr"].all()
        np.testing.assert_array_equal(batch["scale"], train.scale[batch["index"]])
        np.testing.assert_allclose(batch["resolution"], 1 / batch["scale"], rtol=1e-6)
        assert set(batch["scale"]) == {1, 2, 3} and set(batch["relative_width"]) == {1}
        for side in ("query", "gallery"):
            for batch in eval_batches(data, side):
                self.assert_shown(data, getattr(data.plan, side), batch, kernel)

    def test_a_restored_picture_and_its_original_share_flip_and_crop(self, open_pairs):
        plain = batches(open_pairs(flip=0.0, pad=0))
        moved = batches(open_pairs(flip=0.5, pad=4))
        moves = set()
        for before, after in zip(plain, moved, strict=True):
            differ = (before["lr"] != before["hr"]).any((1, 2, 3))
            for row in np.flatnonzero(differ):
                hr = find_move(before["hr"][row], after["hr"][row])
                assert hr == find_move(before["lr"][row], after["lr"][row])
                moves.add(hr)
        assert len(moves) > 8

    def test_synthetic_copies_are_made_of_the_originals(self, open_pairs):
        data = open_pairs(tuples="synthetic", flip=0.0, pad=0)
        train = data.plan.train
        (batch,) = batches(data, seed=2, num_steps=1)
        rates = sampling.plan_scales(2, 0, 12, (2, 3, 4))
        np.testing.assert_array_equal(
            batch["scale"],
            np.where(batch["has_hr"], rates, train.scale[batch["index"]]),
        )
        for row, i in enumerate(batch["index"]):
            lr, original = self.pixels(data, train, i)
            width = 12
            if batch["has_hr"][row]:
                size = tuple(np.array(original.shape[:2]) // rates[row])
                lr = transforms.degrade(original, size, "bicubic")
                width = original.shape[1] / rates[row]
            expected = transforms.fit(lr, (32, 16))
            np.testing.assert_array_equal(batch["lr"][row], expected)
            assert batch["relative_width"][row] == np.float32(width / 12)
        assert {12, 18} == {
            self.pixels(data, train, i)[1].shape[1] for i in batch["index"]
        }

    def test_cross_tuples_show_the_stored_picture(self, open_pairs):
        data = open_pairs(tuples="cross", flip=0.0, pad=0, resize="bilinear")
        train = data.plan.train
        (batch,) = batches(data, num_steps=1)
        assert set(batch["lr_camid"]) == {1} and set(batch["camid"]) == {2}
        np.testing.assert_array_equal(batch["scale"], train.scale[batch["lr_index"]])
        for row, i in enumerate(batch["lr_index"]):
            stored, _ = self.pixels(data, train, i)
            expected = transforms.fit(stored, (32, 16), "bilinear")
            np.testing.assert_array_equal(batch["lr"][row], expected)
        for row, i in enumerate(batch["index"]):
            _, original = self.pixels(data, train, i)
            size = np.array(original.shape[:2]) // int(batch["synthetic_scale"][row])
            copy = transforms.degrade(original, tuple(size), "bicubic")
            expected = transforms.fit(copy, (32, 16))
            np.testing.assert_array_equal(batch["synthetic_lr"][row], expected)

    def test_they_have_no_other_resolution(self, open_pairs):
        data = open_pairs()
        with pytest.raises(
            ValueError, match=r"every query .*found 6 images that are s"
        ):
            pipeline.at_resolution(data, query=Fraction(1, 2))
        smaller = pipeline.at_resolution(data, gallery=Fraction(1, 2)).plan.gallery
        assert set(smaller.width) == {6}

    def test_an_original_that_is_damaged_later_is_named_by_its_picture(
        self, open_pairs
    ):
        data = open_pairs()
        query = data.plan.query
        corrupt = data._replace(source=CorruptSource(data.source, query.original[0]))
        with pytest.raises(
            ValueError, match=rf"^{query.name[0]}'s original: not a readable image"
        ):
            list(eval_batches(corrupt, "query"))
