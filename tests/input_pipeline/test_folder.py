import os
import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import folder, records
from input_pipeline.pipeline import eval_batches, open_data, train_batches


@pytest.fixture
def open_own(make_config, tmp_path):
    """A function that opens a folder of pictures under a protocol."""

    def opened(top, protocol="folder", **changes):
        options = {"dir": str(top), "cache_dir": str(tmp_path / "cache")}
        options |= {"num_ids": 2, "num_instances": 2}
        return open_data(make_config(protocol=protocol, **options | changes))

    return opened


def rewrite(top, change):
    """Changes the lines of the table."""
    path = top / "images.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def sides(data):
    return {
        side: sorted(getattr(data.plan, side).name.tolist())
        for side in ("train", "query", "gallery")
    }


def test_a_table_without_a_split_halves_the_identities(open_own, write_folder):
    data = open_own(write_folder())
    plan = data.plan
    assert plan.num_classes == 3 == len(set(plan.query.pid))
    # The first picture of each identity in each camera is a query.
    assert {name[-5] for name in plan.query.name} == {"0"}
    assert len(plan.query.pid) == len(plan.gallery.pid) == 6
    assert len(list(train_batches(data, seed=0, start_step=0, num_steps=2))) == 2
    assert sum(batch["valid"].sum() for batch in eval_batches(data, "query")) == 6


def test_a_tables_split_and_roles_count(open_own, write_folder):
    data = open_own(write_folder("path,role,pid,split,camid"))
    assert set(data.plan.train.pid) == {1, 2, 3}
    expected = {
        side: sorted(
            f"pictures/{pid}_c{camid}_{shot}.jpg"
            for pid in (4, 5, 6)
            for camid in (1, 2)
        )
        for shot, side in enumerate(("query", "gallery"))
    }
    assert {side: sides(data)[side] for side in expected} == expected


def test_an_mlr_protocol_needs_no_roles_of_its_own(open_own, write_folder):
    data = open_own(write_folder("pid,camid,path,split"), "mlr_folder")
    assert set(data.plan.query.camid) == {1} and set(data.plan.gallery.camid) == {2}
    assert set(data.plan.query.pid) == {4, 5, 6} and data.plan.query.low.all()
    other = open_own(write_folder(), "mlr_folder", lr_cameras=(2,), scales=(3,))
    assert set(other.plan.query.camid) == {2} and set(other.plan.query.scale) == {3}


def test_names_that_follow_a_pattern_need_no_table(open_own, write_folder):
    top = write_folder()
    table = sides(open_own(top))
    (top / "images.csv").unlink()
    pattern = r"pictures/(?P<pid>\d)_c(?P<camid>\d)_\d\.jpg"
    assert sides(open_own(top, pattern=pattern)) == table


def test_identities_and_cameras_may_be_text(open_own, write_folder):
    top = write_folder()
    rewrite(top, lambda lines: [lines[0], *(f"person {line}" for line in lines[1:])])
    data = open_own(top)
    assert {*data.plan.train.pid, *data.plan.query.pid} == set(range(6))
    name = data.plan.train.name[0]
    assert data.plan.train.pid[0] == int(name.split("/")[1][0]) - 1


def test_without_cameras_every_other_picture_is_a_match(open_own, write_folder):
    top = write_folder("pid,path")
    data = open_own(top, no_camera=True)
    assert set(data.plan.query.camid) == {-1}
    assert len(data.plan.query.pid) == 3 and len(data.plan.gallery.pid) == 9
    with pytest.raises(ValueError, match=r"mlr_folder needs to know the camera of eve"):
        open_own(top, "mlr_folder", no_camera=True)


def test_a_changed_picture_or_table_is_read_anew(open_own, write_folder):
    top = write_folder()
    first = open_own(top).manifest["sha256"]
    assert open_own(top).manifest["sha256"] == first
    path = top / "pictures" / "1_c1_0.jpg"
    Image.new("RGB", (12, 26), "red").save(path)
    second = open_own(top)
    assert second.manifest["sha256"] != first
    rewrite(top, lambda lines: lines[:-4])
    assert len({*open_own(top).plan.train.pid, *open_own(top).plan.query.pid}) == 5


