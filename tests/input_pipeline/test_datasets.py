import concurrent.futures
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline.datasets import pedestrians, records
from input_pipeline.datasets.drawing import draw_pedestrian
from input_pipeline.datasets.market1501 import Market1501
from input_pipeline.datasets.pedestrians import Pedestrians
from input_pipeline.datasets.viper import Viper


def encode(pixels, image_format, **options):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=image_format, **options)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def noise():
    # Smooth noise, as JPEG's chroma would otherwise dominate every comparison.
    small = np.random.default_rng(0).integers(0, 256, (20, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((47, 83), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg_pixels_are_those_of_tensorflows_accurate_mode(noise, quality):
    jpeg = encode(noise, "jpeg", quality=quality)
    expected = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(records.decode(jpeg, "a.jpg"), expected.numpy())


@pytest.mark.parametrize("image_format", ["png", "bmp"])
def test_lossless_formats_decode_to_the_pixels_that_were_written(noise, image_format):
    image_bytes = encode(noise, image_format)
    np.testing.assert_array_equal(records.decode(image_bytes, "a"), noise)
    grey = encode(noise[..., 0], image_format)
    assert records.decode(grey, "grey").shape == noise.shape


@pytest.mark.parametrize("cut", [0, 10, 600])
@pytest.mark.parametrize("image_format", ["png", "bmp", "jpeg"])
def test_image_that_cannot_be_decoded_is_refused_by_name(noise, image_format, cut):
    with pytest.raises(ValueError, match=rf"c1/7\.x: not a readable image \({cut} b"):
        records.decode(encode(noise, image_format)[:cut], "c1/7.x")


def test_records_are_the_drawn_pedestrians_in_order(cache_dir):
    builder = Pedestrians(config="tiny", data_dir=cache_dir)
    index, source = records.open_records(builder)
    assert len(source) == len(index.name) == 12 * 3 * 2
    assert index.name[:7].tolist() == [
        *("c0/0000_0.png", "c0/0000_1.png", "c1/0000_0.png", "c1/0000_1.png"),
        *("c2/0000_0.png", "c2/0000_1.png", "c0/0001_0.png"),
    ]
    assert len(set(index.name)) == len(set(index.sha256)) == 72
    assert (index.pid[45], index.camid[45]) == (7, 1)
    assert set(index.height) == {32} and set(index.width) == {16}
    assert set(index.role) == {""} and len(index.role) == 72
    np.testing.assert_array_equal(
        records.read_pixels(source, [45], [index.name[45]])[0],
        draw_pedestrian(0, 7, 1, 1, height=32, width=16),
    )


def test_building_is_silent_and_happens_once(tmp_path, monkeypatch, capfd):
    def opened():
        return records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))

    first = opened()
    monkeypatch.setattr(pedestrians, "draw_pedestrian", None)
    second = opened()
    for one, other in zip(first.index, second.index, strict=True):
        np.testing.assert_array_equal(one, other)
    assert capfd.readouterr() == ("", "")


def test_interrupted_build_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    def stop_midway(seed, pid, camid, shot, **size):
        if pid == 6:
            raise KeyboardInterrupt
        return draw_pedestrian(seed, pid, camid, shot, **size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pedestrians, "draw_pedestrian", stop_midway)
        records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))
    # A killed process cannot tidy up: its unfinished folder stays.
    versions = tmp_path / "pedestrians" / "tiny"
    assert not list(versions.glob("[0-9]*"))
    (versions / f"incomplete.ABCDEF_{Pedestrians.VERSION}").mkdir(parents=True)

    opened = records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))
    assert len(opened.source) == 72
    assert not list(versions.glob("incomplete*"))


