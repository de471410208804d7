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
import numpy as np
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
    weights: str | None,
    manifest: Mapping[str, Any],
    num_classes: int,
    results: Mapping[str, Any],
) -> None:
    """Writes a model and its card, the card last; files of that name are replaced.

    Args:
      folder: made if need be.
      variables: `{"params", "batch_stats"}` of the method.
      config: of the run, its `method` with name and options included.
      weights: SHA-256 of the file that the training started from, if there is one.
      manifest: of the protocol.
      num_classes: number of training identities.
      results: the scores, with the `step` that they belong to; at step 0 nothing of the
        protocol has been trained on.

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
    trained_on = {
        "dataset": manifest["protocol"]["dataset"],
        **manifest["counts"]["train"],
    }
    card = {
        "format": FORMAT,
        "model_sha256": digest,
        "num_classes": num_classes,
        "config": config,
        "started_from_sha256": weights,
        "training_data": trained_on if results["step"] else None,
        "protocol": manifest["protocol"],
        "manifest_sha256": manifest["sha256"],
        "scores": results,
    }
    write_json(folder / CARD, card)


def read_export(folder: str | os.PathLike) -> Exported:
    """The model that `write_export` wrote.

    A method that the card names by a dotted path is imported from there.

    Raises:
      ValueError: if the folder holds no export, a damaged one, or a card that does not
        fit the arrays.
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
        method = methods.load(options.pop("name"))(card["num_classes"], **options)
        image_size, digest = card["config"]["data"]["image_size"], card["model_sha256"]
        expected = _shapes(method, image_size)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / CARD} is no card of a model: {error}.") from error
    found = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(
            f"{folder / MODEL} is damaged or another model's: expected the SHA-256 "
            f"{digest}, found {found}. Copy both files again."
        )
    arrays, _ = read_safetensors(folder / MODEL)
    found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    if found != expected:
        differing = sorted(name for name, _ in found.items() ^ expected.items())
        raise ValueError(
            f"{folder / MODEL} does not fit {CARD}: other names or shapes of "
            f"{', '.join(dict.fromkeys(differing))}."
        )
    variables = {"params": {}, "batch_stats": {}}
    variables |= traverse_util.unflatten_dict(arrays, sep="/")
    return Exported(method, variables, card)


def _shapes(method, image_size):
    """{path: (shape, dtype)} of a method's variables."""
    image = jax.ShapeDtypeStruct((1, *image_size, 3), np.float32)
    number, flag = (jax.ShapeDtypeStruct((1,), kind) for kind in (np.int32, np.bool_))
    batch = {
        **{"lr": image, "hr": image, "has_hr": flag},
        **{"label": number, "camid": number, "scale": number, "index": number},
        "resolution": jax.ShapeDtypeStruct((1,), np.float32),
    }
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: (x.shape, x.dtype) for name, x in flat.items()}
