"""The folder of a data set's restored images, and what a run finds in it."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.pipeline import load_images, open_data
from input_pipeline.restored import (
    check_restorable,
    check_restored,
    write_restored,
)


def _negative(images, *, resolution):
    """Not the best of restorers, but one whose work is easily told."""
    assert images.shape[:1] == resolution.shape
    return 1 - images


@pytest.fixture
def data(make_config):
    return open_data(make_config(image_size=(64, 32)))


@pytest.fixture
def folder(data, tmp_path):
    folder, told = tmp_path / "restored", []
    (tmp_path / "restored.unfinished" / "train").mkdir(parents=True)  # it was killed
    write_restored(data, _negative, folder, progress=told.append)
    assert told == [*range(1, len(told) + 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["restored"]
    return folder


@pytest.fixture
def reopened(folder, make_config):
    of_folder = make_config(
        protocol="paired_folder", dir=str(folder), image_size=(64, 32)
    )
    return open_data(of_folder)


def test_the_folder_has_the_sides_of_the_protocol(data, reopened):
    for side in ("train", "query", "gallery"):
        before, after = getattr(data.plan, side), getattr(reopened.plan, side)
        for column in ("pid", "camid"):
            expected, found = getattr(before, column), getattr(after, column)
            np.testing.assert_array_equal(np.sort(expected), np.sort(found))
    plan = reopened.plan
    assert plan.num_classes == data.plan.num_classes
    assert plan.train.low.all() and plan.query.low.all() and plan.train.has_hr.all()
    assert not plan.gallery.low.any()


def _by_name(data, side):
    """name → (lr, hr, scale) of each image of a side."""
    images = getattr(data.plan, side)
    batch = load_images(data, side, np.arange(len(images.pid)))
    names = [name.split("/", 1)[1] if "/c" in name else name for name in images.name]
    columns = (batch[key] for key in ("lr", "hr", "scale"))
    return dict(zip(names, zip(*columns, strict=True), strict=True))


def test_low_resolution_images_are_restored_and_others_are_as_they_were(data, reopened):
    half_a_level = 0.5 / 255 + 1e-6
    found, stored = _by_name(reopened, "query"), _by_name(data, "query")
    assert found.keys() == stored.keys()
    for name, (lr, _, scale) in found.items():
        np.testing.assert_allclose(lr, 1 - stored[name][0], atol=half_a_level)
        assert scale == stored[name][2]
    found, stored = _by_name(reopened, "gallery"), _by_name(data, "gallery")
    for name, (lr, _, _) in found.items():
        np.testing.assert_array_equal(lr, stored[name][0])


def test_every_training_image_is_a_restored_copy_beside_its_original(data, reopened):
    found, stored = _by_name(reopened, "train"), _by_name(data, "train")
    low = dict(zip(stored, data.plan.train.low, strict=True))
    drawn = set()
    for name, (lr, hr, scale) in found.items():
        np.testing.assert_array_equal(hr, stored[name][1])
        if low[name]:  # as the protocol stores it
            assert scale == stored[name][2]
            expected = stored[name][0]
        else:
            drawn.add(int(scale))
            row = list(stored).index(name)
            (expected,) = load_images(data, "train", [row], int(scale))["synthetic_lr"]
        np.testing.assert_allclose(lr, 1 - expected, atol=0.5 / 255 + 1e-6)
    assert drawn == {2, 3, 4}


def test_the_manifest_tells_the_source_and_covers_every_byte(data, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == data.manifest["sha256"]
    assert check_restored(folder) == manifest["sha256"]
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for path in {row["path"] for row in rows} | {rows[0]["original"]}:
        Image.open(folder / path).verify()
    for path in (rows[0]["path"], rows[0]["original"], "images.csv"):
        before = (folder / path).read_bytes()
        (folder / path).write_bytes(before + b"\n")
        with pytest.raises(ValueError, match=r"damaged: expected the SHA-256 .* found"):
            check_restored(folder)
        (folder / path).write_bytes(before)


def test_no_two_pictures_get_one_name(make_config, write_folder, tmp_path):
    source = write_folder()
    lines = (source / "images.csv").read_text().splitlines()
    for pid in range(1, 7):
        path = f"pictures/{pid}_c1_0.png"  # beside the same name with .jpg
        Image.effect_noise((12, 30), 10 * pid).convert("RGB").save(source / path)
        lines.append(f"{pid},1,{path}")
    (source / "images.csv").write_text("\n".join(lines))
    config = make_config(
        protocol="mlr_folder", dir=str(source), lr_cameras=(1,), num_ids=3
    )
    folder = tmp_path / "restored"
    write_restored(open_data(config), _negative, folder, progress=lambda done: None)
    with (folder / "images.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(paths) == len({*paths}) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_ids": 2}, "no held-out identities, found 2"),
        ({"scales": (1,)}, "low-resolution queries .* found 0 and 0"),
    ],
)
def test_what_cannot_be_restored_is_refused(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        check_restorable(open_data(make_config(**changes)))


def test_galleries_of_low_resolution_or_with_distractors_are_refused(data):
    plan = data.plan
    low = plan.gallery._replace(low=np.full_like(plan.gallery.low, True))
    with pytest.raises(ValueError, match="a gallery of none, found 8 and 16"):
        check_restorable(data._replace(plan=plan._replace(gallery=low)))
    protocol = dataclasses.replace(plan.protocol, evaluation="multi_shot", num_draws=0)
    with pytest.raises(ValueError, match="a protocol with single-shot scores"):
        check_restorable(data._replace(plan=plan._replace(protocol=protocol)))
