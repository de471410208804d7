import errno
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io

from input_pipeline.datasets import records
from input_pipeline.datasets.cuhk03 import Cuhk03

ROLES = "cuhk03_new_protocol_config_labeled.mat"


def open_cuhk03(config, manual_dir, cache_dir):
    builder = Cuhk03(config=config, data_dir=cache_dir)
    return records.open_records(builder, manual_dir=str(manual_dir))


def zip_mat(folder):
    """Moves cuhk-03.mat into the archive."""
    mat, archive = folder / "cuhk-03.mat", folder / "cuhk03_release.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.write(mat, "cuhk03_release/cuhk-03.mat")
    mat.unlink()
    return archive


def rows(index):
    """{name: (pid, camid, role)}."""
    columns = index.name, index.pid, index.camid, index.role
    return {name: row for name, *row in zip(*columns, strict=True)}


@pytest.mark.parametrize("config", ["labelled", "detected", "merged"])
def test_records_are_the_pictures_that_were_written(tmp_path, write_cuhk03, config):
    pictures = write_cuhk03(tmp_path)
    index, source = open_cuhk03(config, tmp_path, tmp_path / "cache")
    assert index.name.tolist() == [
        name for name in pictures if config in ("merged", name.split("/")[0])
    ]
    pixels = records.read_pixels(source, list(range(len(source))), index.name)
    for name, found in zip(index.name, pixels, strict=True):
        np.testing.assert_array_equal(found, pictures[name])
    assert source[0]["image"].startswith(b"\x89PNG")
    assert (index.height[0], index.width[0]) == (21, 11)


def test_names_tell_identity_and_camera(tmp_path, write_cuhk03):
    write_cuhk03(tmp_path)
    described = rows(open_cuhk03("merged", tmp_path, tmp_path / "cache").index)
    assert len(described) == 107 + 108

    def identity_and_camera(name):
        return described[name][:2]

    assert identity_and_camera("labelled/1_001_1_01.png") == [0, 0]
    assert identity_and_camera("labelled/1_001_1_05.png") == [0, 0]
    assert identity_and_camera("labelled/1_001_2_06.png") == [0, 1]
    assert identity_and_camera("labelled/1_004_2_10.png") == [3, 1]
    assert identity_and_camera("labelled/2_001_1_01.png") == [4, 2]
    assert identity_and_camera("detected/2_003_2_07.png") == [6, 3]
    assert identity_and_camera("detected/3_002_1_01.png") == [8, 4]
    assert identity_and_camera("detected/4_001_1_03.png") == [9, 6]
    assert identity_and_camera("detected/5_001_2_10.png") == [10, 9]
    assert "detected/1_002_2_10.png" in described
    assert "labelled/1_002_2_10.png" not in described  # an empty cell


def test_classic_role_has_a_word_for_each_of_the_20_test_sets(tmp_path, write_cuhk03):
    write_cuhk03(tmp_path)
    index, _ = open_cuhk03("merged", tmp_path, tmp_path / "cache")
    for pid, role in zip(index.pid, index.role, strict=True):
        tested = [(pid - s) % 11 in (0, 3, 7) for s in range(20)]
        assert role == " ".join("test" if each else "train" for each in tested)


@pytest.mark.parametrize("boxes", ["labelled", "detected"])
def test_roles_of_the_other_split_are_those_of_its_file(tmp_path, write_cuhk03, boxes):
    pictures = write_cuhk03(tmp_path)
    index, _ = open_cuhk03(f"{boxes}_767", tmp_path, tmp_path / "cache")
    assert index.name.tolist() == [x for x in pictures if x.startswith(boxes)]
    described = rows(index)
    assert described[f"{boxes}/1_001_1_01.png"] == [0, 0, "train"]
    assert described[f"{boxes}/1_002_1_01.png"] == [1, 0, "query"]
    assert described[f"{boxes}/1_002_1_02.png"] == [1, 0, "gallery"]
    assert described[f"{boxes}/2_002_2_06.png"] == [5, 3, "query"]
    assert described[f"{boxes}/4_001_2_10.png"] == [9, 7, "gallery"]
    assert set(index.role[index.pid % 2 == 0]) == {"train"}
    assert set(index.role[index.pid % 2 == 1]) == {"query", "gallery"}