def test_processes_that_want_to_build_wait_for_one_that_does(tmp_path, monkeypatch):
    drawn = []

    def draw(*where, **size):
        drawn.append(where)
        return draw_pedestrian(*where, **size)

    monkeypatch.setattr(pedestrians, "draw_pedestrian", draw)
    builders = [Pedestrians(config="tiny", data_dir=tmp_path) for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        opened = list(pool.map(records.open_records, builders))
    assert len(drawn) == 72
    assert [len(each.source) for each in opened] == [72, 72]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing"])
def test_damaged_index_is_named(tmp_path, content):
    builder = Pedestrians(config="tiny", data_dir=tmp_path)
    records.open_records(builder)
    path = Path(builder.data_dir) / "index.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.npz is damaged .* delete it"):
        records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))
    path.unlink()
    assert len(records.open_records(builder).index.name) == 72


def test_index_that_does_not_fit_the_records_is_refused(tmp_path):
    builder = Pedestrians(config="tiny", data_dir=tmp_path)
    index, _ = records.open_records(builder)
    path = Path(builder.data_dir) / "index.npz"
    np.savez(path, **{key: column[:5] for key, column in index._asdict().items()})
    with pytest.raises(ValueError, match="describes 5 records, but 72 are stored"):
        records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))


def test_damaged_record_is_named(tmp_path):
    builder = Pedestrians(config="tiny", data_dir=tmp_path)
    index, _ = records.open_records(builder)
    (path,) = Path(builder.data_dir).glob("*array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    _, source = records.open_records(Pedestrians(config="tiny", data_dir=tmp_path))
    with pytest.raises(ValueError, match=r"c\d/\d{4}_\d.png: record \d+ .* is damaged"):
        records.read_pixels(source, list(range(len(source))), index.name)


def test_the_first_pixels_are_kept_and_no_more_than_fit(tmp_path, monkeypatch):
    builder = Pedestrians(config="tiny", data_dir=tmp_path)
    index, source = records.open_records(builder)
    decoded = []
    decode = records.decode
    monkeypatch.setattr(
        records, "decode", lambda *args: decoded.append(args[1]) or decode(*args)
    )
    size = 3 * int(index.height[0] * index.width[0])
    monkeypatch.setattr(records, "KEPT_BYTES", 2 * size)
    first = records.read_pixels(source, [5, 3, 5, 8], index.name[[5, 3, 5, 8]])
    again = records.read_pixels(source, [8, 3, 5], index.name[[8, 3, 5]])
    assert decoded == [*index.name[[5, 3, 8]], index.name[8]]
    for pixels, position in zip([*first, *again], (5, 3, 5, 8, 8, 3, 5), strict=True):
        expected = decode(source[position]["image"], "")
        np.testing.assert_array_equal(pixels, expected)
        assert not pixels.flags.writeable


def open_viper(manual_dir, cache_dir):
    return records.open_records(Viper(data_dir=cache_dir), manual_dir=str(manual_dir))


def write_folder(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_viper_archive_and_folder_give_the_same_records(
    tmp_path, viper_files, write_zip
):
    (tmp_path / "zip").mkdir()
    extra = {"VIPeR/Thumbs.db": b"x", "__MACOSX/VIPeR/cam_a/._000_0.bmp": b"x"}
    write_zip(tmp_path / "zip" / "VIPeR.v1.0.zip", viper_files | extra)
    write_folder(tmp_path / "folder", viper_files | extra)

    zipped = open_viper(tmp_path / "zip", tmp_path / "cache_zip")
    folder = open_viper(tmp_path / "folder", tmp_path / "cache_folder")
    for one, other in zip(zipped.index, folder.index, strict=True):
        np.testing.assert_array_equal(one, other)
    index, source = zipped
    assert index.name[[0, 632]].tolist() == ["cam_a/000_0.bmp", "cam_b/000_45.bmp"]
    assert (index.pid[700], index.camid[700]) == (68, 1)
    assert (set(index.height), set(index.width)) == ({128}, {48})
    for i in (0, 700, 1263):
        assert source[i]["image"] == viper_files[f"VIPeR/{index.name[i]}"]
        assert source[i]["image"] == folder.source[i]["image"]


@pytest.mark.parametrize("place", ["zip", "folder"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("half_extracted", "found 632 images of 632 identities in cam_a, 68 images of"),
        ("one_missing", "found 631 images of 631 identities in cam_a, 632 images"),
        ("other_identities", "of the same 632 identities"),
        ("other_data_set", "is not the complete VIPeR.*found 0 images of 0 identities"),
        (
            "other_name",
            r"cam_a/x\.bmp in .*: expected a name such as cam_a/000_45\.bmp",
        ),
        ("other_size", r"cam_a/000_0\.bmp: expected 48×128 pixels.*found 16×32"),
    ],
)
def test_viper_that_is_not_complete_is_refused_with_the_reason(
    tmp_path, viper_files, write_zip, place, damage, message
):
    files = dict(viper_files)
    if damage == "half_extracted":
        files = dict(list(files.items())[:700])
    elif damage == "one_missing":
        del files["VIPeR/cam_a/100_0.bmp"]
    elif damage == "other_identities":
        files["VIPeR/cam_a/900_0.bmp"] = files.pop("VIPeR/cam_a/100_0.bmp")
    elif damage == "other_data_set":
        files = {path.replace("VIPeR", "CAVIAR"): b"" for path in files}
        files["VIPeR/readme.txt"] = b"nothing"
    elif damage == "other_name":
        files["VIPeR/cam_a/x.bmp"] = files["VIPeR/cam_a/000_0.bmp"]
    elif damage == "other_size":
        small = np.zeros((32, 16, 3), np.uint8)
        files["VIPeR/cam_a/000_0.bmp"] = encode(small, "bmp")
    if place == "zip":
        write_zip(tmp_path / "VIPeR.v1.0.zip", files)
    else:
        write_folder(tmp_path, files)

    with pytest.raises(ValueError, match=message):
        open_viper(tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "viper").glob("[0-9]*"))


def test_pictures_that_cannot_be_decoded_are_kept_without_a_size(
    tmp_path, viper_files, write_zip
):
    empty, cut = "cam_a/005_0.bmp", "cam_b/631_45.bmp"
    files = dict(viper_files)
    files[f"VIPeR/{empty}"] = b""
    files[f"VIPeR/{cut}"] = files[f"VIPeR/{cut}"][:900]
    write_zip(tmp_path / "VIPeR.v1.0.zip", files)
    index, source = open_viper(tmp_path, tmp_path / "cache")
    unreadable = (index.height == 0) & (index.width == 0)
    assert index.name[unreadable].tolist() == [empty, cut]
    assert set(index.height[~unreadable]) == {128}
    assert [len(source[i]["image"]) for i in np.flatnonzero(unreadable)] == [0, 900]


def test_equal_pixels_have_equal_digests_however_they_are_stored(noise):
    def digest(pixels, *args, **options):
        image_bytes = encode(pixels, *args, **options)
        return records.record("a", image_bytes, pid=0, camid=0)["sha256"]

    png, bmp = digest(noise, "png"), digest(noise, "bmp")
    assert png == bmp == digest(noise, "png", compress_level=0)
    changed = noise.copy()
    changed[3, 4, 1] ^= 1
    turned = noise.reshape(noise.shape[1], noise.shape[0], 3)
    assert len({png, digest(changed, "png"), digest(turned, "png")}) == 3


def test_cut_off_viper_archive_is_refused(tmp_path, viper_files, write_zip):
    archive = tmp_path / "VIPeR.v1.0.zip"
    write_zip(archive, viper_files)
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"VIPeR\.v1\.0\.zip is damaged .*Put VIPeR"):
        open_viper(tmp_path, tmp_path / "cache")


