"""PyTorch's files, read without PyTorch: nothing that a file names is imported or run.

`torch.save` writes a pickle, in which classes and functions are names. Here every name
becomes an inert `_Record`, which keeps what it is given and does nothing. The records
that describe tensors are turned into arrays afterwards. Three layouts are read:

    zip (PyTorch ≥ 1.6)    NAME/data.pkl, and NAME/data/KEY with the bytes of a storage
    legacy                 five pickles: a magic number, a version, the machine, the
                           objects, the keys; per key a length and the bytes
    safetensors            see safetensors.py
"""

import functools
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from crossres_jax.pretrained.safetensors import parse_safetensors

_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("<i1"),
    "torch.ByteStorage": np.dtype("<u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = (
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Where a checkpoint keeps its state dict or its module; the first that has tensors.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "module")


def load_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a file of PyTorch, or in a safetensors file, by their names.

    The file may hold a state dict, a checkpoint with one under a usual key, or a whole
    module. A `module.` in front of every name, from training in parallel, is removed.
    Code that a file contains or names is never run.

    Args:
      path: the file; its content counts, not its name.

    Returns:
      {name: array}: floating types as float32, integers and booleans as stored. Layouts
      are PyTorch's; `merge` converts them.

    Raises:
      ValueError: if the file is of another kind, damaged or hostile, has no named
        tensors, or has one that claims more than its storage holds.
      OSError: if the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        weights = _read(content)
    except Exception as error:  # a damaged pickle may raise anything
        found = error
        if type(error) is not ValueError:
            found = f"damage ({type(error).__name__}: {error}). Fetch the file again."
        raise ValueError(
            f"{path}: expected weights from torch.save or safetensors, found {found}"
        ) from error
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): x for name, x in weights.items()}
    return weights


def _read(content: bytes) -> dict[str, np.ndarray]:
    if content.startswith(_ZIP_START):
        weights = _read_zip(content)
    elif content.startswith(_PICKLE_START):
        weights = _read_legacy(content)
    elif content[8:9] == b"{":
        weights, _ = parse_safetensors(content)
    else:
        raise ValueError(
            f"{len(content)} bytes that start with {content[:8]!r}. Fetch the file "
            "again, or save the state dict with torch.save."
        )
    if not weights:
        raise ValueError("no tensors. Save the state dict with torch.save.")
    # Views until now: tied weights share a storage, but not again and again.
    if (claimed := sum(x.nbytes for x in weights.values())) > 4 * len(content):
        raise ValueError(
            f"{len(weights)} tensors of {claimed} bytes over the same storages, in a "
            f"file of {len(content)}. Save each tensor by itself."
        )
    return {name: _to_float32(array) for name, array in weights.items()}


def _to_float32(array):
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return np.array(array, np.float32 if is_float else array.dtype, order="C")


# --- The layouts.


def _read_zip(content):
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise ValueError(
            "a zip archive that is cut off or damaged. Fetch the file again."
        ) from error
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(
            f"a zip archive with {len(pickles)} files data.pkl, not one. Save the "
            "state dict with torch.save."
        )
    folder = pickles[0].removesuffix("data.pkl")

    @functools.cache
    def read(name):
        # PyTorch stores without compression; a zip bomb does not.
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} compressed. Save the file with torch.save.")
        return archive.read(name)

    if f"{folder}byteorder" in archive.namelist():
        _check_byte_order(read(f"{folder}byteorder") == b"little")
    tree, _ = _unpickle(io.BytesIO(read(pickles[0])))
    return _arrays(tree, lambda key: read(f"{folder}data/{key}"))


def _read_legacy(content):
    file = io.BytesIO(content)
    if _unpickle(file)[0] != _LEGACY_MAGIC:
        raise ValueError("a pickle of another program. Save it with torch.save.")
    _version, (machine, _) = _unpickle(file), _unpickle(file)
    _check_byte_order(machine["little_endian"])
    (tree, storages), (keys, _) = _unpickle(file), _unpickle(file)

    data, view = {}, memoryview(content)
    for key in keys:
        start = file.tell() + 8
        count = int.from_bytes(file.read(8), "little", signed=True)
        stop = start + count * _dtype(storages[key]).itemsize
        if not start <= stop <= len(content):
            raise ValueError(
                f"{len(content)} bytes, where storage {key} lies at {start} to {stop}: "
                "the file is cut off or damaged. Fetch it again."
            )
        data[key] = view[start:stop]
        file.seek(stop)
    return _arrays(tree, data.__getitem__)


def _check_byte_order(is_little):
    if not is_little:
        raise ValueError(
            "big-endian numbers. Load and save the file on a little-endian machine."
        )


# --- The pickle: records, and nothing else.


class _Record:
    """Stands for an object of whatever a file names, and does nothing.

    Attributes:
      origin: the name, "module.name".
      args: what the object was to be made from.
      state: what `__setstate__` was to be given.
    """

    origin = ""

    def __new__(cls, *args, **_):
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state):
        self.state = state

    def _ignore(self, *_):
        """Items of a list, a dict or a set of a class of its own."""

    append = extend = add = __setitem__ = _ignore


