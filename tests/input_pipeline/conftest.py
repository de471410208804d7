"""Data sets that the tests share: generated ones, and real ones where there are any."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import archives, dukemtmc, market1501, msmt17


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


@pytest.fixture
def duke_files(monkeypatch):
    """{path: bytes} of a generated DukeMTMC-reID, which is complete for the test."""
    cameras = {
        "bounding_box_train": {1: "12", 7: "128"},
        "query": {2: "18", 5: "3"},
        "bounding_box_test": {2: "1188", 5: "34", 7101: "66"},  # one distractor
    }
    counts = {
        "bounding_box_train": archives.Counts(5, 2),
        "query": archives.Counts(3, 2),
        "bounding_box_test": archives.Counts(8, 3),
    }
    monkeypatch.setattr(dukemtmc, "COMPLETE", counts)
    return {
        f"DukeMTMC-reID/{folder}/{pid:04d}_c{camid}_f{44158 + frame:07d}.jpg": _picture(
            20 + pid % 7, 10 + frame
        )
        for folder, of_identity in cameras.items()
        for pid, camids in of_identity.items()
        for frame, camid in enumerate(camids)
    }


@pytest.fixture
def make_msmt17(monkeypatch):
    """A function that gives {path: bytes} of a generated MSMT17 ("v1" or "v2")."""
    cameras = {  # list → identity → number of the picture and its camera
        "list_train.txt": {0: ["000_01", "001_15"], 1040: ["000_09"]},
        "list_val.txt": {0: ["002_07"]},
        "list_query.txt": {0: ["000_01"], 3059: ["000_10"]},
        "list_gallery.txt": {0: ["001_02", "002_02"], 3059: ["001_03"]},
    }
    counts = {
        "list_train.txt": archives.Counts(3, 2),
        "list_val.txt": archives.Counts(1, 1),
        "list_query.txt": archives.Counts(2, 2),
        "list_gallery.txt": archives.Counts(3, 2),
    }
    monkeypatch.setattr(msmt17, "COMPLETE", counts)

    def make(version):
        top, files = f"MSMT17_{version.upper()}", {}
        folders = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
        for name, of_identity in cameras.items():
            folder = folders[version][name in ("list_query.txt", "list_gallery.txt")]
            lines = [
                f"{pid:04d}/{pid:04d}_{number}_0303morning_0008_0.jpg {pid}\n"
                for pid, numbers in of_identity.items()
                for number in numbers
            ]
            files[f"{top}/{name}"] = "".join(lines).encode()
            for line in lines:
                path = f"{top}/{folder}/{line.split()[0]}"
                files[path] = _picture(20 + len(files), 10)
        return files

    return make


def _picture(height, width):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3))
    encoded = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(encoded, format="jpeg")
    return encoded.getvalue()


@pytest.fixture
def write_files(write_zip):
    """A function that writes {path: bytes} as a "folder", "zip" or "tar.gz" archive."""

    def write(form, parent, files):
        parent.mkdir(exist_ok=True)
        archive = parent / f"{next(iter(files)).partition('/')[0]}.{form}"
        if form == "zip":
            write_zip(archive, files)
        elif form == "tar.gz":
            with tarfile.open(archive, "w:gz") as out:
                for path, content in files.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(content)
                    out.addfile(member, io.BytesIO(content))
        else:
            for path, content in files.items():
                (parent / path).parent.mkdir(parents=True, exist_ok=True)
                (parent / path).write_bytes(content)

    return write
