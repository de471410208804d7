"""Imported weights into a network: every name is used, every leaf is filled."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Table = tuple[tuple[str, str], ...]


def merge(
    variables: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    table: Table,
    *,
    skip: str = "",
) -> dict[str, Any]:
    """The variables with their values taken from weights of PyTorch.

    Kernels of convolutions become (k, k, C_in / groups, C_out) from PyTorch's
    (C_out, C_in / groups, k, k), those of dense layers (C_in, C_out) from its
    (C_out, C_in); all else is taken as it is.

    Args:
      variables: of a Flax module; their arrays, or the shapes that `jax.eval_shape`
        gives, are not changed.
      weights: {name: array}, of `load_torch` for example.
      table: rows (pattern, path). Every row whose regular expression matches all of a
        name says which variable it fills, as "params/stem/conv/kernel"; `\\1` stands
        for the pattern's first group. The path "" drops the weight.
      skip: regular expression of paths that are left alone: these variables keep their
        values, and weights for them are dropped.

    Returns:
      New variables of the same tree, shapes and types.

    Raises:
      ValueError: if names are left over on either side, or shapes differ; the message
        lists all of them with their shapes.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    merged, sources, problems = dict(flat), {}, []
    for name, weight in weights.items():
        paths = find_paths(name, table)
        if not paths:
            problems.append(f"{name} {weight.shape}: not in the table")
        for path in paths:
            if path == "" or re.fullmatch(skip, path):
                continue
            if path not in flat:
                problems.append(f"{name} {weight.shape}: the network has no {path}")
            elif path in sources:
                problems.append(f"{name}: fills {path}, which {sources[path]} fills")
            else:
                sources[path] = name
                value = to_flax_layout(path, weight)
                if value.shape != flat[path].shape:
                    problems.append(
                        f"{name}: {path} has shape {flat[path].shape}, found "
                        f"{value.shape}"
                    )
                merged[path] = jnp.array(value, flat[path].dtype)
    problems += [
        f"{path} {x.shape}: not in the weights"
        for path, x in flat.items()
        if path not in sources and not re.fullmatch(skip, path)
    ]
    if problems:
        raise ValueError(
            "the weights do not fit the network; choose another file or network, or "
            "skip what may differ:\n" + "\n".join(f"  {line}" for line in problems)
        )
    return traverse_util.unflatten_dict(merged, sep="/")


def find_paths(name: str, table: Table) -> list[str]:
    """The paths that a weight fills, "" where it is dropped; none if no row matches."""
    matches = ((re.fullmatch(pattern, name), path) for pattern, path in table)
    return [match.expand(path) for match, path in matches if match]


def to_flax_layout(path: str, weight: np.ndarray) -> np.ndarray:
    """A weight of PyTorch as Flax lays out the variable at this path."""
    if path.endswith("/kernel"):
        if weight.ndim == 4:
            return weight.transpose(2, 3, 1, 0)
        if weight.ndim == 2:
            return weight.T
    return weight
