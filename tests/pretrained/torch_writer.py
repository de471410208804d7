"""Files as PyTorch writes them, made without it: pickles of protocol 2 by hand.

The opcodes are those of Python's `pickletools`. Nothing is memoised, so that every
object of a stream stands where it is used.
"""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np


class Name(NamedTuple):
    """A class or a function of a module."""

    module: str
    name: str


class Call(NamedTuple):
    """The result of calling `function` with `args`."""

    function: Any
    args: tuple = ()


class Object(NamedTuple):
    """An object of the class `kind` with the given state."""

    kind: Any
    state: Any


class Reference(NamedTuple):
    """A persistent id: how a pickle refers to memory outside of it."""

    pid: tuple


class Raw(NamedTuple):
    """Opcodes that leave one object on the stack."""

    opcodes: bytes


class Storage(NamedTuple):
    """Memory under a key; its `kind` is that of torch's class, "Float" for example."""

    key: str
    kind: str
    values: np.ndarray


ORDERED_DICT = Name("collections", "OrderedDict")


def pickled(tree) -> bytes:
    return b"\x80\x02" + _opcodes(tree) + b"."


def _opcodes(x):
    match x:
        case None:
            return b"N"
        case bool():
            return b"\x88" if x else b"\x89"
        case int():
            data = pickle.encode_long(x)
            return b"\x8a" + bytes([len(data)]) + data
        case str():
            data = x.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case Name():
            return f"c{x.module}\n{x.name}\n".encode()
        case Call():
            return _opcodes(x.function) + _opcodes(x.args) + b"R"
        case Object():
            return _opcodes(x.kind) + b")\x81" + _opcodes(x.state) + b"b"
        case Raw():
            return x.opcodes
        case Reference():
            return _opcodes(x.pid) + b"Q"
        case tuple():
            return b"(" + b"".join(map(_opcodes, x)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, x)) + b"e"
        case dict():
            items = (_opcodes(key) + _opcodes(value) for key, value in x.items())
            return b"}(" + b"".join(items) + b"u"
    raise TypeError(x)


def ordered(items: dict) -> Call:
    """An OrderedDict, as PyTorch pickles it."""
    return Call(ORDERED_DICT, ([[key, value] for key, value in items.items()],))


def tensor(
    storage: Storage, shape, *, strides=None, offset=0, version="_v2", view=None
) -> Call:
    """A tensor in a storage; contiguous unless strides (in values) are given."""
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    kind = Name("torch", f"{storage.kind}Storage")
    pid = ("storage", kind, storage.key, "cpu", storage.values.size, *(view or ()))
    args = (Reference(pid), offset, tuple(shape), tuple(strides))
    hooks = (False, Call(ORDERED_DICT))
    return Call(
        Name("torch._utils", f"_rebuild_tensor{version}"),
        (*args, *hooks) if version else args,
    )


def parameter(data: Call) -> Call:
    hooks = Call(ORDERED_DICT)
    return Call(Name("torch._utils", "_rebuild_parameter"), (data, True, hooks))


def module(kind, *, parameters=None, buffers=None, modules=None) -> Object:
    """A whole module, as `torch.save(module)` pickles it."""
    state = {
        "training": True,
        "_parameters": ordered(parameters or {}),
        "_buffers": ordered(buffers or {}),
        "_forward_hooks": ordered({}),
        "_modules": ordered(modules or {}),
    }
    return Object(kind, state)


def write_zip(
    path, stream, storages=(), *, compression=zipfile.ZIP_STORED, order="little"
):
    """The layout since PyTorch 1.6; `stream` is that of the objects."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/byteorder", order)
        for storage in storages:
            name = f"archive/data/{storage.key}"
            archive.writestr(name, storage.values.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path, stream, storages=(), *, order="little"):
    """The layout before PyTorch 1.6."""
    machine = {"protocol_version": 1001, "little_endian": order == "little"}
    parts = [
        pickled(0x1950A86A20F9469CFC6C),
        pickled(1001),
        pickled(machine),
        stream,
        pickled([storage.key for storage in storages]),
    ]
    for storage in storages:
        parts.append(struct.pack("<q", storage.values.size))
        parts.append(storage.values.tobytes())
    path.write_bytes(b"".join(parts))