def test_the_manifest_does_not_depend_on_where_and_when_the_folder_was_written(
    open_own, write_folder, tmp_path
):
    top = write_folder()
    first = open_own(top).manifest
    moved = tmp_path / "elsewhere"
    top.rename(moved)
    for path in moved.rglob("*.jpg"):
        path.write_bytes(path.read_bytes())  # another time of change
    assert open_own(moved).manifest == first
    assert first["protocol"]["dataset"].startswith("folder/")


def test_the_fingerprint_is_the_same_on_every_machine(write_folder):
    builder = folder.open_folder(
        str(write_folder()),
        table="images.csv",
        pattern="",
        no_camera=False,
        cache_dir=None,
    )
    rows = builder.builder_config.rows
    assert rows[0] == folder.Row("pictures/1_c1_0.jpg", 1, 1, "")
    index = records.Index(
        name=np.array([row.path for row in rows]),
        pid=np.array([row.pid for row in rows]),
        camid=np.array([row.camid for row in rows]),
        height=np.ones(24, int),
        width=np.ones(24, int),
        sha256=np.array([f"{i:064x}" for i in range(24)]),
        role=np.array([row.role for row in rows]),
    )
    assert folder.fingerprint(index) == "10846ef5127df5d6"
    backwards = records.Index(*(column[::-1] for column in index))
    assert folder.fingerprint(backwards) == folder.fingerprint(index)
    assert folder.find_pairs(rows) is None
    rows = (rows[0]._replace(original=rows[1].path, scale=2.0), *rows[1:])
    pairs = folder.find_pairs(rows)
    assert folder.fingerprint(index, pairs) == "eba240411c645892"


def drop(column):
    def change(lines):
        position = lines[0].split(",").index(column)
        cells = [line.split(",") for line in lines]
        return [",".join(row[:position] + row[position + 1 :]) for row in cells]

    return change


def replace(number, old, new):
    return lambda lines: [
        line.replace(old, new) if i == number else line for i, line in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("pid"),
            r"images\.csv: expected the columns path, pid, camid, .* add pid",
        ),
        (
            drop("camid"),
            r"add camid\. Where no cameras .*\.no_camera=True",
        ),
        (drop("path"), r"found pid, camid, split: add path"),
        (lambda lines: [], r"in its first line, found nothing: add path, pid, camid"),
        (lambda lines: lines[:1], r"images\.csv: expected pictures, found none"),
        (replace(3, "pictures/", "photos/"), r"line 4: photos/1_c2_0\.jpg is not in"),
        (
            replace(3, "pictures/", "../own/pictures/"),
            r"line 4: expected the path",
        ),
        (replace(2, "1,1,", ",1,"), r"line 3: expected a pid, found none"),
        (replace(2, "1,1,", "1,,"), r"line 3: expected a camid, found none"),
        (
            replace(2, ",train", ",training"),
            r"line 3: expected a split of train",
        ),
        (replace(2, ",train", ","), r"line 3: expected a split for every picture or f"),
        (lambda lines: [*lines, lines[4]], r"pictures/1_c2_1\.jpg 2×"),
    ],
)
def test_a_table_that_does_not_tell_is_refused_by_line(
    open_own, write_folder, change, message
):
    top = write_folder("pid,camid,path,split")
    rewrite(top, change)
    with pytest.raises(ValueError, match=message):
        open_own(top)


