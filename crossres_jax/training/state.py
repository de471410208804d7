"""The state of a training run, and which part of it a phase trains."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct, traverse_util


@struct.dataclass
class TrainState:
    """Everything that a train step reads and writes.

    Attributes:
      step: () int32, steps done in the current phase, skipped ones included.
      params: component → parameters, of all components.
      batch_stats: component → running statistics, of all components.
      opt_state: optimiser state of the part that the current phase trains.
      skipped: () int32, steps of this phase whose update was skipped as not finite.
      skipped_in_a_row: () int32, how many of the latest steps were skipped.
      rollbacks: () int32, how often the run has gone back to a checkpoint.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    rollbacks: jax.Array


def split(params: Mapping, trains: str) -> tuple[dict, dict]:
    """Parameters → (trained, frozen), two trees that `merge` joins again.

    Args:
      params: component → nested dictionaries of arrays.
      trains: regex that matches the beginning of `component/module/…/name` at a whole
        name: `"l"` matches `l/fc1/kernel` and not `lr/kernel`.

    Raises:
      ValueError: if nothing matches.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {path: x for path, x in flat.items() if matches(trains, path)}
    if not trained:
        raise ValueError(
            f"a phase trains {trains!r}, which matches no parameter; the components "
            f"are {', '.join(sorted(params))}."
        )
    frozen = {path: x for path, x in flat.items() if path not in trained}
    return (
        traverse_util.unflatten_dict(trained, sep="/"),
        traverse_util.unflatten_dict(frozen, sep="/"),
    )


def merge(trained: Mapping, frozen: Mapping) -> dict:
    """The inverse of `split`."""
    flat = traverse_util.flatten_dict(trained, sep="/")
    flat |= traverse_util.flatten_dict(frozen, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def matches(pattern: str, path: str) -> bool:
    """Whether the regex matches `path` up to a `/` or to its end."""
    return re.match(rf"({pattern})(/|$)", path) is not None