def test_archive_folder_and_bare_file_give_the_same_records(tmp_path, write_cuhk03):
    opened = {}
    for place in ("bare", "folder", "zip"):
        folder = tmp_path / place
        (folder / "cuhk03_release").mkdir(parents=True)
        write_cuhk03(folder)
        if place == "folder":
            (folder / "cuhk-03.mat").rename(folder / "cuhk03_release" / "cuhk-03.mat")
        elif place == "zip":
            zip_mat(folder)
        opened[place] = open_cuhk03("labelled", folder, tmp_path / f"cache_{place}")
    bare = opened.pop("bare")
    for index, source in opened.values():
        for one, other in zip(bare.index, index, strict=True):
            np.testing.assert_array_equal(one, other)
        assert source[5]["image"] == bare.source[5]["image"]
    assert not list(tmp_path.glob("cache_zip/**/cuhk-03.mat"))


def refused(config, folder, message):
    """The build fails with `message` and what to do, and leaves nothing behind."""
    with pytest.raises(ValueError, match=rf"{message}.* Put cuhk03_release\.zip, the"):
        open_cuhk03(config, folder, folder / "cache")
    left = (folder / "cache" / "cuhk03" / config).iterdir()
    assert [path.name for path in left] == ["lock"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "one_missing",
            r"cuhk-03\.mat is not the complete CUHK03: in detected boxes expected "
            r"108 pictures \(39, 29, 20, 10, 10\) of 11 identities \(4, 3, 2, 1, 1\), "
            r"found 107 pictures \(39, 28, 20, 10, 10\) of 11 identities",
        ),
        ("boxes_confused", "in labelled boxes expected 107 .*, found 108 pictures"),
        (
            "identity_missing",
            r"of 11 identities.*, found 97 .* of 10 .*\(4, 3, 2, 1, 0",
        ),
        (
            "tested_twice",
            r"20 test sets of 3 id.*, found 20 of \[3, 3, 3, 3, 3, 3, 1, ",
        ),
        ("tested_unknown", r"20 test sets of 3 id.*, found 20 of \[0, 3, 3"),
        ("set_missing", r"20 test sets of 3 id.*, found 19 of \[3, 3"),
        (
            "no_sets",
            r"cuhk-03\.mat is damaged .*'testsets' doesn't exist.* the complete",
        ),
        ("no_boxes", r"cuhk-03\.mat is damaged .*'detected' doesn't exist"),
    ],
)
def test_what_is_not_complete_is_refused_with_the_reason(
    tmp_path, write_cuhk03, damage, message
):
    write_cuhk03(tmp_path)
    with h5py.File(tmp_path / "cuhk-03.mat", "r+") as mat:
        labelled, detected, test_sets = mat["labeled"], mat["detected"], mat["testsets"]
        if damage == "one_missing":
            cells = mat[detected[0, 1]]
            cells[3, 1] = mat.create_dataset("x", data=np.zeros(2, np.uint64)).ref
        elif damage == "boxes_confused":
            labelled[:] = detected[:]
        elif damage == "identity_missing":
            cells = mat[labelled[0, 4]]
            cells[:] = mat.create_dataset("x", data=np.zeros(2, np.uint64)).ref
        elif damage == "tested_twice":
            mat[test_sets[0, 6]][:] = 2
        elif damage == "tested_unknown":
            mat[test_sets[0, 0]][:] = 9
        elif damage == "set_missing":
            del mat["testsets"]
            mat["testsets"] = test_sets[:, 1:]
        elif damage == "no_sets":
            del mat["testsets"]
        elif damage == "no_boxes":
            del mat["detected"]
    refused("merged", tmp_path, message)