def test_a_role_that_contradicts_the_split_is_refused(open_own, write_folder):
    top = write_folder("pid,camid,path,split,role")
    rewrite(top, replace(1, "train,", "train,query"))
    with pytest.raises(ValueError, match=r"line 2: the split train does not go with"):
        open_own(top)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "people.csv"}, r"people\.csv: no such file, expected a table"),
        (
            {"pattern": r"(?P<pid>\d+)_.*"},
            r"named groups pid, camid, .* no camid",
        ),
        ({"pattern": "(?P<pid"}, r"config\.data\.pattern=\(\?P<pid: not a regular exp"),
        (
            {"pattern": r"pictures/(?P<pid>[1-5])_c(?P<camid>\d)_\d\.jpg"},
            r"6_c1_0\.jpg: expected pictures/.* to match pictures/6_c1_0\.jpg",
        ),
        ({"dir": ""}, r"config\.data\.dir: expected the folder with your pictures"),
        ({"dir": "/nowhere"}, r"/nowhere: expected the folder with your pictures"),
    ],
)
def test_what_cannot_be_read_is_refused(open_own, write_folder, changes, message):
    top = write_folder()
    with pytest.raises(ValueError, match=message):
        open_own(changes.pop("dir", top), **changes)


def test_an_identity_of_one_camera_is_refused_with_the_way_out(open_own, write_folder):
    top = write_folder()
    rewrite(top, lambda lines: [x for x in lines if not x.startswith("5,2")])
    with pytest.raises(
        ValueError, match=r"mlr_folder needs .* identities 5 \(pictures/5_c1_0.*Leave"
    ):
        open_own(top, "mlr_folder")


class TestWrongSplits:
    """Splits that were made wrong on purpose; none of them may train."""

    COLUMNS = "pid,camid,path,split"

    def test_an_identity_on_both_sides(self, open_own, write_folder):
        top = write_folder(self.COLUMNS)
        rewrite(top, replace(1, "train", "test"))
        with pytest.raises(ValueError, match=r"leaks: the identities 1 are both in tr"):
            open_own(top)

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_a_copy_of_a_gallery_image_among_the_training_images(
        self, open_own, write_folder, suffix
    ):
        top = write_folder(self.COLUMNS)
        source, copy = top / "pictures/6_c2_1.jpg", top / f"pictures/copy.{suffix}"
        if suffix == "jpg":
            copy.write_bytes(source.read_bytes())
        else:  # the same pixels in another format
            Image.open(source).save(copy)
        rewrite(top, lambda lines: [*lines, f"1,2,pictures/copy.{suffix},train"])
        with pytest.raises(
            ValueError, match=rf"leaks: the images pictures/copy\.{suffix} of train"
        ):
            open_own(top)

    def test_a_query_that_is_in_the_gallery_too(self, open_own, write_folder):
        top = write_folder("pid,camid,path,split,role")
        copy = top / "pictures/copy.jpg"
        copy.write_bytes((top / "pictures/6_c2_0.jpg").read_bytes())
        rewrite(top, lambda lines: [*lines, "6,1,pictures/copy.jpg,test,gallery"])
        with pytest.raises(ValueError, match=r"pictures/6_c2_0\.jpg of query are also"):
            open_own(top)


PAIRED = "pid,camid,path,split,scale,original"


@pytest.fixture
def open_pairs(open_own, write_folder):
    """A function that opens stored pairs, of a table with changes, and gives the data.

    Of the training identities 1 to 3, and of the others, the last has no originals.
    """

    def opened(change=lambda lines: lines, columns=PAIRED, **changes):
        top = write_folder(columns)
        rewrite(top, change)
        return open_own(top, "paired_folder", **changes)

    return opened


def original_of(data, images, name):
    """The bytes of the original of a picture."""
    (row,) = np.flatnonzero(images.name == name)
    return data.source[int(images.original[row])]["image"]


def test_a_table_tells_what_is_low_resolution_and_its_originals(open_pairs, tmp_path):
    data = open_pairs()
    train, query, gallery = data.plan[1:4]
    assert set(train.pid) == {1, 2, 3} and set(query.pid) == {4, 5, 6}
    assert set(query.camid) == {1} and set(gallery.camid) == {2}
    for images in (train, query, gallery):
        np.testing.assert_array_equal(images.low, images.camid == 1)
        np.testing.assert_array_equal(images.has_hr, ~images.low | (images.pid % 3 > 0))
        np.testing.assert_array_equal(
            images.original != images.record, images.low & images.has_hr
        )
        shot = np.array([int(name[-5]) for name in images.name])
        np.testing.assert_array_equal(images.scale, np.where(images.low, 2 + shot, 1))
        assert set(images.width) == {12}  # as stored
    for images, name in ((train, "2_1"), (query, "5_1")):
        expected = (tmp_path / "own" / "originals" / f"{name}.jpg").read_bytes()
        found = original_of(data, images, f"pictures/{name[0]}_c1_{name[2]}.jpg")
        assert found == expected
    everything = {*train.name, *query.name, *gallery.name}
    assert len(data.source) == 24 + 8 and len(everything) == 24
    assert not [name for name in everything if name.startswith("originals")]
    assert data.plan.num_set_aside == 0


