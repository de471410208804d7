"""Anyone's own pictures: a folder with a table, or with names that follow a pattern."""

import collections
import csv
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, records

ROLES = ("train", "query", "gallery", "distractor", "test")


class Row(NamedTuple):
    """One picture."""

    path: str  # in the folder, with /
    pid: int
    camid: int  # −1 where cameras are not known
    role: str  # as in `records.Index`, or "original": of another picture, and no more
    original: str = ""  # path of the same at full resolution, '' where there is none
    scale: float = 1.0  # as in `records.Pairs`


@dataclasses.dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Which pictures, from where."""

    folder: str
    rows: tuple[Row, ...] = dataclasses.field(repr=False)


class Folder(tfds.core.GeneratorBasedBuilder):
    """Pictures of a folder; `open_folder` says which."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return records.dataset_info(self, "Pictures of a folder.")

    def _split_generators(self, dl_manager):
        return records.split_generators(self, self._generate_examples())

    def _generate_examples(self):
        folder = Path(self.builder_config.folder)
        for key, row in enumerate(self.builder_config.rows):
            yield (
                key,
                records.record(
                    row.path,
                    (folder / row.path).read_bytes(),
                    pid=row.pid,
                    camid=row.camid,
                    role=row.role,
                ),
            )


def open_folder(
    folder: str,
    *,
    table: str,
    pattern: str,
    no_camera: bool,
    cache_dir: str | None,
) -> Folder:
    """The builder of the pictures of a folder, anew whenever one of them changes.

    Args:
      folder: where the pictures lie, in folders of it or not.
      table: name of a CSV file in it, whose columns are `pid`, `camid`, `path` and, if
        there is a split, `split` (train, test) and `role` (query, gallery, distractor),
        and, of low-resolution pictures, `scale` (as in `records.Pairs`) and `original`
        (path of the same at full resolution, with a line of its own or without).
        Identities and cameras are whole numbers (identities below 0 are junk), or text,
        which is numbered from 0 in sorted order.
      pattern: regex of the paths in the folder, with the named groups `pid` and `camid`
        and perhaps `split`, `role` and `scale`; if given, all pictures count and no
        table is read.
      no_camera: whether cameras are not known; `camid` is then not looked at.
      cache_dir: where built data sets are kept, None for TFDS's own place.

    Returns:
      A builder for `records.open_records`.

    Raises:
      ValueError: naming the file, and the line or picture, if the table or the pattern
        does not tell what is needed.
    """
    top = Path(folder or ".")
    if not folder or not top.is_dir():
        raise ValueError(
            f"{folder or 'config.data.dir'}: expected the folder with your pictures. "
            "Name it by --config.data.dir."
        )
    columns = ("path", "pid") if no_camera else ("path", "pid", "camid")
    if pattern:
        told, place = _match_names(top, pattern, columns), "config.data.pattern"
    else:
        told, place = _read_table(top, table, columns), str(top / table)
    rows = _rows(told, place, no_camera)
    state = [str(top.resolve())]
    for row in rows:
        file = (top / row.path).stat()
        stored = (row.path, row.pid, row.camid, row.role)  # not who is whose original
        state.append([*stored, file.st_size, file.st_mtime_ns, file.st_ctime_ns])
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    config = FolderConfig(name=key, folder=str(top), rows=rows)
    return Folder(config=config, data_dir=cache_dir)


def find_pairs(rows: tuple[Row, ...]) -> records.Pairs | None:
    """The pairs of a folder's rows; None where nothing is low-resolution."""
    if not any(row.original or row.scale > 1 for row in rows):
        return None
    position = {row.path: i for i, row in enumerate(rows)}
    return records.Pairs(
        original=np.array([position[row.original or row.path] for row in rows]),
        scale=np.array([row.scale for row in rows]),
    )


