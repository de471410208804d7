import zipfile

import pytest

from input_pipeline.datasets import records
from input_pipeline.datasets.caviar import Caviar


def open_caviar(manual_dir, cache_dir):
    return records.open_records(Caviar(data_dir=cache_dir), manual_dir=str(manual_dir))


def write_caviar(place, folder, files, write_zip):
    archive = folder / "CAVIAR4REID.zip"
    write_zip(archive, files)
    if place == "folder":
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        archive.unlink()


@pytest.mark.parametrize("place", ["zip", "folder"])
def test_records_are_the_files_and_names_tell_identity_and_camera(
    tmp_path, caviar_files, write_zip, place
):
    extra = {"CAVIAR4REID/Thumbs.db": b"x", "__MACOSX/CAVIAR4REID/._0001001.jpg": b"x"}
    write_caviar(place, tmp_path, caviar_files | extra, write_zip)
    index, source = open_caviar(tmp_path, tmp_path / "cache")
    assert [f"CAVIAR4REID/{name}" for name in index.name] == list(caviar_files)
    for i, content in enumerate(caviar_files.values()):
        assert source[i]["image"] == content
    described = {
        name: row
        for name, *row in zip(
            *(index.name, index.pid, index.camid, index.height, index.width),
            strict=True,
        )
    }
    assert len(described) == 6 * 20 + 2 * 10
    assert described["0001001.jpg"] == [1, 0, 49, 24]
    assert described["0001010.jpg"] == [1, 0, 58, 24]
    assert described["0001011.jpg"] == [1, 1, 19, 12]
    assert described["0006020.jpg"] == [6, 1, 28, 12]
    assert described["0008010.jpg"] == [8, 0, 58, 24]
    assert set(index.pid[index.camid == 1]) == {1, 2, 3, 4, 5, 6}
    assert set(index.role) == {""}


@pytest.mark.parametrize("place", ["zip", "folder"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "half_extracted",
            "found 3 identities with 10 .* and 10 in camera 1, 1 iden",
        ),
        ("one_missing", "found .* 1 identities with 9 images in camera 0 and 10 in "),
        (
            "camera_missing",
            "found 5 identities with 10 images in camera 0 and 10 .* 3 ",
        ),
        ("other_identity", "expected 6 .* and 0 in camera 1, found 6 .* 3 identities"),
        ("other_data_set", r"expected 6 .*, found no image\. Put CAVIAR4REID\.zip"),
        ("other_name", r"IAR4REID/0001021\.jpg in .*: expected a name such as 0001011"),
    ],
)
def test_what_is_not_complete_is_refused_with_the_reason(
    tmp_path, caviar_files, write_zip, place, damage, message
):
    files, top = dict(caviar_files), "CAVIAR4REID"
    if damage == "half_extracted":
        files = dict(list(files.items())[:65])
    elif damage == "one_missing":
        del files[f"{top}/0002005.jpg"]
    elif damage == "camera_missing":
        for shot in range(11, 21):
            del files[f"{top}/0004{shot:03d}.jpg"]
    elif damage == "other_identity":
        for shot in range(1, 11):
            files[f"{top}/0009{shot:03d}.jpg"] = files[f"{top}/0008{shot:03d}.jpg"]
    elif damage == "other_data_set":
        files = {path.replace(top, "VIPeR"): x for path, x in files.items()}
        files[f"{top}/readme.txt"] = b"nothing"
    elif damage == "other_name":
        files[f"{top}/0001021.jpg"] = files.pop(f"{top}/0001020.jpg")
    write_caviar(place, tmp_path, files, write_zip)

    with pytest.raises(ValueError, match=message) as caught:
        open_caviar(tmp_path, tmp_path / "cache")
    assert str(tmp_path) in str(caught.value)
    assert not list((tmp_path / "cache" / "caviar").glob("[0-9]*"))


def test_truncated_archive_is_refused(tmp_path, caviar_files, write_zip):
    archive = tmp_path / "CAVIAR4REID.zip"
    write_zip(archive, caviar_files)
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"REID\.zip is damaged .*Put CAVIAR4REID\.z"):
        open_caviar(tmp_path, tmp_path / "cache")


def test_missing_files_are_refused_with_what_to_put_there(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            ValueError, match=r"(?s)does not exist or is empty.*Put CAVIAR4REID\.zip"
        ):
            open_caviar(folder, tmp_path.parent / "cache_of_nothing")


def test_real_caviar_has_its_larger_images_in_camera_0(real_caviar_dir, tmp_path):
    index, _ = open_caviar(real_caviar_dir, tmp_path)
    assert len(index.name) == 1220
    twice = index.sha256[index.name == "0029002.jpg"]  # alone, and in one camera
    assert index.name[index.sha256 == twice].tolist() == ["0029002.jpg", "0029003.jpg"]
    assert len(set(index.sha256)) == 1219
    cameras = [set(index.camid[index.pid == pid]) for pid in range(1, 73)]
    assert (cameras.count({0, 1}), cameras.count({0})) == (50, 22)

    def area(pid, camid):
        chosen = (index.pid == pid) & (index.camid == camid)
        return (index.height * index.width)[chosen].mean()

    in_both = [pid for pid, seen in enumerate(cameras, 1) if len(seen) == 2]
    larger_in_1 = [pid for pid in in_both if area(pid, 1) > area(pid, 0)]
    assert larger_in_1 == [20, 50]