class _Dict(dict):
    """An OrderedDict, whose attributes (PyTorch's `_metadata`) are left out."""

    def __setstate__(self, state):
        pass


class _Storage(NamedTuple):
    """A flat piece of memory, as a pickle refers to it.

    Attributes:
      kind: the name of its class, which is that of its type of number.
      key: its name in the file.
      start: number of the value it starts at; not 0 for a view (legacy).
    """

    kind: str
    key: str
    start: int


class _Unpickler(pickle.Unpickler):
    """Looks nothing up: names become records, references to memory `_Storage`s."""

    def __init__(self, file):
        super().__init__(file, encoding="latin-1")  # Python 2 wrote bytes
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        return type("_Record", (_Record,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid):
        match pid:
            case ("module", kind, *_):  # with its source, which nobody reads
                return kind
            case ("storage", kind, key, _location, _count, *view):
                start = view[0][1] if view and view[0] else 0
                self.storages[key] = _Storage(kind.origin, key, start)
                return self.storages[key]
        raise pickle.UnpicklingError("it refers to neither a storage nor a module")


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The object in a pickle, and the storages it refers to by their keys.

    Raises:
      ValueError: if the pickle is damaged, or asks for more memory than it explains.
    """
    start, size = file.tell(), len(file.getbuffer())
    try:
        # pickletools compares every length with what is there; nothing is made yet.
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name.endswith("PUT") and argument > size:
                raise pickle.UnpicklingError(f"it claims {argument} objects")
            if opcode.name.startswith("EXT"):  # would ask Python's own table of classes
                raise pickle.UnpicklingError("it has an extension code")
        file.seek(start)
        unpickler = _Unpickler(file)
        return unpickler.load(), unpickler.storages
    except Exception as error:  # the unpickler raises anything
        raise ValueError(
            f"a pickle that is cut off or damaged ({error}). Fetch the file again."
        ) from error


# --- From records to arrays.


def _arrays(tree, read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    tensors = _find_tensors(tree)
    if not tensors:
        if isinstance(tree, dict):
            content = f"a dict with the keys {', '.join(map(str, tree)) or '(none)'}"
        else:
            content = f"a {getattr(tree, 'origin', type(tree).__name__)}"
        raise ValueError(
            f"no named tensors, but {content}. Save the state dict with torch.save, or "
            f"under one of the keys {', '.join(_NESTED)}."
        )
    return {name: _array(name, tensor, read) for name, tensor in tensors.items()}


def _find_tensors(tree) -> dict[str, _Record]:
    """The tensors of a state dict, of a checkpoint that has one, or of a module."""
    if isinstance(tree, _Record):
        return dict(_module_tensors(tree, ""))
    if not isinstance(tree, dict):
        return {}
    for key in _NESTED:
        if found := _find_tensors(tree.get(key)):
            return found
    return {
        name: tensor
        for name, tensor in tree.items()
        if isinstance(name, str) and _is_tensor(tensor)
    }


def _module_tensors(module, prefix) -> Iterator[tuple[str, _Record]]:
    """What the module's own `state_dict` would give, and buffers that it hides."""
    if not isinstance(module, _Record) or not isinstance(module.state, dict):
        return
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state.get(kind, {}).items():
            if _is_tensor(tensor):
                yield prefix + name, tensor
    for name, child in module.state.get("_modules", {}).items():
        yield from _module_tensors(child, f"{prefix}{name}.")


def _is_tensor(x):
    return isinstance(x, _Record) and (
        x.origin in _PARAMETERS
        or (x.origin.startswith("torch.") and "._rebuild" in x.origin)
    )


def _array(name, tensor, read) -> np.ndarray:
    while tensor.origin in _PARAMETERS:
        tensor = tensor.args[0]
    if tensor.origin not in _TENSORS:
        raise ValueError(
            f"{name} made by {tensor.origin}, which is not read here. Save it as a "
            "plain float32 tensor."
        )
    storage, offset, shape, strides, *_ = tensor.args
    dtype, data = _dtype(storage), read(storage.key)
    if not all(type(n) is int for n in (offset, storage.start, *shape, *strides)):
        raise TypeError(f"{name} has a shape that is not made of integers")
    offset += storage.start
    held, count = len(data) // dtype.itemsize, math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min(0, offset, *shape, *strides) < 0 or count > held or (count and last >= held):
        raise ValueError(
            f"{name} with shape {shape}, strides {strides} and offset {offset} in a "
            f"storage of {held} values, too few. Fetch the file again, or save the "
            "tensor contiguous."
        )
    if not count:
        return np.zeros(shape, dtype)
    strides = [n * dtype.itemsize for n in strides]
    return np.ndarray(shape, dtype, data, offset * dtype.itemsize, strides)


def _dtype(storage):
    if storage.kind not in _DTYPES:
        raise ValueError(
            f"numbers of the type {storage.kind}, not one of {', '.join(_DTYPES)}. "
            "Save the weights as float32."
        )
    return _DTYPES[storage.kind]
