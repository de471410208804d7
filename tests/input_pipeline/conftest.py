"""Data sets that the tests share: generated ones, and real ones where there are any."""

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from input_pipeline.datasets import (
    archives,
    caviar,
    cuhk03,
    dukemtmc,
    market1501,
    msmt17,
)


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
def write_cuhk03(monkeypatch):
    """A function that writes the MATLAB files of a generated CUHK03 to a folder.

    It is complete for the test. Of its 11 identities (0 to 10) s, s + 3 and s + 7,
    modulo 11, are in test set s. In the split of Zhong et al. the odd ones are tested;
    their pictures 01 and 06 are the queries. Returns {name of a record: pixels}.
    """
    counts = {
        "labelled": cuhk03.Counts(_CUHK03_COUNTS, (38, 30, 19, 10, 10)),
        "detected": cuhk03.Counts(_CUHK03_COUNTS, (39, 29, 20, 10, 10)),
    }
    monkeypatch.setattr(cuhk03, "COMPLETE", counts)
    monkeypatch.setattr(cuhk03, "NUM_TESTED", 3)

    def write(folder):
        pictures, rng = {}, np.random.default_rng(0)
        for boxes in counts:
            for pair, number in _CUHK03_IDENTITIES:
                for place in range(1, 11):
                    shape = 20 + place, 10 + number, 3
                    name = _cuhk03_name(boxes, pair, number, place)
                    pictures[name] = rng.integers(0, 256, shape, np.uint8)
        for name in ("1_002_1_05", "1_002_2_10", "3_002_1_01"):
            del pictures[f"labelled/{name}.png"]
        for name in ("1_002_1_05", "2_001_2_06"):
            del pictures[f"detected/{name}.png"]
        _write_cuhk03_mat(folder / "cuhk-03.mat", pictures)
        for boxes, key in _CUHK03_KEYS.items():
            names = [name.split("/")[1] for name in pictures if boxes in name]
            path = folder / f"cuhk03_new_protocol_config_{key}.mat"
            _write_cuhk03_split(path, names)
        return pictures

    return write


_CUHK03_KEYS = {"labelled": "labeled", "detected": "detected"}
_CUHK03_COUNTS = (4, 3, 2, 1, 1)  # identities, by pair of cameras
_CUHK03_IDENTITIES = [
    (pair, number)
    for pair, count in enumerate(_CUHK03_COUNTS, 1)
    for number in range(1, count + 1)
]


def _cuhk03_name(boxes, pair, number, place):
    view = 1 if place <= 5 else 2
    return f"{boxes}/{pair}_{number:03d}_{view}_{place:02d}.png"


def _write_cuhk03_mat(path, pictures):
    """As MATLAB does: an array's axes in reverse, a cell array as references."""

    def store(value, **options):
        name = f"#refs#/{len(mat['#refs#'])}"
        return mat.create_dataset(name, data=value, **options).ref

    def store_picture(name):
        if name in pictures:
            return store(pictures[name].T, compression="gzip")
        empty = store(np.zeros(2, np.uint64))  # its shape
        mat[empty].attrs["MATLAB_empty"] = np.uint8(1)
        return empty

    def cells(references):
        return np.array(references, h5py.ref_dtype)

    def store_pair(boxes, pair, count):
        names = [
            [_cuhk03_name(boxes, pair, number, place) for number in range(1, count + 1)]
            for place in range(1, 11)
        ]
        return store(cells([[store_picture(name) for name in row] for row in names]))

    with h5py.File(path, "w") as mat:
        mat.create_group("#refs#")
        for boxes, key in _CUHK03_KEYS.items():
            pairs = enumerate(_CUHK03_COUNTS, 1)
            mat[key] = cells([[store_pair(boxes, *pair) for pair in pairs]])
        test_sets = [
            [_CUHK03_IDENTITIES[(s + step) % 11] for step in (0, 3, 7)]
            for s in range(20)
        ]
        mat["testsets"] = cells([[store(np.array(x, float).T) for x in test_sets]])


def _write_cuhk03_split(path, names):
    def role(name):
        pair, number, _, place = re.findall(r"\d+", name)
        if _CUHK03_IDENTITIES.index((int(pair), int(number))) % 2 == 0:
            return "train"
        return "query" if place in ("01", "06") else "gallery"

    split = {"filelist": np.array([[name] for name in names], object)}
    for wanted in ("train", "query", "gallery"):
        chosen = [i for i, name in enumerate(names, 1) if role(name) == wanted]
        split[f"{wanted}_idx"] = np.array(chosen, np.uint16)[:, None]
    scipy.io.savemat(path, split)


@pytest.fixture
def write_folder(tmp_path):
    """A function that writes own pictures and their table, and returns the folder.

    Six identities, of each two pictures in either camera; `columns` of the table. Those
    of camera 1 are low-resolution in a column scale, and those of four identities have
    originals in a column of that name.
    """

    def write(columns="pid,camid,path", rows=None):
        top = tmp_path / "own"
        for name in ("pictures", "originals"):
            (top / name).mkdir(parents=True, exist_ok=True)
        lines = [columns]
        for pid in range(1, 7):
            for camid in (1, 2):
                for shot in (0, 1):
                    path = f"pictures/{pid}_c{camid}_{shot}.jpg"
                    (top / path).write_bytes(
                        _picture(20 + 4 * pid + 2 * camid + shot, 12)
                    )
                    original = f"originals/{pid}_{shot}.jpg"
                    paired = "original" in columns and camid == 1 and pid % 3
                    if paired:
                        (top / original).write_bytes(_picture(60 + 2 * pid + shot, 18))
                    row = {
                        "pid": pid,
                        "camid": camid,
                        "path": path,
                        "split": "train" if pid <= 3 else "test",
                        "role": "" if pid <= 3 else ("query", "gallery")[shot],
                        "scale": 2 + shot if camid == 1 else "",
                        "original": original if paired else "",
                    }
                    values = (str(row[name]) for name in columns.split(","))
                    lines.append(",".join(values))
        (top / "images.csv").write_text("\n".join(rows or lines) + "\n")
        return top

    return write


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
            "table": "images.csv",
            "pattern": "",
            "no_camera": False,
            "cache_dir": cache_dir,
            "seed": 0,
            "split": 0,
            "val_ids": 0,
            "lr_cameras": (),
            "rate": "",
            "scales": (),
            "kernel": "",
            "rounding": "",
            "blur": 0.0,
            "jpeg_quality": -1,
            "evaluation": "",
            "num_draws": 0,
            "image_size": (32, 16),
            "resize": "bicubic",
            "num_ids": 4,
            "num_instances": 3,
            "flip": 0.5,
            "pad": 4,
            "erase": 0.0,
            "tuples": "image",
            "copy_scales": (),
            "max_quarantined": 10,
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
    paths = [
        f"DukeMTMC-reID/{folder}/{pid:04d}_c{camid}_f{44158 + frame:07d}.jpg"
        for folder, of_identity in cameras.items()
        for pid, camids in of_identity.items()
        for frame, camid in enumerate(camids)
    ]
    return {path: _picture(20 + i, 10 + i % 3) for i, path in enumerate(paths)}


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
                files[path] = _picture(20 + len(files), 40)
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
