import contextlib
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from input_pipeline import protocols, transforms
from input_pipeline.__main__ import main
from input_pipeline.contact_sheet import FRAME, GAP, OTHER, SAME, TILE
from input_pipeline.datasets import records
from input_pipeline.datasets.pedestrians import Pedestrians

NAME = "mlr_pedestrians_tiny"
DATASET = f"pedestrians/tiny/{Pedestrians.VERSION}"
STEP = TILE[1] + 2 * FRAME + GAP  # from a tile to the next one


@pytest.fixture(scope="module")
def look(cache_dir, tmp_path_factory):
    """A function that runs the command and returns what it printed and drew."""
    out = tmp_path_factory.mktemp("sheets") / "sheet.png"

    def look(*options, protocol=NAME):
        out.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            main([protocol, f"--cache_dir={cache_dir}", f"--out={out}", *options])
        with Image.open(out) as sheet:
            return text.getvalue(), np.asarray(sheet)

    return look


@pytest.fixture(scope="module")
def shown(look):
    """What the command prints and draws of the tiny protocol as it is."""
    return look()


@pytest.fixture
def make_plan(tiny):
    """A function that applies the tiny protocol, with changes, to its data set."""

    def make(**changes):
        protocol = dataclasses.replace(protocols.PROTOCOLS[NAME], **changes)
        protocol = dataclasses.replace(protocol, dataset=DATASET)
        return protocols.make_plan(protocol, tiny.index)

    return make


@pytest.fixture
def tiny(cache_dir):
    return records.open_records(Pedestrians(config="tiny", data_dir=cache_dir))


