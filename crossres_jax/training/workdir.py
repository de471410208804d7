"""The folder of a run: which config and protocol it belongs to."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

from crossres_jax.training.writer import write_json

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    *("tensorflow", "tensorflow-cpu", "tensorflow-datasets"),
)

LOCK = "lock"
BEFORE_A_RUN = {LOCK, "config.json.tmp"}  # what a start that was killed may leave

# What may differ between two starts of a run, because no weight depends on it.
FREE = (
    *("config.data.dir", "config.data.cache_dir", "config.data.eval_batch_size"),
    *("config.train.log_every_steps", "config.train.keep_checkpoints"),
    *("config.train.max_rollbacks", "config.evaluation"),
)


def resolve(wanted: dict | None, workdir: Path, mode: str) -> dict:
    """The config of the run in a folder, before anything is written.

    Args:
      wanted: the config asked for; None to take the one of the run that is there.
      workdir: the folder of the run; it need not exist.
      mode: "train" or "evaluate".

    Returns:
      The config to run.

    Raises:
      ValueError: if the folder holds a run of another config or something else, or if
        there is nothing to evaluate.
    """
    path = workdir / "config.json"
    if path.exists():
        stored = _read(path).get("config")
        if not isinstance(stored, dict):
            raise ValueError(f"{path} is no run's; choose another --workdir.")
        if differences := list(differing(stored, wanted or stored)):
            raise ValueError(
                f"{workdir} holds a run of another config:\n  "
                + "\n  ".join(differences)
                + "\nNothing was changed. Choose another --workdir, or give the run's "
                "own config."
            )
        return wanted or stored
    imported = (wanted or {}).get("init", {}).get("backbone")
    if not wanted or (mode == "evaluate" and not imported):
        raise ValueError(
            f"{workdir} holds no run (no config.json). "
            + (
                "--mode=evaluate needs a finished one (train it first, without --mode) "
                "or weights to evaluate (--config.init.backbone=FILE)."
                if wanted
                else "Give --config=configs/METHOD.py, or the --workdir of a run."
            )
        )
    if workdir.exists() and {path.name for path in workdir.iterdir()} - BEFORE_A_RUN:
        raise ValueError(
            f"{workdir} is not empty and holds no run; choose another --workdir."
        )
    return wanted


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the folder of a run, which is made if need be.

    The lock ends with the process, however it ends.

    Raises:
      ValueError: if another process holds it, or the folder cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("a+")
    except OSError as error:
        raise ValueError(
            f"{workdir} cannot be written to ({error.strerror}); make it writable, or "
            "choose another --workdir."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{workdir} is in use by {file.read() or 'another process'}. Wait for "
                "it, stop it, or choose another --workdir."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def begin(
    workdir: Path,
    config: dict,
    manifest: dict,
    source: Path,
    weights: str | None = None,
) -> str | None:
    """Writes what a run is, after a check that the folder is not another run's.

    Args:
      workdir: the folder, locked.
      config: goes into `config.json`, with the package versions and the git ids of
        `source` that have worked on the run so far.
      manifest: goes into `manifest.json`.
      source: a folder of the checkout that runs.
      weights: SHA-256 of the file that the run starts from, goes into `config.json`;
        None if there is none, or it is not there any more.

    Returns:
      SHA-256 of the file that the run started from, if it did.

    Raises:
      ValueError: if the folder was begun under another config or manifest, or from
        other weights.
    """
    resolve(config, workdir, "train")  # again: it may have been begun since
    run, protocol = workdir / "config.json", workdir / "manifest.json"
    if protocol.exists():
        before, now = _read(protocol), json.loads(json.dumps(manifest))
        if differences := list(differing(before, now, "manifest")):
            raise ValueError(
                f"{workdir} was begun under another protocol:\n  "
                + "\n  ".join(differences)
                + "\nNothing was changed. Go back to the data and the code of that "
                "run, or choose another --workdir."
            )
    stored = _read(run) if run.exists() else {}
    if weights and stored.get("weights", weights) != weights:
        raise ValueError(
            f"{workdir} was begun from other weights: {config['init']['backbone']} had "
            f"the SHA-256 {stored['weights']}, now it has {weights}. Nothing was "
            "changed. Choose another --workdir."
        )
    weights = weights or stored.get("weights")
    versions = stored.get("versions", [])
    if (now := _versions(source)) not in versions:
        versions.append(now)
    started = {"weights": weights} if weights else {}
    write_json(run, {"config": config, **started, "versions": versions})
    write_json(protocol, manifest)
    return weights


def differing(stored, wanted, path="config") -> Iterator[str]:
    """Lines that name every value but the `FREE` ones in which two dicts differ."""
    if path in FREE:
        return
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            yield from differing(stored.get(key), wanted.get(key), f"{path}.{key}")
    elif stored != wanted:
        yield f"{path}: the run has {stored!r}, now it is {wanted!r}"


def _read(path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}). Restore it, or choose another --workdir."
        ) from error


def _versions(source):
    command = ["git", "-C", source, "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        git = ""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git.strip() or None,
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