def fingerprint(index: records.Index, pairs: records.Pairs | None = None) -> str:
    """What a folder holds, in 16 hexadecimal digits: the same on every machine."""
    columns = (index.name, index.pid, index.camid, index.role, index.sha256)
    if pairs:
        columns += (index.name[pairs.original], pairs.scale)
    rows = sorted(zip(*(column.tolist() for column in columns), strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _read_table(folder, table, columns):
    """{line: {column: text}} of a CSV file."""
    path = folder / table
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file, expected a table of your pictures with the columns "
            f"{', '.join(columns)} and perhaps split, role, scale, original. Write it, "
            "name another by --config.data.table, or give --config.data.pattern."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            found = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = found
            lines = {f"line {reader.line_num}": row for row in reader}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: expected a table in UTF-8, columns divided by commas ({error})."
        ) from error
    if missing := [column for column in columns if column not in found]:
        advice = (
            " Where no cameras are known, say --config.data.no_camera=True."
            if missing == ["camid"]
            else ""
        )
        raise ValueError(
            f"{path}: expected the columns {', '.join(columns)}, divided by commas, in "
            f"its first line, found {', '.join(found) or 'nothing'}: add "
            f"{', '.join(missing)}.{advice}"
        )
    told = {}
    for line, cells in lines.items():
        row = {column: (cells[column] or "").strip() for column in found if column}
        for picture in (row["path"], row.get("original") or row["path"]):
            name = Path(picture or "/")
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(
                    f"{path}, {line}: expected the path of a picture in {folder}, "
                    f"found {picture!r}."
                )
            if not (folder / name).is_file():
                raise ValueError(
                    f"{path}, {line}: {picture} is not in {folder}. Put the picture "
                    "there (folders are divided by /), or take the line out."
                )
        told[line] = row
    return told


def _match_names(folder, pattern, columns):
    """{path: {column: text}} of all pictures of a folder."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"config.data.pattern={pattern}: not a regular expression ({error})."
        ) from error
    if missing := [name for name in columns[1:] if name not in regex.groupindex]:
        raise ValueError(
            f"config.data.pattern={pattern}: expected the named groups "
            f"{', '.join(columns[1:])}, as in (?P<pid>\\d+)_c(?P<camid>\\d+).*, found "
            f"no {', '.join(missing)}. Where no cameras are known, say "
            "--config.data.no_camera=True."
        )
    told = {}
    for path in archives.walk(folder):
        if path.suffix.lower() not in archives.PICTURES or path.name.startswith("._"):
            continue
        name = path.relative_to(folder).as_posix()
        match = regex.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{path}: expected {pattern} to match {name}, as all pictures of the "
                "folder. Move the picture elsewhere, or widen the pattern."
            )
        told[name] = {**match.groupdict(), "path": name}
    return told


def _rows(told, place, no_camera):
    """Rows, in the order of their paths, from {where: {column: text}}."""
    if not told:
        raise ValueError(f"{place}: expected pictures, found none.")
    for where, row in told.items():
        if empty := [x for x in ("pid", "camid") if x in row and not row[x]]:
            raise ValueError(f"{place}, {where}: expected a {empty[0]}, found none.")
    paths = [Path(row["path"]).as_posix() for row in told.values()]
    path, times = collections.Counter(paths).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{place}: expected each picture once, found {path} {times}×.")
    roles = [_role(row, f"{place}, {where}") for where, row in told.items()]
    if "" in roles and any(roles):
        where = list(told)[roles.index("")]
        raise ValueError(
            f"{place}, {where}: expected a split for every picture or for none, found "
            "none here."
        )
    pids = _numbers([row["pid"] for row in told.values()])
    if pids is None:
        raise ValueError(
            f"{place}: expected identities below 0 (junk) among whole numbers alone, "
            "found them beside text or fractions."
        )
    camids = [-1] * len(told)
    if not no_camera:
        camids = _numbers([row["camid"] for row in told.values()])
        if camids is None or min(camids) < 0:
            raise ValueError(
                f"{place}: expected cameras from 0 on, found some below. Where no "
                "cameras are known, say --config.data.no_camera=True."
            )
    originals, scales = zip(
        *(_pair(row, f"{place}, {where}") for where, row in told.items()), strict=True
    )
    rows = [*map(Row, paths, pids, camids, roles, originals, scales)]
    listed = {row.path: row for row in rows}
    for where, row in zip(told, rows, strict=True):
        original = listed.get(row.original)
        if original and (original.original or original.scale > 1):
            raise ValueError(
                f"{place}, {where}: expected an original at full resolution, found "
                f"{row.original}, which has a scale or an original of its own: name "
                "its original here, or empty these two cells of its line."
            )
    unlisted = {*originals} - {"", *listed}
    rows += (Row(path, -1, -1, "original") for path in unlisted)
    return tuple(sorted(rows))


def _role(row, where):
    split, role = (row.get(name) or "" for name in ("split", "role"))
    if split not in ("", "train", "test") or role not in ("", *ROLES):
        raise ValueError(
            f"{where}: expected a split of train or test and a role of "
            f"{', '.join(ROLES)}, found {split!r} and {role!r}."
        )
    if (split == "train" and role not in ("", "train")) or (
        split == "test" and role == "train"
    ):
        raise ValueError(
            f"{where}: the split {split} does not go with the role {role}."
        )
    return role or split


def _pair(row, where):
    """(path of the original or '', scale) of a picture."""
    original, text = (row.get(name) or "" for name in ("original", "scale"))
    if original:
        original = Path(original).as_posix()
    if original == Path(row["path"]).as_posix():
        raise ValueError(
            f"{where}: expected another picture as the original of {original}, found "
            "itself. Leave the cell empty where there is none."
        )
    try:
        scale = float(text or 1)
    except ValueError:
        scale = math.nan
    if not 1 <= scale < math.inf:
        raise ValueError(
            f"{where}: expected as the scale of {row['path']} how much smaller than "
            f"its original it is, a number from 1 on, or nothing, found {text!r}."
        )
    return original, scale


def _numbers(texts):
    """The texts as numbers or, if one of them is none, numbered in sorted order.

    None, if they would then hide a number below 0.
    """
    if all(re.fullmatch(r"-?\d{1,9}", text) for text in texts):
        return [int(text) for text in texts]
    if any(re.match(r"-\d", text) for text in texts):
        return None
    order = {text: number for number, text in enumerate(sorted(set(texts)))}
    return [order[text] for text in texts]
