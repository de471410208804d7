import numpy as np
import pytest

from input_pipeline.datasets import records
from input_pipeline.datasets.dukemtmc import Dukemtmc

TRAIN, QUERY, TEST = "bounding_box_train", "query", "bounding_box_test"


def open_duke(manual_dir, cache_dir):
    return records.open_records(
        Dukemtmc(data_dir=cache_dir), manual_dir=str(manual_dir)
    )


def test_records_are_the_pictures_of_three_folders(tmp_path, duke_files, write_files):
    others = {"DukeMTMC-reID/README.md": b"x", f"DukeMTMC-reID/{TEST}/Thumbs.db": b"x"}
    write_files("zip", tmp_path, duke_files | others)
    index, source = open_duke(tmp_path, tmp_path / "cache")
    assert index.name.tolist() == sorted(
        path.removeprefix("DukeMTMC-reID/") for path in duke_files
    )
    for i, name in enumerate(index.name):
        assert source[i]["image"] == duke_files[f"DukeMTMC-reID/{name}"]
    described = {
        name: (pid, camid, role)
        for name, pid, camid, role in zip(
            *(index.name, index.pid, index.camid, index.role), strict=True
        )
    }
    assert len(described) == 16
    assert described[f"{TRAIN}/0007_c8_f0044160.jpg"] == (7, 8, "train")
    assert described[f"{QUERY}/0002_c1_f0044158.jpg"] == (2, 1, "query")
    assert described[f"{TEST}/0005_c4_f0044159.jpg"] == (5, 4, "gallery")
    assert described[f"{TEST}/7101_c6_f0044158.jpg"] == (7101, 6, "distractor")
    assert {(20, 10), (21, 11), (22, 12)} <= set(
        zip(index.height.tolist(), index.width.tolist(), strict=True)
    )


def test_folder_and_archive_give_the_same_records(tmp_path, duke_files, write_files):
    opened = []
    for form in ("folder", "zip"):
        write_files(form, tmp_path / form, duke_files)
        opened.append(open_duke(tmp_path / form, tmp_path / f"cache_{form}"))
    for one, other in zip(opened[0].index, opened[1].index, strict=True):
        np.testing.assert_array_equal(one, other)
    for i in range(16):
        assert opened[0].source[i]["image"] == opened[1].source[i]["image"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            f"{TRAIN}/0007_c8_f0044160.jpg",
            None,
            rf"not the complete DukeMTMC-reID: in DukeMTMC-reID/{TRAIN} expected 5 "
            r"images of 2 identities, found 4 images of 2 .*Put DukeMTMC-reID\.zip",
        ),
        (
            f"{TEST}/7101_c6_f0044159.jpg",
            f"{TEST}/7102_c6_f0044159.jpg",
            rf"{TEST} expected 8 images of 3 identities, found 8 images of 4 ident",
        ),
        (
            f"{QUERY}/0005_c3_f0044158.jpg",
            f"{QUERY}/0005_c9_f0044158.jpg",
            rf"{QUERY}/0005_c9_f0044158\.jpg in .*reID: expected a name such as query/",
        ),
        (
            f"{QUERY}/0005_c3_f0044158.jpg",
            f"{QUERY}/0005_c3s1_000451_03.jpg",  # as in Market-1501
            r"0005_c3s1_000451_03\.jpg in .*such as query/0002_c1_f0044158\.jpg\. Give",
        ),
    ],
)
def test_files_that_are_not_the_official_ones_are_refused(
    tmp_path, duke_files, write_files, old, new, message
):
    content = duke_files.pop(f"DukeMTMC-reID/{old}")
    if new:
        duke_files[f"DukeMTMC-reID/{new}"] = content
    write_files("folder", tmp_path, duke_files)
    with pytest.raises(ValueError, match=message):
        open_duke(tmp_path, tmp_path / "cache")


def test_damaged_archive_is_refused_without_offering_a_download(
    tmp_path, duke_files, write_files
):
    write_files("zip", tmp_path, duke_files)
    archive = tmp_path / "DukeMTMC-reID.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"reID\.zip is damaged .*intact copy.* withdrawn by its mak"
    ) as error:
        open_duke(tmp_path, tmp_path / "cache")
    assert "http" not in str(error.value) and "ownload it" not in str(error.value)
