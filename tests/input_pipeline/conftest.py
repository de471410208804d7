"""Data sets that the tests share: generated ones, and real ones where there are any."""

import io
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import caviar, market1501


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Where the session's data sets are built."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data_dir():
    """The folder with the real VIPeR; skips where it is absent."""
    return _folder_with("VIPeR.v1.0.zip")


@pytest.fixture(scope="session")
def real_market_dir():
    """The folder with the real Market-1501; skips where it is absent."""
    return _folder_with("Market-1501-v15.09.15.zip")


@pytest.fixture(scope="session")
def real_caviar_dir():
    """The folder with the real CAVIAR4REID; skips where it is absent."""
    return _folder_with("CAVIAR4REID.zip")


def _folder_with(archive):
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CROSSRES_DATA_DIR", beside))
    if not (folder / archive).exists():
        pytest.skip(f"no {archive} in $CROSSRES_DATA_DIR or ../shared/data")
    return str(folder)


@pytest.fixture(scope="session")
def viper_files():
    """{path: bytes} of a generated VIPeR: plain BMPs, each of another colour."""
    files = {}
    for camera in range(2):
        for pid in range(632):
            pixels = np.empty((128, 48, 3), np.uint8)
            pixels[:] = pid % 256, pid // 256, 100 * camera
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, format="bmp")
            path = f"VIPeR/cam_{'ab'[camera]}/{pid:03d}_{45 * camera}.bmp"
            files[path] = encoded.getvalue()
    return files


@pytest.fixture
def market_files(monkeypatch):
    """{path: bytes} of a generated Market-1501, which is complete for the test."""
    cameras = {
        "bounding_box_train": {2: "112", 7: "112", 10: "223", 11: "334"},
        "query": {1: "12", 3: "12", 5: "12"},
        "bounding_box_test": {1: "123", 3: "123", 5: "123", 0: "11", -1: "14"},
    }
    counts = {
        "bounding_box_train": market1501.Counts((4, 4, 3, 1, 0, 0), 4),
        "query": market1501.Counts((3, 3, 0, 0, 0, 0), 3),
        "bounding_box_test": market1501.Counts((3, 3, 3, 0, 0, 0), 3, 2, 2),
    }
    monkeypatch.setattr(market1501, "COMPLETE", counts)
    files, top = {}, "Market-1501-v15.09.15"
    for folder, of_identity in cameras.items():
        for pid, camids in of_identity.items():
            for box, camid in enumerate(camids):
                pixels = np.random.default_rng(len(files)).integers(
                    0, 256, (128, 64, 3)
                )
                encoded = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(encoded, format="jpeg")
                number = "-1" if pid < 0 else f"{pid:04d}"
                path = f"{top}/{folder}/{number}_c{camid}s1_000451_{box:02d}.jpg"
                files[path] = encoded.getvalue()
    # As in the official archive: some names end in .jpg twice.
    twice = f"{top}/bounding_box_test/0000_c1s1_000451_01.jpg"
    files[f"{twice}.jpg"] = files.pop(twice)
    others = ("readme.txt", "query/Thumbs.db", "gt_bbox/0001_c1s1_001051_00.jpg")
    return files | {f"{top}/{other}": b"x" for other in others}


@pytest.fixture
def caviar_files(monkeypatch):
    """{path: bytes} of a generated CAVIAR4REID, which is complete for the test.

    Of eight identities the last two are seen by camera 0 alone.
    """
    monkeypatch.setattr(caviar, "COMPLETE", {(10, 10): 6, (10, 0): 2})
    files, rng = {}, np.random.default_rng(0)
    for pid in range(1, 9):
        for shot in range(1, 21 if pid <= 6 else 11):
            height, width = (48 + shot, 24) if shot <= 10 else (8 + shot, 12)
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, format="jpeg")
            files[f"CAVIAR4REID/{pid:04d}{shot:03d}.jpg"] = encoded.getvalue()
    return files


@pytest.fixture
def write_zip():
    """A function that writes {path: bytes} to an archive."""

    def write(path, files):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
            for name, content in files.items():
                out.writestr(name, content)

    return write


@pytest.fixture
def make_config(cache_dir):
    """A function that gives the config of `open_data` on the tiny generated set."""

    def make(**changes):
        fields = {
            "protocol": "mlr_pedestrians_tiny",
            "dir": "",
            "cache_dir": cache_dir,
            "seed": 0,
            "split": 0,
            "kernel": "",
            "val_ids": 0,
            "image_size": (32, 16),
            "resize": "bicubic",
            "num_ids": 4,
            "num_instances": 3,
            "flip": 0.5,
            "pad": 4,
            "erase": 0.0,
            "synthetic_lr": "stored",
            "eval_batch_size": 5,
        }
        return SimpleNamespace(**fields | changes)

    return make