def test_viper_archive_with_a_flipped_byte_is_refused(tmp_path, viper_files):
    archive = tmp_path / "VIPeR.v1.0.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path, content in viper_files.items():
            file.writestr(path, content)
    content = archive.read_bytes()
    name = b"VIPeR/cam_a/000_0.bmp"
    begin = content.index(name) + len(name)
    for place in range(begin, begin + 40, 3):  # of the compressed picture
        damaged = bytearray(content)
        damaged[place] ^= 255
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"VIPeR\.v1\.0\.zip is damaged"):
            open_viper(tmp_path, tmp_path / "cache")


def test_missing_or_empty_folder_is_refused_with_what_to_put_there(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            ValueError, match=r"(?s)does not exist or is empty.*VIPeR\.v1"
        ):
            open_viper(folder, tmp_path.parent / "cache_of_nothing")


def test_real_viper_is_stored_byte_for_byte(real_data_dir, cache_dir):
    index, source = records.open_records(
        Viper(data_dir=cache_dir), manual_dir=real_data_dir
    )
    assert len(source) == 1264 and len(set(index.sha256)) == 1264
    assert index.name[0] == "cam_a/000_45.bmp"
    with zipfile.ZipFile(Path(real_data_dir) / "VIPeR.v1.0.zip") as archive:
        for i in range(0, 1264, 100):
            assert source[i]["image"] == archive.read(f"VIPeR/{index.name[i]}")