@pytest.mark.parametrize("place", ["bare", "zip"])
@pytest.mark.parametrize("damage", ["no_hdf5", "truncated", "flipped"])
def test_damaged_mat_is_refused(tmp_path, write_cuhk03, place, damage):
    write_cuhk03(tmp_path)
    path = tmp_path / "cuhk-03.mat"
    if damage == "no_hdf5":
        path.write_bytes(b"MATLAB 5.0 MAT-file" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "flipped":
        with h5py.File(path) as mat:
            pixels = mat[mat[mat["labeled"][0, 2]][4, 1]]
            begin = pixels.id.get_chunk_info(0).byte_offset
        content = bytearray(path.read_bytes())
        content[begin + 100] ^= 255
        path.write_bytes(content)
    if place == "zip":
        path = zip_mat(tmp_path)
    message = rf"{path} is damaged \(.*\): expected the complete {path.name} of its mak"
    refused("labelled", tmp_path, message)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other_data_set"])
def test_damaged_archive_is_refused(tmp_path, write_cuhk03, write_zip, damage):
    write_cuhk03(tmp_path)
    archive = zip_mat(tmp_path)
    content = bytearray(archive.read_bytes())
    if damage == "truncated":
        archive.write_bytes(content[:-1000])
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        archive.write_bytes(content)
    elif damage == "other_data_set":
        write_zip(archive, {"VIPeR/cam_a/000_45.bmp": b"x"})
    refused(
        "labelled", tmp_path, r"cuhk03_release\.zip is damaged \(.*\): expected the"
    )


def test_full_disc_is_not_called_damage(tmp_path, write_cuhk03, monkeypatch):
    def extract(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_cuhk03(tmp_path)
    zip_mat(tmp_path)
    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    with pytest.raises(OSError, match="No space left on device"):
        open_cuhk03("labelled", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", rf": expected {ROLES}, found no such file\."),
        (
            "other_boxes",
            rf"{ROLES} is not of labelled boxes: expected the roles of all 107 pictures"
            ", found those of 106 and of 2 that are not there",
        ),
        ("not_all_listed", "all 107 pictures, found those of 69 and of 0 that"),
        ("other_mat", rf"{ROLES} is damaged \('filelist'\): expected the complete"),
        ("no_mat", rf"{ROLES} is damaged \(.*\): expected the complete {ROLES} of"),
        ("truncated", rf"{ROLES} is damaged \(.*\): expected the complete"),
    ],
)
def test_unfit_file_of_the_other_split_is_refused(
    tmp_path, write_cuhk03, damage, message
):
    write_cuhk03(tmp_path)
    path = tmp_path / ROLES
    if damage == "missing":
        path.unlink()
    elif damage == "other_boxes":
        (tmp_path / ROLES.replace("labeled", "detected")).replace(path)
    elif damage == "not_all_listed":
        split = scipy.io.loadmat(path)
        kept = {key: split[key] for key in ("filelist", "train_idx", "query_idx")}
        scipy.io.savemat(path, kept | {"gallery_idx": split["query_idx"]})
    elif damage == "other_mat":
        scipy.io.savemat(path, {"features": np.zeros(3)})
    elif damage == "no_mat":
        path.write_bytes(b"<!DOCTYPE html>" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    refused("labelled_767", tmp_path, message)


def test_missing_files_are_refused_with_what_to_put_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"(?s)does not exist.*Put cuhk03_release\.zip"
    ):
        open_cuhk03("labelled", tmp_path / "nowhere", tmp_path / "cache")
    (tmp_path / "readme.txt").write_text("nothing")
    refused(
        "labelled",
        tmp_path,
        rf"{tmp_path}: expected cuhk03_release\.zip or cuhk03_release/cuhk-03\.mat or "
        r"cuhk-03\.mat, found no such file\.",
    )