def test_the_roles_of_a_table_with_pairs_count(open_pairs):
    plan = open_pairs(columns=f"{PAIRED},role").plan
    for images, shot in ((plan.query, "0"), (plan.gallery, "1")):
        assert {name[-5] for name in images.name} == {shot}
        assert set(images.low) == {True, False}
    assert plan.train.low.any()


def test_pairs_without_a_split_halve_the_identities(open_pairs):
    plan = open_pairs(columns="pid,camid,path,scale,original", val_ids=0).plan
    assert plan.num_classes == 3 == len(set(plan.query.pid))
    assert plan.query.low.all() and not plan.gallery.low.any()
    assert plan.num_set_aside == 0


def test_held_out_pairs_are_searched_as_the_tested_ones_are(open_pairs):
    change = every(",test", ",train")
    data = open_pairs(lambda lines: [*change(lines[:17]), *lines[17:]], val_ids=2)
    assert data.plan.val_query.low.all() and not data.plan.val_gallery.low.any()
    assert len(set(data.plan.val_query.pid)) == 2


def test_an_original_may_have_a_line_of_its_own(open_pairs):
    data = open_pairs(replace(1, "originals/1_0", "./pictures/1_c2_0"))
    train = data.plan.train
    (row,) = np.flatnonzero(train.name == "pictures/1_c2_0.jpg")
    (paired,) = np.flatnonzero(train.name == "pictures/1_c1_0.jpg")
    assert train.original[paired] == train.record[row] == train.original[row]
    assert len(data.source) == 24 + 7 and not train.low[row]


def test_a_picture_with_an_original_alone_is_low_resolution(open_pairs):
    train = open_pairs(replace(1, ",2,originals", ",,originals")).plan.train
    (row,) = np.flatnonzero(train.name == "pictures/1_c1_0.jpg")
    assert train.low[row] and train.has_hr[row] and train.scale[row] == 1


def test_scales_may_be_fractions_and_in_the_names(open_pairs, open_own, write_folder):
    train = open_pairs(replace(1, ",2,originals", ",2.5,originals")).plan.train
    assert train.scale[train.name == "pictures/1_c1_0.jpg"] == 2.5
    pattern = r"pictures/(?P<pid>\d)_c(?P<camid>(?P<scale>\d))_\d\.jpg"
    top = write_folder()
    shutil.rmtree(top / "originals")
    query = open_own(top, "paired_folder", pattern=pattern).plan.query
    assert set(query.camid) == {2} == set(query.scale) and not query.has_hr.any()


def test_other_protocols_do_not_look_at_pairs(open_own, write_folder):
    data = open_own(write_folder(PAIRED))
    for images in data.plan[1:4]:
        assert not images.low.any()
        np.testing.assert_array_equal(images.original, images.record)
    assert len(data.plan.query.pid) == 6 == len(data.plan.gallery.pid)


def test_the_manifest_knows_scales_and_originals_but_not_empty_columns(
    open_own, write_folder
):
    top = write_folder(PAIRED)
    changes = (
        lambda lines: lines,
        replace(1, ",2,originals", ",2.5,originals"),
        replace(1, "originals/1_0", "originals/1_1"),
    )
    hashes, lines = set(), (top / "images.csv").read_text().splitlines()
    for change in changes:
        rewrite(top, lambda _, change=change: change(lines))
        manifest = open_own(top, "paired_folder").manifest
        hashes.add(manifest["protocol"]["dataset"])
        hashes.add(manifest["sha256"])
    assert len(hashes) == 2 * len(changes)
    plain = [",".join(line.split(",")[:4]) for line in lines]
    rewrite(top, lambda _: plain)
    manifest = open_own(top).manifest
    rewrite(top, lambda _: [lines[0], *(f"{line},," for line in plain[1:])])
    assert open_own(top).manifest == manifest