TRAIN, QUERY, TEST = "bounding_box_train", "query", "bounding_box_test"


def open_market(manual_dir, cache_dir):
    return records.open_records(
        Market1501(data_dir=cache_dir), manual_dir=str(manual_dir)
    )


def write_market(place, folder, files, write_zip):
    if place == "zip":
        write_zip(folder / "Market-1501-v15.09.15.zip", files)
    else:
        write_folder(folder, files)


@pytest.mark.parametrize("place", ["zip", "folder"])
def test_market_records_are_the_files_of_three_folders(
    tmp_path, market_files, write_zip, place
):
    write_market(place, tmp_path, market_files, write_zip)
    index, source = open_market(tmp_path, tmp_path / "cache")
    assert index.name.tolist() == sorted(
        path.partition("/")[2]
        for path in market_files
        if path.split("/")[1] in (TRAIN, QUERY, TEST) and ".jpg" in path
    )
    for i, name in enumerate(index.name):
        assert source[i]["image"] == market_files[f"Market-1501-v15.09.15/{name}"]
    described = {
        name: (pid, camid, role)
        for name, pid, camid, role in zip(
            *(index.name, index.pid, index.camid, index.role), strict=True
        )
    }
    assert len(described) == 31
    assert described[f"{TRAIN}/0010_c3s1_000451_02.jpg"] == (10, 3, "train")
    assert described[f"{QUERY}/0005_c2s1_000451_01.jpg"] == (5, 2, "query")
    assert described[f"{TEST}/0001_c3s1_000451_02.jpg"] == (1, 3, "gallery")
    assert described[f"{TEST}/0000_c1s1_000451_01.jpg.jpg"] == (0, 1, "distractor")
    assert described[f"{TEST}/-1_c4s1_000451_01.jpg"] == (-1, 4, "gallery")
    assert (set(index.height), set(index.width)) == ({128}, {64})


