"""The files of a data set as its makers publish them: in an archive, or extracted."""

import functools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


def find_files(
    manual_dir: str | Path, archive: str, folder: str, instructions: str
) -> tuple[Path, dict[str, Callable[[], bytes]]]:
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
        file.relative_to(manual_dir).as_posix(): file.read_bytes
        for file in (manual_dir / folder).rglob("*")
        if file.is_file()
    }
    return manual_dir / folder if files else manual_dir, files


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


def _unharmed(path, instructions, read, argument):
    """`read(argument)`, where an error says which archive is damaged."""
    try:
        return read(argument)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): expected the complete {path.name}. "
            f"Download it again. {instructions}"
        ) from error