def test_a_table_without_low_resolution_pictures_is_no_paired_folder(
    open_own, write_folder
):
    with pytest.raises(
        ValueError, match=r"paired_folder found no low-resol.* folder/.*columns scale"
    ):
        open_own(write_folder("pid,camid,path,split"), "paired_folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replace(1, "originals/1_0", "pictures/../pictures/1_c1_0"),
            r"line 2: expected the path",
        ),
        (
            replace(1, "originals/1_0", "./pictures/1_c1_0"),
            r"line 2: expected another picture as the original of pictures/1_c1_0\.jpg",
        ),
        (
            replace(1, "originals/1_0", "originals/1_9"),
            r"line 2: originals/1_9\.jpg is not in .*own",
        ),
        (
            replace(1, "originals/1_0", "pictures/1_c1_1"),
            r"line 2: expected an original at full .* found pictures/1_c1_1\.jpg, wh",
        ),
        (
            replace(1, "originals/1_0", "pictures/3_c1_0"),  # has a scale alone
            r"line 2: expected an original at full .* found pictures/3_c1_0\.jpg, wh",
        ),
        *(
            (
                replace(1, ",2,originals", f",{scale},originals"),
                rf"line 2: expected as the scale of pictures/1_c1_0\.jpg .* '{scale}'",
            )
            for scale in ("x2", "0.5", "nan", "inf")
        ),
    ],
)
def test_pairs_that_cannot_be_are_refused_by_line(open_pairs, change, message):
    with pytest.raises(ValueError, match=rf"images\.csv, {message}"):
        open_pairs(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replace(1, "originals/1_0", "originals/4_0"),
            r"images pictures/1_c1_0\.jpg of train are also in query",
        ),
        (
            replace(1, "originals/1_0", "pictures/4_c2_0"),
            r"images pictures/1_c1_0\.jpg of train are also in gallery",
        ),
        (
            replace(13, "originals/4_0", "pictures/1_c2_0"),
            r"images pictures/1_c2_0\.jpg of train are also in query",
        ),
        (
            replace(13, "originals/4_0", "pictures/4_c2_0"),
            r"images pictures/4_c1_0\.jpg of query are also in gallery",
        ),
    ],
)
def test_an_original_that_is_seen_on_another_side_is_a_leak(
    open_pairs, change, message
):
    with pytest.raises(ValueError, match=f"leaks: the {message}.*or as originals"):
        open_pairs(change)


def test_a_copy_of_an_original_is_a_leak_on_another_side_only(open_own, write_folder):
    top = write_folder(PAIRED)
    copy = top / "originals" / "1_1.jpg"
    copy.write_bytes((top / "originals" / "1_0.jpg").read_bytes())
    assert open_own(top, "paired_folder").plan.num_classes == 3
    copy.write_bytes((top / "originals" / "5_1.jpg").read_bytes())
    with pytest.raises(
        ValueError, match=r"pictures/1_c1_1\.jpg of train are also in q"
    ):
        open_own(top, "paired_folder")


def test_a_damaged_original_counts_as_a_damaged_picture(open_own, write_folder):
    top = write_folder(PAIRED)
    (top / "originals" / "2_1.jpg").write_bytes(b"")
    damaged = "pictures/2_c1_1.jpg's original originals/2_1.jpg"
    data = open_own(top, "paired_folder")
    assert data.quarantined == [damaged]
    assert "pictures/2_c1_1.jpg" not in data.plan.train.name
    with pytest.raises(ValueError, match=rf"{damaged}: not a .* at most 0"):
        open_own(top, "paired_folder", max_quarantined=0)
    (top / "originals" / "5_1.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"5_c1_1\.jpg's original originals/5_1\.jpg: not a"
    ):
        open_own(top, "paired_folder")


