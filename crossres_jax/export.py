"""A trained model as two files: `model.safetensors` and `card.json`.

The arrays lie under their Flax paths ("params/backbone/conv1/kernel"), as they are, so
that any reader of safetensors finds them. The card says how to build the method around
them and what they are worth: config, protocol, training data, scores.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from crossres_jax import methods
from crossres_jax.methods.contract import Method, Variables
from crossres_jax.pretrained import read_safetensors, write_safetensors
from crossres_jax.training.writer import write_json

MODEL, CARD = "model.safetensors", "card.json"
FORMAT = "crossres_jax 1"


class Exported(NamedTuple):
    """A model that was read back.

    Attributes:
      method: built as the card says; `method.embed(variables, images, role="query",
        resolution=np.ones(len(images)))` gives features.
      variables: `{"params", "batch_stats"}`, the same bits that were written.
      card: the card.
    """

    method: Method
    variables: Variables
    card: dict


def write_export(
    folder: str | os.PathLike,
    variables: Variables,
    *,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    num_classes: int,
    results: Mapping[str, Any],
) -> None:
    """Writes a model and its card, the card last; files of that name are replaced.

    Args:
      folder: made if need be.
      variables: `{"params", "batch_stats"}` of the method.
      config: of the run, its `method` with name and options included.
      manifest: of the protocol.
      num_classes: number of training identities.
      results: the scores.

    Raises:
      OSError: if they cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    temporary = folder / (MODEL + ".tmp")
    write_safetensors(temporary, arrays, {"format": FORMAT})
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    temporary.replace(folder / MODEL)
    card = {
        "format": FORMAT,
        "model_sha256": digest,
        "num_classes": num_classes,
        "config": config,
        "protocol": manifest["protocol"],
        "manifest_sha256": manifest["sha256"],
        "training_data": {
            "dataset": manifest["protocol"]["dataset"],
            **manifest["counts"]["train"],
        },
        "scores": results,
    }
    write_json(folder / CARD, card)


def read_export(folder: str | os.PathLike) -> Exported:
    """The model that `write_export` wrote.

    Raises:
      ValueError: if the folder holds no export, or a damaged one.
      OSError: if it cannot be read.
    """
    folder = Path(folder)
    if not (folder / CARD).exists():
        raise ValueError(
            f"{folder} holds no {CARD}; expected the folder `export` of a finished run."
        )
    try:
        card = json.loads((folder / CARD).read_text())
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, expected {FORMAT!r}")
        options = dict(card["config"]["method"])
        build = methods.load(options.pop("name"))
        digest, num_classes = card["model_sha256"], card["num_classes"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / CARD} is no card of a model: {error}.") from error
    found = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(
            f"{folder / MODEL} is damaged or another model's: expected the SHA-256 "
            f"{digest}, found {found}. Copy both files again."
        )
    arrays, _ = read_safetensors(folder / MODEL)
    variables = {"params": {}, "batch_stats": {}}
    variables |= traverse_util.unflatten_dict(arrays, sep="/")
    return Exported(build(num_classes, **options), variables, card)
