"""What a run starts from: fresh variables, or those of a published backbone."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from crossres_jax.methods.contract import Method, Variables
from crossres_jax.pretrained import load_torch, merge


def import_backbone(
    variables: Variables, weights: Mapping[str, np.ndarray], method: Method
) -> dict:
    """The variables with a backbone's weights in the components that start from it.

    Args:
      variables: of the method, or the shapes that `jax.eval_shape` gives.
      weights: {name: array}, of `load_torch`.
      method: whose `backbone` says where they go.

    Returns:
      New variables.

    Raises:
      ValueError: if the method has no backbone, or the weights do not fit it.
    """
    if method.backbone is None:
        raise ValueError("the method has no backbone that weights could be read into.")
    imported = {kind: dict(components) for kind, components in variables.items()}
    for name, table in method.backbone.components.items():
        component = {kind: x[name] for kind, x in variables.items() if name in x}
        merged = merge(component, weights, table, skip=method.backbone.skip)
        for kind, tree in merged.items():
            imported[kind][name] = tree
    return imported


def read_weights(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str]:
    """The weights of a file, and the SHA-256 of its bytes in hexadecimal digits.

    Raises:
      ValueError: if it is not a file of weights.
      OSError: if it cannot be read.
    """
    return load_torch(path), hashlib.sha256(Path(path).read_bytes()).hexdigest()