def test_a_damaged_training_picture_is_left_out_and_a_searched_one_refused(
    open_own, write_folder
):
    top = write_folder("pid,camid,path,split")
    (top / "pictures" / "2_c1_1.jpg").write_bytes(b"")
    data = open_own(top)
    assert data.quarantined == ["pictures/2_c1_1.jpg"]
    assert "pictures/2_c1_1.jpg" not in data.plan.train.name
    path = top / "pictures" / "5_c1_1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"5_c1_1\.jpg: not a readable image"):
        open_own(top)


def test_a_searched_side_without_any_match_is_refused(open_own, write_folder):
    top = write_folder()
    rewrite(top, lambda lines: [lines[0], *lines[1::2]])  # one picture in each camera
    with pytest.raises(ValueError, match=r"none of the 6 images of query has a match"):
        open_own(top)


def every(old, new):
    return lambda lines: [line.replace(old, new) for line in lines]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (every("1,1,", "minus,1,"), None),
        (lambda lines: [f"{line}  " for line in lines], None),
        (lambda lines: [*every("1,1,", "-1,1,")(lines[:3]), *lines[5:]], None),
        (
            lambda lines: [*every("1,1,", "-1.0,1,")(lines[:3]), *lines[5:]],
            "expected identities below 0",
        ),
        (every(",2,", ",-1,"), "expected cameras from 0 on"),
        (every(",", ";"), "divided by commas, in its first line"),
        (every("/", "\\"), "folders are divided by /"),
    ],
)
def test_tables_as_people_write_them(open_own, write_folder, change, message):
    top = write_folder()
    rewrite(top, change)
    if message:
        with pytest.raises(ValueError, match=message):
            open_own(top)
    else:
        data = open_own(top)
        assert min(*data.plan.train.pid, *data.plan.query.pid) >= 0


def test_a_table_in_another_encoding_is_refused(open_own, write_folder):
    top = write_folder()
    table = "pid,camid,path\n1,1,pictures/Jörg.jpg\n"
    (top / "images.csv").write_text(table, encoding="latin-1")
    with pytest.raises(ValueError, match=r"images\.csv: expected a table in UTF-8"):
        open_own(top)


def test_a_table_of_excel_is_read(open_own, write_folder):
    top = write_folder()
    text = (top / "images.csv").read_text()
    (top / "images.csv").write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert open_own(top).plan.num_classes == 3


def test_a_table_elsewhere_names_pictures_of_the_folder(open_own, write_folder):
    top = write_folder()
    (top / "meta").mkdir()
    (top / "images.csv").rename(top / "meta" / "people.csv")
    assert open_own(top, table="meta/people.csv").plan.num_classes == 3


def test_two_folders_of_the_same_names_sizes_and_times_are_two(
    open_own, write_folder, tmp_path
):
    top, digests = write_folder(), []
    for shade in (0, 100):
        for number, path in enumerate(sorted(top.rglob("*.jpg"))):
            Image.new("RGB", (8, 16), (number, shade, 0)).save(path, format="bmp")
            os.utime(path, (0, 0))
        os.utime(top / "images.csv", (0, 0))
        digests.append(open_own(top).manifest["sha256"])
        if shade == 0:
            top = shutil.copytree(top, tmp_path / "copy")
    assert len(set(digests)) == 2


def test_pictures_behind_a_link_and_of_other_formats_count(open_own, write_folder):
    top = write_folder()
    (top / "images.csv").unlink()
    (top / "pictures").rename(top.parent / "linked")
    (top / "pictures").symlink_to(top.parent / "linked")
    path = top / "pictures" / "6_c2_1.jpg"
    Image.open(path).save(path.with_suffix(".webp"), lossless=True)
    path.unlink()
    pattern = r"pictures/(?P<pid>\d)_c(?P<camid>\d)_\d\.(jpg|webp)"
    data = open_own(top, pattern=pattern)
    names = {*data.plan.train.name, *data.plan.query.name, *data.plan.gallery.name}
    assert len(names) == 24 and "pictures/6_c2_1.webp" in names
