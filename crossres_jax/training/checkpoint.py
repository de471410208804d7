"""Checkpoints of a run, with a digest of every file: the only user of Orbax.

    checkpoints/1000/             the state after step 1000, as Orbax writes it, and
    checkpoints/1000/SHA256SUMS   a digest of every file in it, as `sha256sum -c` reads
    checkpoints/1500.unfinished/  is being written, or was when the run was killed
    checkpoints/1000.damaged/     did not agree with its digests, and was set aside

Orbax alone loads a file with a flipped bit without a word. The digests are written
last, and only then is the folder given its name. No file is forced to the disk: what a
power cut leaves half-written does not agree with its digest.
"""

import concurrent.futures
import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from crossres_jax.training.writer import write_json

_log = logging.getLogger(__name__)


class Checkpoints:
    """The newest checkpoints of a run, and its best one where they have a score.

    A context manager: on leaving it, a save that is under way is finished.

    Args:
      directory: where they lie; made when the first one is saved.
      keep: how many of the newest are kept, at least 1; the best is kept besides.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self._directory = Path(directory).resolve()
        self._keep = keep
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._saving = None
        self._reported = set()  # damaged steps, so that each is named once

    def latest_step(self) -> int | None:
        """The newest step with an undamaged checkpoint, None if there is none.

        A damaged checkpoint is named in the log, with what is wrong with it.
        """
        self.wait()
        return next(filter(self._is_sound, reversed(self._steps())), None)

    def best_step(self) -> int | None:
        """The undamaged checkpoint with the highest score, of equals the first.

        None if no checkpoint has a score.
        """
        self.wait()
        return self._best(self._steps())

    def save(self, step: int, state, score: float | None = None) -> None:
        """Saves in the background; waits first for a save that is under way.

        Args:
          step: the number of the checkpoint.
          state: a tree of arrays; it may be donated as soon as this function returns.
          score: of the state on validation identities, for `best_step`.

        Raises:
          OSError: if the save under way failed, on a full disk for example.
        """
        self.wait()
        # A copy, which NumPy's view of an array on the CPU would not be.
        state = jax.tree.map(np.array, state)
        self._saving = self._background.submit(self._write, step, state, score)

    def wait(self) -> None:
        """Waits for the save under way, and raises OSError if it failed."""
        if self._saving:
            saving, self._saving = self._saving, None
            saving.result()

    def load(self, step: int, like):
        """The state at a step, placed as `like`, a tree of arrays or of their shapes.

        Raises:
          ValueError: if the checkpoint's tree or shapes differ from `like`'s; the
            message lists every difference.
        """
        folder = self._folder(step)
        _check_same_tree(ocp.metadata(folder).metadata, like)
        return ocp.load(folder, like)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._background.shutdown()

    # --- In the background.

    def _write(self, step, state, score):
        unfinished = self._folder(f"{step}.unfinished")
        try:
            self._remove_unfinished()  # of a killed run
            self._set_aside(step)
            self._check_room(state)
            ocp.save(unfinished, state)
            if score is not None:
                write_json(unfinished / "score.json", score)
            _write_digests(unfinished)
            unfinished.rename(self._folder(step))
        except (OSError, ValueError) as error:  # TensorStore raises ValueError
            self._remove_unfinished()  # the room may be wanted
            raise OSError(
                f"the checkpoint of step {step} could not be written to "
                f"{self._directory}: {error}. The one before is intact: make room, or "
                "make the folder writable, and start again."
            ) from error
        self._remove_old()

    def _check_room(self, state):
        """Orbax, when the disk fills under it, floods the log from its own threads."""
        self._directory.mkdir(parents=True, exist_ok=True)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        wanted = size + size // 4 + 2**18  # chunks, names and digests come on top
        free = shutil.disk_usage(self._directory).free
        if free < wanted:
            reason = os.strerror(errno.ENOSPC)
            raise OSError(f"{reason} ({free:,} bytes free, {wanted:,} wanted)")

    def _remove_unfinished(self):
        for leftover in self._directory.glob("*.unfinished*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, step):
        """Renames checkpoints of this step or later, which nobody could go on from."""
        for later in self._steps():
            if later >= step:
                aside = self._folder(f"{later}.damaged")
                if aside.exists():
                    shutil.rmtree(aside)
                self._folder(later).rename(aside)

    def _remove_old(self):
        steps = self._steps()
        kept = {*steps[-self._keep :], self._best(steps)}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self._folder(step))

    # --- What lies there.

    def _folder(self, name) -> Path:
        return self._directory / str(name)

    def _steps(self) -> list[int]:
        if not self._directory.exists():
            return []
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def _best(self, steps) -> int | None:
        files = {step: self._folder(step) / "score.json" for step in steps}
        scores = {
            step: json.loads(file.read_text())
            for step, file in files.items()
            if file.exists() and self._is_sound(step)  # a damaged one may say anything
        }
        return max(scores, key=scores.get, default=None)

    def _is_sound(self, step) -> bool:
        damage = _find_damage(self._folder(step))
        if damage and step not in self._reported:
            self._reported.add(step)
            _log.warning(
                "The checkpoint %s is damaged and is not used: %s.",
                self._folder(step),
                damage,
            )
        return not damage


def _write_digests(folder):
    (folder / "SHA256SUMS").write_bytes(_listing(_digests(folder)))


def _find_damage(folder) -> str:
    """What is wrong with a checkpoint, "" if nothing is."""
    try:
        listing = (folder / "SHA256SUMS").read_bytes()
        found = _digests(folder)
    except FileNotFoundError:
        return "it has no SHA256SUMS, so its writing was not finished"
    except OSError as error:  # a bad sector, for example
        return f"it cannot be read ({error})"
    if listing == _listing(found):
        return ""
    lines = (
        line.partition("  ") for line in listing.decode(errors="replace").split("\n")
    )
    listed = {name: digest for digest, _, name in lines}
    problems = [f"{name} is missing" for name in listed if name and name not in found]
    for name, digest in found.items():
        if name not in listed:
            problems.append(f"{name} is not listed in SHA256SUMS")
        elif digest != listed[name]:
            problems.append(f"{name} has another SHA-256")
    return ", ".join(problems[:3]) or "SHA256SUMS is not as it was written"


def _listing(digests) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def _digests(folder) -> dict[str, str]:
    """{path within the folder: SHA-256} of every file but SHA256SUMS itself."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.relative_to(folder).as_posix()] = digest
    digests.pop("SHA256SUMS", None)
    return digests


def _check_same_tree(found, like) -> None:
    found, expected = _shapes(found), _shapes(like)
    differences = [
        f"  {name}: expected {expected.get(name, 'nothing')}, "
        f"found {found.get(name, 'nothing')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise ValueError(
            "the checkpoint belongs to another network or optimiser:\n"
            + "\n".join(differences)
        )


def _shapes(tree) -> dict[str, tuple]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _name(key) -> str:
    """The bare name of one step into a tree, whatever kind of container it enters."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"expected a dict, an attribute or a sequence key, found {key!r}")