def test_index_is_kept_while_building_and_the_same_when_written_again(
    tmp_path, market_files, write_zip, monkeypatch
):
    write_market("zip", tmp_path, market_files, write_zip)
    with monkeypatch.context() as patch:
        patch.setattr(records, "_read", None)  # nothing is read back
        index, _ = open_market(tmp_path, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("index.npz")
    path.unlink()
    for one, other in zip(
        index, open_market(tmp_path, tmp_path / "cache").index, strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_each_file_is_read_and_decoded_once(
    tmp_path, market_files, write_zip, monkeypatch
):
    def counting(function, calls):
        def call(*args):
            calls.append(args[-1])
            return function(*args)

        return call

    read, decoded = [], []
    monkeypatch.setattr(zipfile.ZipFile, "read", counting(zipfile.ZipFile.read, read))
    monkeypatch.setattr(records, "decode", counting(records.decode, decoded))
    write_market("zip", tmp_path, market_files, write_zip)
    index, _ = open_market(tmp_path, tmp_path / "cache")
    assert [name.partition("/")[2] for name in read] == index.name.tolist()
    assert decoded == index.name.tolist()


@pytest.mark.parametrize("place", ["zip", "folder"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("half_extracted", rf"15/{QUERY} expected 6 images.*found 0 images of 0 ident"),
        ("one_missing", r"4 identities \(4, 4, 3, 1.*found 11 .* \(3, 4, 3, 1, 0, 0 "),
        ("other_identity", rf"{TEST} expected 9 images of 3 .*found 9 images of 4 "),
        ("no_junk", "2 distractors and 2 junk images, found .* 2 distractors and 1 j"),
        ("no_distractor", "2 distractors and 2 junk images, found .* 1 distractors"),
        ("other_data_set", "not the complete Market-1501: .*Put Market-1501-v15"),
        (
            "other_name",
            rf"{QUERY}/a\.PNG in .*: expected a name such as query/0002_c1s1",
        ),
        ("other_size", rf"{TRAIN}/0002_.*: expected 64×128 pixels.*found 16×32"),
    ],
)
def test_market_that_is_not_complete_is_refused_with_the_reason(
    tmp_path, market_files, write_zip, place, damage, message
):
    files, top = dict(market_files), "Market-1501-v15.09.15"
    if damage == "half_extracted":
        files = {path: x for path, x in files.items() if f"/{QUERY}/" not in path}
    elif damage == "one_missing":
        del files[f"{top}/{TRAIN}/0007_c1s1_000451_01.jpg"]
    elif damage == "other_identity":
        old = f"{top}/{TEST}/0001_c3s1_000451_02.jpg"
        files[old.replace("0001", "0009")] = files.pop(old)
    elif damage == "no_junk":
        del files[f"{top}/{TEST}/-1_c4s1_000451_01.jpg"]
    elif damage == "no_distractor":
        del files[f"{top}/{TEST}/0000_c1s1_000451_01.jpg.jpg"]
    elif damage == "other_data_set":
        files = {path.replace("Market-1501", "DukeMTMC"): b"" for path in files}
        files[f"{top}/readme.txt"] = b"nothing"
    elif damage == "other_name":
        files[f"{top}/{QUERY}/a.PNG"] = b""
    elif damage == "other_size":
        small = np.zeros((32, 16, 3), np.uint8)
        files[f"{top}/{TRAIN}/0002_c1s1_000451_00.jpg"] = encode(small, "jpeg")
    write_market(place, tmp_path, files, write_zip)

    with pytest.raises(ValueError, match=message):
        open_market(tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "market1501").glob("[0-9]*"))


def test_truncated_market_archive_is_refused(tmp_path, market_files, write_zip):
    archive = tmp_path / "Market-1501-v15.09.15.zip"
    write_zip(archive, market_files)
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"15\.zip is damaged .*Put Market-1501"):
        open_market(tmp_path, tmp_path / "cache")


def test_market_archive_with_a_flipped_byte_is_refused(tmp_path, market_files):
    archive = tmp_path / "Market-1501-v15.09.15.zip"
    with zipfile.ZipFile(archive, "w") as file:  # stored, like the official one
        for path, content in market_files.items():
            file.writestr(path, content)
    content = bytearray(archive.read_bytes())
    content[content.index(b"/query/0005_c2") + 1000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"15\.zip is damaged .*Bad CRC"):
        open_market(tmp_path, tmp_path / "cache")


def test_missing_market_is_refused_with_what_to_put_there(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            ValueError, match=r"(?s)does not exist or is empty.*Put Market-1501-v15"
        ):
            open_market(folder, tmp_path.parent / "cache_of_nothing")


def test_real_market_is_stored_byte_for_byte(real_market_dir, cache_dir):
    index, source = open_market(real_market_dir, cache_dir)
    assert len(source) == 36_036
    assert len(set(index.sha256)) == 36_036  # no picture is there twice
    assert sum(name.endswith(".jpg.jpg") for name in index.name) == 24
    archive = Path(real_market_dir) / "Market-1501-v15.09.15.zip"
    with zipfile.ZipFile(archive) as content:
        for i in range(0, 36_036, 1_000):
            path = f"Market-1501-v15.09.15/{index.name[i]}"
            assert source[i]["image"] == content.read(path)
