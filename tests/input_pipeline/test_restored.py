"""The folder of a data set's restored images, and what a run finds in it."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.pipeline import load_images, open_data
from input_pipeline.restored import check_restorable, write_restored


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
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    digest = hashlib.sha256()
    for row in rows:
        for path in filter(None, (row["path"], row["original"])):
            digest.update(path.encode() + (folder / path).read_bytes())
            Image.open(folder / path).verify()
    digest.update((folder / "images.csv").read_bytes())
    assert manifest["sha256"] == digest.hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_ids": 2}, "no held-out identities, found 2"),
        ({"scales": (1,)}, "low-resolution queries, found none"),
    ],
)
def test_what_cannot_be_restored_is_refused(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        check_restorable(open_data(make_config(**changes)))
