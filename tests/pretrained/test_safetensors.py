"""The safetensors format: bit-equal both ways, and nothing damaged passes."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.pretrained import load_torch, read_safetensors, write_safetensors
from crossres_jax.pretrained.safetensors import DTYPES

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _write(path, entries, data=b"\0" * 8):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_every_type_comes_back_bit_for_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, 6 * 8, np.uint8)
    arrays = {
        name: (bits > 127 if name == "BOOL" else bits.view(dtype))[:6].reshape(2, 3)
        for name, dtype in DTYPES.items()
    }
    arrays |= {"scalar": np.float32(0.1), "empty": np.zeros((0, 3), np.int8)}
    arrays["transposed"] = np.arange(6).reshape(2, 3).T
    write_safetensors(tmp_path / "a", arrays, {"method": "größer"})
    found, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"method": "größer"}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_a_file_is_as_the_format_says(tmp_path):
    arrays = {"b": np.int8([5]), "a": np.float32([[1, 2]])}
    write_safetensors(tmp_path / "a", arrays, {"k": "v"})
    content = (tmp_path / "a").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0  # so that every tensor is aligned
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"k": "v"},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "I8", "shape": [1], "data_offsets": [8, 9]},
    }
    assert content[8 + length :] == struct.pack("<ffb", 1, 2, 5)


def test_the_order_of_the_arrays_does_not_change_the_file(tmp_path):
    arrays = {"a": np.float32([1]), "b": np.int8([2]), "c": np.float32([3])}
    write_safetensors(tmp_path / "a", arrays)
    write_safetensors(tmp_path / "b", dict(reversed(arrays.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loading_makes_floating_types_float32(tmp_path):
    arrays = {
        "module.half": np.float16([0.1, 2]),
        "module.brain": np.array([0.1, 2], jnp.bfloat16),
        "module.double": np.float64([0.1, 2]),
        "module.count": np.int64([2**40]),
    }
    write_safetensors(tmp_path / "a.pth", arrays)  # the content counts, not the name
    weights = load_torch(tmp_path / "a.pth")
    assert weights.keys() == {"half", "brain", "double", "count"}
    assert weights["count"].dtype == np.int64
    for name in ("half", "brain", "double"):
        assert weights[name].dtype == np.float32
        expected = arrays[f"module.{name}"].astype(np.float32)
        np.testing.assert_array_equal(weights[name], expected)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": ENTRY, "b": ENTRY}, "b with 8 bytes at 0 to 8 of 8"),  # overlap
        ({"a": ENTRY | {"data_offsets": [4, 12]}}, "a with 8 bytes at 4"),  # a gap
        ({"a": ENTRY | {"data_offsets": [-4, 4]}}, "a with 8 bytes at -4"),
        ({"a": ENTRY | {"shape": [3], "data_offsets": [0, 12]}}, "at 0 to 12 of 8"),
        ({"a": ENTRY | {"shape": [3]}}, "a with 12 bytes at 0 to 8"),
        ({"a": ENTRY | {"shape": [2**62]}}, "bytes at 0 to 8 of 8"),
        ({"a": ENTRY | {"shape": [-2]}}, "an entry"),
        ({"a": ENTRY | {"shape": [2.0]}}, "an entry"),
        ({"a": ENTRY | {"dtype": "F4"}}, "an entry .*'F4'.*; the types are BOOL"),
        ({"a": {"dtype": "F32"}}, "an entry"),
        ({"a": 3}, "an entry 3"),
        ({}, "8 bytes behind the last tensor"),
        ({"__metadata__": {"k": 1}, "a": ENTRY}, "not text to text"),
        ({"__metadata__": [1], "a": ENTRY}, "a damaged header"),
        ([1], "a damaged header"),
        (b"{" + b"[" * 100_000, "a damaged header"),
        (b'{"\xff": 1}', "a damaged header"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, entries, message):
    path = _write(tmp_path / "a", entries)
    with pytest.raises(
        ValueError, match=rf"^{path}: expected a safetensors.*{message}"
    ):
        read_safetensors(path)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    write_safetensors(tmp_path / "a", {"a": np.float32([1, 2])})
    content = (tmp_path / "a").read_bytes()
    for size in range(len(content)):
        (tmp_path / "b").write_bytes(content[:size])
        with pytest.raises(ValueError, match="Fetch the file again"):
            read_safetensors(tmp_path / "b")


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"a": np.complex64([1])}, None, "a is <c8, expected one of BOOL"),
        ({"a": np.array([1], ">f4")}, None, "a is >f4"),
        ({"__metadata__": np.float32([1])}, None, "__metadata__ is the name"),
        ({"a": np.float32([1])}, {"step": 3}, "not text to text"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(
    tmp_path, arrays, metadata, message
):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "a", arrays, metadata)
    assert not (tmp_path / "a").exists()
