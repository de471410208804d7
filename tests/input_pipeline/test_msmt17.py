import errno
import tarfile

import numpy as np
import pytest

from input_pipeline.datasets import records
from input_pipeline.datasets.msmt17 import Msmt17


def open_msmt17(version, manual_dir, cache_dir):
    return records.open_records(
        Msmt17(config=version, data_dir=cache_dir), manual_dir=str(manual_dir)
    )


@pytest.mark.parametrize(
    ("version", "train", "test"),
    [("v1", "train", "test"), ("v2", "mask_train_v2", "mask_test_v2")],
)
def test_records_are_the_pictures_that_the_lists_name(
    tmp_path, make_msmt17, write_files, version, train, test
):
    files = make_msmt17(version)
    others = {f"{train}/Thumbs.db": b"x", f"{test}/0000/._0000_001_02_x.jpg": b"x"}
    top = f"MSMT17_{version.upper()}"
    write_files("zip", tmp_path, files | {f"{top}/{k}": x for k, x in others.items()})
    index, source = open_msmt17(version, tmp_path, tmp_path / "cache")

    names = index.name.tolist()
    assert names == sorted(
        path.removeprefix(f"{top}/") for path in files if path.endswith(".jpg")
    )
    for i, name in enumerate(names):
        assert source[i]["image"] == files[f"{top}/{name}"]
    described = zip(index.pid, index.camid, index.role, strict=True)
    end = "0303morning_0008_0.jpg"
    assert dict(zip(names, described, strict=True)) == {
        f"{train}/0000/0000_000_01_{end}": (0, 1, "train"),
        f"{train}/0000/0000_001_15_{end}": (0, 15, "train"),
        f"{train}/0000/0000_002_07_{end}": (0, 7, "train"),  # of the validation list
        f"{train}/1040/1040_000_09_{end}": (1040, 9, "train"),
        f"{test}/0000/0000_000_01_{end}": (1041, 1, "query"),
        f"{test}/0000/0000_001_02_{end}": (1041, 2, "gallery"),
        f"{test}/0000/0000_002_02_{end}": (1041, 2, "gallery"),
        f"{test}/3059/3059_000_10_{end}": (4100, 10, "query"),
        f"{test}/3059/3059_001_03_{end}": (4100, 3, "gallery"),
    }


def test_folder_and_archives_give_the_same_records(tmp_path, make_msmt17, write_files):
    opened = []
    for form in ("folder", "zip", "tar.gz"):
        write_files(form, tmp_path / form, make_msmt17("v1"))
        opened.append(open_msmt17("v1", tmp_path / form, tmp_path / "cache" / form))
    for other in opened[1:]:
        for one, same in zip(opened[0].index, other.index, strict=True):
            np.testing.assert_array_equal(one, same)
        for i in range(9):
            assert opened[0].source[i]["image"] == other.source[i]["image"]


