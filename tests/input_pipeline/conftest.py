"""Data sets that the tests share: generated ones, and real ones where there are any."""

import io
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Where the session's data sets are built."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data_dir():
    """The folder with the archives of the data sets' makers; skips where absent."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CROSSRES_DATA_DIR", beside))
    if not (folder / "VIPeR.v1.0.zip").exists():
        pytest.skip("no VIPeR.v1.0.zip in $CROSSRES_DATA_DIR or ../shared/data")
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
            "num_ids": 4,
            "num_instances": 3,
            "flip": 0.5,
            "pad": 4,
            "synthetic_lr": "stored",
            "eval_batch_size": 5,
        }
        return SimpleNamespace(**fields | changes)

    return make
