import importlib

import numpy as np
import pytest

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
    return records.read_pixels(data.source, images.record[row], images.name[row])


def test_training_batch_has_the_promised_arrays(data):
    (batch,) = batches(data, num_steps=1)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "lr": ((12, 32, 16, 3), "float32"),
        "hr": ((12, 32, 16, 3), "float32"),
        "has_hr": ((12,), "bool"),
        "label": ((12,), "int32"),
        "camid": ((12,), "int32"),
        "scale": ((12,), "int32"),
        "resolution": ((12,), "float32"),
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
        stored = transforms.degrade(pixels, train.scale[index], "bicubic")
        assert stored.shape[:2] == (train.height[index], train.width[index])
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
    """The flip and offset that best explain `moved`, which must do so exactly."""
    height, width, _ = image.shape
    for step in (1, -1):
        padded = np.pad(image[:, ::step], ((pad, pad), (pad, pad), (0, 0)))
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                if (padded[top : top + height, left : left + width] == moved).all():
                    return step, top, left
    raise AssertionError("not a flip and crop of the image")


def test_synthetic_lr_gives_every_pair_a_copy_at_a_rate_of_its_own(make_config):
    data = open_data(make_config(synthetic_lr="all", flip=0.0, pad=0))
    drawn = batches(data, seed=5, num_steps=3)
    for step, batch in enumerate(drawn):
        expected = sampling.plan_scales(5, step, 12, (2, 3, 4))
        np.testing.assert_array_equal(batch["scale"], expected)
        np.testing.assert_allclose(batch["resolution"], 1 / expected, rtol=1e-6)
    row, index = 7, drawn[0]["index"][7]
    pixels = original(data, data.plan.train, index)
    lr = transforms.degrade(pixels, drawn[0]["scale"][row], "bicubic")
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
        stored = transforms.degrade(pixels, query.scale[index], "bicubic")
        np.testing.assert_array_equal(
            batch["lr"][row], transforms.fit(stored, (32, 16))
        )
        np.testing.assert_array_equal(
            batch["hr"][row], transforms.fit(pixels, (32, 16))
        )


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


class CorruptSource:
    """Records of which one is cut off."""

    def __init__(self, source, position):
        self.source, self.position = source, position

    def __getitem__(self, position):
        row = self.source[position]
        return row | {"image": row["image"][:99]} if position == self.position else row


@pytest.mark.parametrize("side", ["train", "query", "gallery"])
def test_corrupt_image_is_named_when_it_is_met(data, side):
    images = getattr(data.plan, side)
    corrupt = data._replace(source=CorruptSource(data.source, images.record[-1]))
    with pytest.raises(ValueError, match=rf"^{images.name[-1]}: not a readable image"):
        if side == "train":
            batches(corrupt, num_steps=20)
        else:
            list(eval_batches(corrupt, side))


def test_leaking_plan_is_refused_on_opening(make_config, monkeypatch):
    def wrong_plan(protocol, index):
        plan = make_plan(protocol, index)
        return plan._replace(gallery=plan.train)

    make_plan = protocols.make_plan
    monkeypatch.setattr(protocols, "make_plan", wrong_plan)
    with pytest.raises(ValueError, match="mlr_pedestrians_tiny leaks"):
        open_data(make_config())


def test_unknown_names_are_refused_with_the_known_ones(make_config):
    with pytest.raises(ValueError, match=r"'mlr_nowhere': choose one of .*mlr_viper"):
        open_data(make_config(protocol="mlr_nowhere"))
    with pytest.raises(ValueError, match=r"'stored' or 'all', found 'some'"):
        open_data(make_config(synthetic_lr="some"))
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
    assert data.manifest["protocol"]["dataset"] == "market1501/1.0.0"
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
    with pytest.raises(ValueError, match=r"'all' needs .*market1501, whose scales are"):
        open_data(market_config(synthetic_lr="all"))


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
