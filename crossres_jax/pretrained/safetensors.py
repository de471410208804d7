"""The safetensors format: a JSON header, then the bytes of the tensors without a gap.

    8 bytes    length of the header, little endian
    header     {"name": {"dtype": "F32", "shape": […], "data_offsets": [from, to]}, …}
               with an object of strings under "__metadata__"
    the rest   the tensors, little endian, rows first; offsets count from here

As published at https://github.com/huggingface/safetensors.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"


def read_safetensors(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file as they are stored, bit for bit, and its metadata.

    Args:
      path: the file.

    Returns:
      {name: array} in the order of the file, and {key: text}.

    Raises:
      ValueError: if the file is damaged, or holds a type that `DTYPES` lacks.
      OSError: if it cannot be read.
    """
    try:
        return parse_safetensors(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a safetensors file, found {error}"
        ) from error


def write_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays as they are; the same arrays and metadata give the same bytes.

    Args:
      path: the file; overwritten.
      arrays: {name: array} of the types in `DTYPES`.
      metadata: {key: text}.

    Raises:
      ValueError: if a type is not in `DTYPES`, a name is "__metadata__", or metadata is
        not text; nothing is written then.
      OSError: if the file cannot be written.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise ValueError(
                f"{name} is {array.dtype.str}, expected one of {', '.join(DTYPES)}. "
                "Convert it."
            )
        if name == _METADATA:
            raise ValueError(f"{name} is the name of the metadata. Rename the array.")
    _check_metadata(metadata or {})

    header, stop = {_METADATA: dict(metadata)} if metadata else {}, 0
    # The widest types first, so that every tensor starts at a multiple of its width.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in names:
        array = arrays[name]
        start, stop = stop, stop + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": (start, stop),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(arrays[name].tobytes())


def parse_safetensors(
    content: bytes,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`read_safetensors` of a file's bytes.

    Raises:
      ValueError: says what was found instead.
    """
    content = memoryview(content)
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if len(content) < 8 or len(header) < length:
        raise ValueError(
            f"{len(content)} bytes, too few for its header. Fetch the file again."
        )
    try:
        entries = json.loads(bytes(header))
        metadata = entries.pop(_METADATA, {})
        _check_metadata(metadata)
        entries = {name: _parse_entry(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"a damaged header ({error}). Fetch the file again."
        ) from error

    arrays, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        dtype, shape, start, stop = entry
        size = math.prod(shape) * dtype.itemsize
        if start != end or stop - start != size or stop > len(data):
            raise ValueError(
                f"{name} with {size} bytes at {start} to {stop} of {len(data)}, where "
                f"the next tensor should start at {end}. Fetch the file again."
            )
        arrays[name] = np.ndarray(shape, dtype, data[start:stop]).copy()
        end = stop
    if end != len(data):
        raise ValueError(
            f"{len(data) - end} bytes behind the last tensor. Fetch the file again."
        )
    return arrays, metadata


def _parse_entry(entry):
    match entry:
        case {
            "dtype": str(dtype),
            "shape": [*shape],
            "data_offsets": [int(start), int(stop)],
        } if dtype in DTYPES and all(type(n) is int and n >= 0 for n in shape):
            return DTYPES[dtype], tuple(shape), start, stop
    raise ValueError(f"an entry {entry}; the types are {', '.join(DTYPES)}")


def _check_metadata(metadata):
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"the metadata is not text to text: {metadata}")