def test_what_was_extracted_is_deleted(tmp_path, make_msmt17, write_files, monkeypatch):
    def extract(archive, path, **options):
        extracted.append(path)
        extractall(archive, path, **options)

    extracted, extractall = [], tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, "extractall", extract)
    files = make_msmt17("v1")
    write_files("tar.gz", tmp_path, files)
    open_msmt17("v1", tmp_path, tmp_path / "cache")
    assert len(extracted) == 1 and extracted[0].startswith(str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.jpg"))
    assert [path.name for path in tmp_path.glob("M*")] == ["MSMT17_V1.tar.gz"]


PICTURE = "MSMT17_V1/test/3059/3059_001_03_0303morning_0008_0.jpg"
LINE = b"3059/3059_001_03_0303morning_0008_0.jpg 3059"
GALLERY = "MSMT17_V1/list_gallery.txt"
END = "_0303morning_0008_0.jpg"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (LINE, LINE[:-4] + b"3058", r"line 3: expected .* identity, .*\.jpg 3058'\. T"),
        (LINE, LINE[:-5], r"line 3: expected .* found '3059/3059_001_03_.*0\.jpg'\. T"),
        (LINE, LINE + b" 1", r"list_gallery\.txt in .*_V1, line 3: .*\.jpg 3059 1'"),
        (LINE, b"", r"list_gallery\.txt in .*_V1, line 3: expected .*, found ''"),
        (LINE, LINE.replace(b"_03_", b"_3_"), r"line 3: expected the path of a pict"),
        (LINE + b"\n", b"", r"list_gallery\.txt expected 3 images of 2 .*found 2 im"),
        (LINE, b"\xff\x00", r"line 3: expected .* Put MSMT17_V1\.tar\.gz"),
        (PICTURE, None, r"line 3: expected .*picture in MSMT17_V1/test .*'3059/3059_0"),
        (
            GALLERY,
            None,
            r"expected the list MSMT17_V1/list_gallery\.txt .* found none\. Put",
        ),
        (
            PICTURE,
            PICTURE.replace("_03_", "_16_"),
            r"3059_001_16_.*: expected a name .* with a camera from 01 to 15\. Give",
        ),
        (
            PICTURE,
            PICTURE.replace("/3059_", "/0000_"),
            r"test/3059/0000_001_03_.* in .*_V1: expected a name such as 0000/0000_",
        ),
        (PICTURE, PICTURE.replace("3059/", ""), r"test/3059_001_03_.*: expected a na"),
    ],
)
def test_lists_and_pictures_that_do_not_agree_are_refused(
    tmp_path, make_msmt17, write_files, old, new, message
):
    files = make_msmt17("v1")
    if isinstance(old, bytes):  # a line of a list
        assert old in files[GALLERY]
        files[GALLERY] = files[GALLERY].replace(old, new)
    else:
        content = files.pop(old)
        if new:
            files[new] = content
    write_files("folder", tmp_path, files)
    with pytest.raises(ValueError, match=message):
        open_msmt17("v1", tmp_path, tmp_path / "cache")


def test_pictures_that_no_list_names_are_counted(tmp_path, make_msmt17, write_files):
    files = make_msmt17("v1")
    for number in ("008_01", "009_01"):
        files[f"MSMT17_V1/train/0000/0000_{number}{END}"] = b"x"
    write_files("folder", tmp_path, files)
    with pytest.raises(
        ValueError, match=r"found 2 that none of them names, such as MSMT.*/0000_008_01"
    ):
        open_msmt17("v1", tmp_path, tmp_path / "cache")


def test_picture_that_two_lists_name_is_refused(tmp_path, make_msmt17, write_files):
    files = make_msmt17("v1")
    query = f"0000/0000_000_01{END} 0".encode()
    files[GALLERY] = files[GALLERY].replace(LINE, query)
    write_files("folder", tmp_path, files)
    with pytest.raises(ValueError, match=r"list_query\.txt expected 2 .*, found 1 im"):
        open_msmt17("v1", tmp_path, tmp_path / "cache")


def test_lists_of_the_other_version_are_refused(tmp_path, make_msmt17, write_files):
    files = make_msmt17("v2")
    other = {path.replace("_V1", "_V2"): x for path, x in make_msmt17("v1").items()}
    lists = {path: x for path, x in other.items() if path.endswith(".txt")}
    renamed = {path: x.replace(b"0303", b"0304") for path, x in lists.items()}
    write_files("folder", tmp_path, files | renamed)
    with pytest.raises(
        ValueError, match=r"line 1: expected .*mask_train_v2 .* of one version: Put"
    ):
        open_msmt17("v2", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut_off", "flipped_byte", "no_archive"])
def test_damaged_tar_file_is_refused(tmp_path, make_msmt17, write_files, damage):
    write_files("tar.gz", tmp_path, make_msmt17("v1"))
    archive = tmp_path / "MSMT17_V1.tar.gz"
    content = bytearray(archive.read_bytes())
    if damage == "cut_off":
        del content[-1000:]
    elif damage == "flipped_byte":
        content[-6] ^= 1  # of gzip's checksum: every file can be extracted
    else:
        content = b"nothing"
    archive.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"(?s)_V1\.tar\.gz is damaged .*intact.*Put MSMT17_V1\.tar"
    ):
        open_msmt17("v1", tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_full_disk_is_not_taken_for_a_damaged_archive(
    tmp_path, make_msmt17, write_files, monkeypatch
):
    def extract(archive, path, **options):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extract)
    write_files("tar.gz", tmp_path, make_msmt17("v1"))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device"):
        open_msmt17("v1", tmp_path, tmp_path / "cache")