@pytest.fixture
def folder(tmp_path):
    """Pictures with a table: three train, one of them not in camera 1; two are tested.

    Of camera 1 are the low-resolution ones. Identity 4 is there alone.
    """
    top, lines = tmp_path / "pictures", ["path,pid,camid,split"]
    top.mkdir()
    cameras = {0: "122", 1: "122", 2: "22", 3: "12", 4: "1", -1: "2"}
    for pid, camids in cameras.items():
        for shot, camid in enumerate(camids):
            name = f"{pid}_{shot}.png"
            pixels = np.random.default_rng(len(lines)).integers(0, 256, (24, 12, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(top / name)
            lines.append(f"{name},{pid},{camid},{'train' if pid < 3 else 'test'}")
    (top / "images.csv").write_text("\n".join(lines))
    return top


def rows(text):
    """{first words: other words} of the lines of the table."""
    return dict(
        re.split(r"  +", line, maxsplit=1)
        for line in text.splitlines()[2:]
        if "  " in line
    )


def tile(tiny, images, row, original=False):
    """How an image should look on the sheet."""
    position = int(images.record[row])
    (pixels,) = records.read_pixels(tiny.source, [position], [images.name[row]])
    if images.low[row] and not original:
        size = (images.height[row], images.width[row])
        pixels = transforms.degrade(pixels, size, "bicubic")
    return np.uint8(np.rint(transforms.fit(pixels, TILE) * 255))


def places(sheet, pixels):
    """(y, x) of a tile on the sheet, wherever it is."""
    corners = np.argwhere((sheet == pixels[0, 0]).all(-1)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(cut(sheet, y, x), pixels)]


def cut(sheet, y, x):
    return sheet[y : y + TILE[0], x : x + TILE[1]]


def test_table_has_the_counts_of_every_side(shown):
    text, _ = shown
    assert text.startswith(f"{NAME} on {DATASET}\n")
    found = {key: value.split() for key, value in rows(text).items()}
    assert found[""] == ["train", "query", "gallery"]
    assert found["identities"] == ["8", "4", "4"]
    assert found["images"] == ["48", "8", "16"]
    assert found["low-resolution"] == ["16", "8", "–"]
    assert found["camera 1"] == ["16", "–", "8"]
    assert found["×1"] == ["32", "–", "16"]
    assert found["height"] == ["8–32", "8–16", "32"]
    assert max(map(len, text.splitlines()[:-1])) <= 88


def test_hash_is_that_of_the_manifest(shown, make_plan):
    expected = protocols.manifest(make_plan())["sha256"]
    assert rows(shown[0])["manifest"] == expected


def test_fields_of_the_command_line_arrive_in_the_manifest(look, make_plan):
    fields = {
        "seed": 3,
        "split": 2,
        "val_ids": 2,
        "lr_cameras": (1, 2),
        "rate": "per_image",
        "scales": (2, 5),
        "kernel": "area",
        "rounding": "ceil",
        "blur": 0.5,
        "jpeg_quality": 80,
        "evaluation": "multi_shot",
        "num_draws": 7,
    }
    options = [
        f"--{name}={str(value).strip('()').replace(' ', '')}"
        for name, value in fields.items()
    ]
    text, _ = look(*options)
    found = rows(text)
    assert found["manifest"] == protocols.manifest(make_plan(**fields))["sha256"]
    assert found[""].split()[3:] == ["val_query", "val_gallery"]
    assert found["drawn by"] == "seed 3, split 2, 2 training identities held out"
    assert "cameras 1 2" in text and "×2 ×5 by image" in text
    assert "area, sizes rounded up, blur of 0.5 pixels, JPEG of quality 80" in text
    assert "multi-shot; beside them single-shot over 7 galleries" in text


def test_sheet_shows_low_resolution_images_beside_their_originals(
    shown, make_plan, tiny
):
    _, sheet = shown
    train = make_plan().train
    scales = []
    for row in np.flatnonzero(train.low):
        for y, x in places(sheet, tile(tiny, train, row)):
            scales.append(train.scale[row])
            original = tile(tiny, train, row, original=True)
            np.testing.assert_array_equal(cut(sheet, y, x + STEP), original)
    assert len(scales) == 8 and set(scales) == {2, 3, 4}


def test_sheet_shows_queries_beside_right_and_wrong_gallery_images(
    shown, make_plan, tiny
):
    _, sheet = shown
    plan = make_plan()
    gallery = {
        tile(tiny, plan.gallery, row).tobytes(): pid
        for row, pid in enumerate(plan.gallery.pid)
    }
    assert len(plan.query.pid) == 8
    for row, pid in enumerate(plan.query.pid):
        ((y, x),) = places(sheet, tile(tiny, plan.query, row))
        beside = [x + STEP * number for number in range(1, 5)]
        same = [gallery[cut(sheet, y, x).tobytes()] == pid for x in beside]
        assert same == [True, True, True, False]
        frames = ["#" + sheet[y - 1, x - 1].tobytes().hex() for x in beside]
        assert frames == [SAME, SAME, SAME, OTHER]


def test_equal_protocols_have_equal_tables_and_sheets(look, shown):
    text, sheet = look()
    assert text == shown[0]
    np.testing.assert_array_equal(sheet, shown[1])


def test_what_deserves_attention_is_told(look, folder):
    (folder / "1_1.png").write_bytes(b"no picture")
    text, _ = look(f"--data_dir={folder}", protocol="mlr_folder")
    notes = text.partition("\n- ")[2].partition("\n\nPictures")[0].split("\n- ")
    assert notes == [
        "on no side: identities 0, images 2 of 12",
        "training images that cannot be read and are left out: 1 (1_1.png)",
        "training identities without a low-resolution image (cross tuples lack it): 1",
        "images of query that have no match in gallery and do not count: 1",
    ]


def test_own_pictures_without_cameras_and_low_resolution_are_shown(look, folder):
    text, sheet = look(f"--data_dir={folder}", "--no_camera", protocol="folder")
    found = {key: value.split() for key, value in rows(text).items()}
    assert found["no camera"] == ["8", "2", "1"] and found["×1"] == ["8", "2", "1"]
    assert places(sheet, stored_tile(folder / "0_0.png"))


def test_real_low_resolution_images_have_no_original(
    look, caviar_files, write_zip, tmp_path, monkeypatch
):
    protocol = protocols.PROTOCOLS["caviar"]
    small = dataclasses.replace(protocol, num_train=3, num_test=3)
    monkeypatch.setitem(protocols.PROTOCOLS, "caviar", small)
    write_zip(tmp_path / "CAVIAR4REID.zip", caviar_files)
    options = f"--data_dir={tmp_path}", f"--cache_dir={tmp_path}"
    text, sheet = look(*options, protocol="caviar")
    assert "- on no side: identities 2, images 20 of 140" in text
    assert "original: train 30, query 30\n" in text
    assert "about ×" in text and sheet.shape[1] > 8 * STEP


def test_stored_pairs_are_shown_beside_each_other(look, write_folder):
    top = write_folder("pid,camid,path,split,scale,original")
    (top / "originals" / "2_0.jpg").write_bytes(b"no picture")
    text, sheet = look(f"--data_dir={top}", protocol="paired_folder")
    found = rows(text)
    assert "\nlow-resolution  as the table says\n" in text
    assert found["rates"] == "as they are"
    assert found["down-sampling"].endswith("synthetic copies at ×2 ×3 ×4")
    assert found["images"].split() == ["11", "6", "6"]
    assert found["×2"].split() == ["2", "3", "–"]
    notes = text.partition("\n- ")[2].partition("\n\nPictures")[0].split("\n- ")
    assert [" ".join(note.split()) for note in notes] == [
        "on no side: identities 0, images 2 of 32",
        "training images that cannot be read and are left out: 1 "
        "(pictures/2_c1_0.jpg's original originals/2_0.jpg)",
        "images without a high-resolution original: train 2, query 2",
    ]
    for name, original in (("1_c1_1", "1_1"), ("3_c1_0", None)):
        (y, x), *_ = places(sheet, stored_tile(top / "pictures" / f"{name}.jpg"))
        beside = cut(sheet, y, x + STEP)
        if original:
            expected = stored_tile(top / "originals" / f"{original}.jpg")
            np.testing.assert_array_equal(beside, expected)
        else:
            assert (beside == 255).all()


def stored_tile(path):
    """How a picture should look on the sheet."""
    with Image.open(path) as image:
        return np.uint8(np.rint(transforms.fit(np.asarray(image), TILE) * 255))


def test_a_file_that_exists_is_left_as_it_is(cache_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / f"{NAME}.png"
    mine.write_text("mine")
    with pytest.raises(SystemExit, match=r"exists and is left as it is: .*--out"):
        main([NAME, f"--cache_dir={cache_dir}"])
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlr_vipre"], "Unknown protocol 'mlr_vipre': choose one of .*mlr_viper,"),
        (["market1501"], "Market-1501-v15.09.15.zip.* --data_dir"),
        (["folder"], "--data_dir: expected the folder"),
        ([NAME, "--rate=per_day"], "rate must be one of per_identity, per_image"),
        ([NAME, "--blur=nan"], "blur not negative"),
        ([NAME, "--split=0", "--out=no/where.png"], "no/where.png"),
    ],
)
def test_foreseen_errors_end_in_one_line(arguments, message, cache_dir, tmp_path):
    cache = cache_dir if NAME in arguments else tmp_path
    with pytest.raises(SystemExit) as caught:
        main([*arguments, f"--cache_dir={cache}"])
    (line,) = caught.value.code.splitlines()
    assert re.match(f"input_pipeline: .*{message}", line)
    assert "config.data" not in line


@pytest.mark.parametrize("option", ["--seed=-1", "--scales=2,x", "--blur=much"])
def test_arguments_of_the_wrong_type_are_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main([NAME, option])
    assert caught.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_all_protocols_are_listed(arguments, capsys):
    main(arguments)
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(protocols.PROTOCOLS)
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if line.startswith("mlr_market1501_half")]
    assert re.split("  +", line)[1:] == [
        "market1501",
        "half per identity",
        "×2 ×3 ×4 by image",
        "single-shot",
    ]
