"""Checkpoints of a run: the only file that imports Orbax."""

import os
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """The newest checkpoints of a run, one folder per step, committed atomically.

    A context manager: on leaving it, a save that is under way is finished.

    Args:
      directory: where they lie; made when the first one is saved.
      keep: how many of the newest are kept.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        policies = ocp.training.preservation_policies
        saves = ocp.training.save_decision_policies
        self._checkpointer = ocp.training.Checkpointer(
            Path(directory).resolve(),
            preservation_policy=policies.LatestN(keep),
            save_decision_policy=saves.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        """The newest step with a committed checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state) -> None:
        """Saves in the background; waits first for a save that is under way."""
        self._checkpointer.wait()
        self._checkpointer.save_async(step, state)

    def load(self, step: int, like):
        """The state at a step, placed as `like`, a tree of arrays or of their shapes.

        Raises:
          ValueError: if the checkpoint's tree or shapes differ from `like`'s; the
            message lists every difference.
        """
        _check_same_tree(self._checkpointer.metadata(step).metadata, like)
        return self._checkpointer.load(step, like)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()


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
