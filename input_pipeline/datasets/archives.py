"""The files of a data set as its makers publish them: in an archive, or extracted."""

import contextlib
import errno
import functools
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
Found = tuple[Path, dict[str, Callable[[], bytes]]]  # where, {path: how to read it}
_DAMAGE = zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError
_DAMAGE += (RuntimeError,)  # a password, or a compression that Python does not know


class Counts(NamedTuple):
    """What a part of a data set holds."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images} images of {self.identities} identities"


def find_files(
    manual_dir: str | Path, archive: str, folder: str, instructions: str
) -> Found:
    """Finds the files of a data set, and leaves it to the caller which are read.

    Args:
      manual_dir: where the user has put the archive or what was extracted from it.
      archive: name of the archive (zip), which is preferred.
      folder: name of the folder that it holds.
      instructions: what the user is to do, for the error.

    Returns:
      Where the files are, for messages, and for each file of the data set its path,
      which begins with `folder`, and a function that reads it. Empty where neither
      archive nor folder is there.

    Raises:
      ValueError: here or in one of the functions, if the archive is damaged.
    """
    manual_dir = Path(manual_dir)
    path = manual_dir / archive
    if path.is_file():
        unharmed = functools.partial(_unharmed, path, instructions)
        content = unharmed(zipfile.ZipFile, path)
        return path, {
            name: functools.partial(unharmed, content.read, name)
            for name in content.namelist()
            if name.startswith(f"{folder}/") and not name.endswith("/")
        }
    files = {
        path.relative_to(manual_dir).as_posix(): path.read_bytes
        for path in walk(manual_dir / folder)
    }
    return manual_dir / folder if files else manual_dir, files


@contextlib.contextmanager
def open_files(
    manual_dir: str | Path, folder: str, instructions: str, *, scratch_dir: str | Path
) -> Iterator[Found]:
    """Finds the files of a data set whose archive may be a tar file.

    A compressed tar file can only be read from its beginning to its end. It is
    extracted, therefore, and what was extracted is deleted when the context ends.

    Args:
      manual_dir: as of `find_files`.
      folder: as of `find_files`; the archive is called after it, `FOLDER.tar.gz`, which
        is preferred, or `FOLDER.zip`.
      instructions: as of `find_files`.
      scratch_dir: the folder in which a tar file is extracted.

    Yields:
      What `find_files` returns.

    Raises:
      ValueError: as `find_files`.
    """
    path = Path(manual_dir, f"{folder}.tar.gz")
    if path.is_file():
        with tempfile.TemporaryDirectory(dir=scratch_dir) as extracted:
            _unharmed(path, instructions, functools.partial(_extract, path), extracted)
            _, files = find_files(extracted, f"{folder}.zip", folder, instructions)
            yield path, files
    else:
        yield find_files(manual_dir, f"{folder}.zip", folder, instructions)


def match_pictures(
    place: Path, paths: Iterable[str], folder: str, pattern: str, example: str
) -> list[re.Match]:
    """Reads what the names of a data set's pictures say, and refuses unknown names.

    Args:
      place: where the files are, for the error.
      paths: of all files, as from `find_files`.
      folder: regex of the folders whose pictures belong to the data set, with the last
        "/"; pictures elsewhere, and files that are no pictures, are left out.
      pattern: regex of the whole name of a picture in such a folder.
      example: of such a name, for the error.

    Returns:
      A match of `(folder)(pattern)` for each picture, in the order of their paths.

    Raises:
      ValueError: naming the file, if the name of a picture does not match.
    """
    matches = []
    for path in sorted(paths):
        match = re.fullmatch(folder + pattern, path)
        name = path.rpartition("/")[2]
        if match:
            matches.append(match)
        elif (
            re.fullmatch(f"{folder}[^/]*", path)
            and name.lower().endswith(PICTURES)
            and not name.startswith("._")  # macOS puts them beside every file
        ):
            raise ValueError(
                f"{path} in {place}: expected a name such as {example}. Give the file "
                "its official name, or move it out of the folder."
            )
    return matches


def check_complete(
    place: Path,
    title: str,
    folder: str,
    found: dict[str, Any],
    complete: dict[str, Any],
    instructions: str,
) -> None:
    """Checks that each part of a data set holds as much as the official one.

    Args:
      place: where the files are, for the error.
      title: of the data set, for the error.
      folder: that holds the parts, for the error.
      found: {part: what it holds}, as `Counts`.
      complete: {part: what it holds in the official data set}.
      instructions: what the user is to do, for the error.

    Raises:
      ValueError: naming the parts that hold something else.
    """
    wrong = [part for part in complete if found[part] != complete[part]]
    if wrong:
        raise ValueError(
            f"{place} is not the complete {title}: "
            + "; ".join(
                f"in {folder}/{part} expected {complete[part]}, found {found[part]}"
                for part in wrong
            )
            + f". {instructions}"
        )


def walk(folder: Path) -> list[Path]:
    """All files in a folder, in its folders, and where links lead, in sorted order."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def _extract(path, into):
    with tarfile.open(path) as archive:
        archive.extractall(into, filter="data")
        while archive.fileobj.read(2**20):  # gzip's checksum is at its very end
            pass


def _unharmed(path, instructions, read, argument):
    """`read(argument)`, where an error says which archive is damaged."""
    try:
        return read(argument)
    except _DAMAGE as error:
        if getattr(error, "errno", None) == errno.ENOSPC:  # while it was extracted
            raise
        raise ValueError(
            f"{path} is damaged ({error}): expected the complete {path.name}. "
            f"Replace it by an intact copy. {instructions}"
        ) from error
