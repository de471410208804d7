"""PyTorch's three layouts, hostile and damaged files, and real ones."""

import collections
import copyreg
import os
import pickle
import random
import sys
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import (
    Call,
    Name,
    Object,
    Raw,
    Reference,
    Storage,
    module,
    ordered,
    parameter,
    pickled,
    tensor,
    write_legacy,
    write_zip,
)

from crossres_jax.pretrained import load_torch

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
STORAGE = Storage("0", "Float", WEIGHT.ravel())
TENSOR = tensor(STORAGE, (2, 3))
MKDIR = Name(os.mkdir.__module__, "mkdir")

layouts = pytest.mark.parametrize("write", [write_zip, write_legacy])


def _load(tmp_path, tree, storages=(STORAGE,), write=write_zip, **options):
    write(tmp_path / "a.pth", pickled(tree), storages, **options)
    return load_torch(tmp_path / "a.pth")


def _assert_is_weight(weights, *names):
    assert list(weights) == list(names)
    for array in weights.values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, WEIGHT)


@layouts
def test_a_state_dict_is_read(tmp_path, write):
    other = Storage("1", "Int", np.arange(4, dtype=np.int32))
    tree = ordered({"a.weight": TENSOR, "b": tensor(other, (4,))})
    weights = _load(tmp_path, tree, (STORAGE, other), write)
    assert list(weights) == ["a.weight", "b"]
    np.testing.assert_array_equal(weights["a.weight"], WEIGHT)
    np.testing.assert_array_equal(weights["b"], other.values)


@layouts
@pytest.mark.parametrize(
    ("kind", "dtype", "loaded"),
    [
        ("Double", "f8", "f4"),
        ("Float", "f4", "f4"),
        ("Half", "f2", "f4"),
        ("BFloat16", jnp.bfloat16, "f4"),
        ("Long", "i8", "i8"),
        ("Int", "i4", "i4"),
        ("Short", "i2", "i2"),
        ("Char", "i1", "i1"),
        ("Byte", "u1", "u1"),
        ("Bool", "?", "?"),
    ],
)
def test_floating_types_become_float32_and_others_stay(
    tmp_path, write, kind, dtype, loaded
):
    values = np.array([0, 1, 0.1, 100]).astype(dtype)
    storage = Storage("k", kind, values)
    found = _load(tmp_path, {"x": tensor(storage, (4,))}, (storage,), write)["x"]
    assert found.dtype == loaded
    np.testing.assert_array_equal(found, values.astype(loaded))


@layouts
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, WEIGHT.T),
        ((2, 2), (3, 1), 1, WEIGHT[:, 1:]),
        ((2,), (3,), 2, WEIGHT[:, 2]),
        ((), (), 4, np.float32(4)),
        ((0, 3), (3, 1), 6, np.zeros((0, 3))),
        ((1, 6), (99, 1), 0, WEIGHT.reshape(1, 6)),  # a stride of one row counts not
    ],
)
def test_parts_of_a_storage_are_read(tmp_path, write, shape, strides, offset, expected):
    x = tensor(STORAGE, shape, strides=strides, offset=offset)
    found = _load(tmp_path, {"x": x}, write=write)["x"]
    assert found.flags.c_contiguous and found.flags.writeable
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_a_view_of_a_legacy_storage_starts_where_it_says(tmp_path):
    views = {
        name: tensor(STORAGE, (2,), view=((f"view {name}", start, 3),), offset=1)
        for name, start in {"a": 0, "b": 3}.items()
    }
    weights = _load(tmp_path, views, write=write_legacy)
    np.testing.assert_array_equal(weights["a"], [1, 2])
    np.testing.assert_array_equal(weights["b"], [4, 5])


@pytest.mark.parametrize(
    "tree",
    [
        {"epoch": 3, "state_dict": {"w": TENSOR}, "loss": TENSOR},
        {"model_state_dict": ordered({"w": TENSOR})},
        {"model": "resnet50", "net": {"w": TENSOR}},
        {"model": {"state_dict": {"w": TENSOR}}},
        {"w": TENSOR, "epoch": 3, 4: TENSOR},
        {"model": module(Name("m", "Net"), parameters={"w": TENSOR})},
    ],
)
def test_the_state_dict_is_found(tmp_path, tree):
    _assert_is_weight(_load(tmp_path, tree), "w")


@layouts
def test_a_whole_module_gives_the_names_of_its_state_dict(tmp_path, write):
    inner = module(
        Name("torch.nn.modules.batchnorm", "BatchNorm2d"),
        parameters={"weight": parameter(TENSOR), "bias": None},
        buffers={"running_mean": TENSOR},
    )
    layers = module(
        Name("torch.nn.modules.container", "Sequential"), modules={"0": inner}
    )
    net = module(
        Name("my.models", "Net"), parameters={"scale": TENSOR}, modules={"bn": layers}
    )
    weights = _load(tmp_path, net, write=write)
    _assert_is_weight(weights, "scale", "bn.0.weight", "bn.0.running_mean")


def test_modules_of_old_releases_are_read(tmp_path):
    # Parameters were objects of their class, and classes came with their source.
    data = tensor(STORAGE, (2, 3), version="")
    weight = Call(Name("torch.nn.parameter", "Parameter"), (data, True))
    source = "raise SystemExit"
    kind = Reference(("module", Name("m", "Net"), "/m.py", source))
    net = module(kind, parameters={"weight": weight})
    _assert_is_weight(_load(tmp_path, net, write=write_legacy), "weight")


def test_a_prefix_of_parallel_training_is_removed(tmp_path):
    tree = {"module.a": TENSOR, "module.module.b": TENSOR}
    _assert_is_weight(_load(tmp_path, tree), "a", "module.b")
    tree = {"module.a": TENSOR, "b": TENSOR}  # not common to all
    _assert_is_weight(_load(tmp_path, tree), "module.a", "b")


def test_attributes_and_items_of_other_objects_do_not_matter(tmp_path):
    weights = Raw(pickled(ordered({"w": TENSOR}))[2:-1])
    with_metadata = Raw(weights.opcodes + pickled({"_metadata": {"": 1}})[2:-1] + b"b")
    tree = {"state_dict": with_metadata, "options": Object(Name("m", "Options"), {})}
    for thing in (collections.deque([1, 2]), collections.defaultdict(int, a=1), {1, 2}):
        tree[type(thing).__name__] = Raw(pickle.dumps(thing, 2)[2:-1])
    _assert_is_weight(_load(tmp_path, tree), "w")


def test_later_protocols_are_read(tmp_path):
    rebuild = Raw(b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93")
    body = pickled({"w": Call(rebuild, TENSOR.args)})[2:]
    frame = b"\x80\x04\x95" + len(body).to_bytes(8, "little")
    write_zip(tmp_path / "a.pth", frame + body, (STORAGE,))
    _assert_is_weight(load_torch(tmp_path / "a.pth"), "w")


# --- Hostile files.


def _text(x):
    return b"X" + len(str(x)).to_bytes(4, "little") + str(x).encode()


def _hostile(marker):
    """{opcode: stream that makes the folder `marker` when Python unpickles it}."""
    mkdir, name = MKDIR.module.encode() + b"\nmkdir\n", _text(marker)
    evil = b"cevil_module\nEvil\n)\x81"
    return {
        "GLOBAL, REDUCE": b"c" + mkdir + name + b"\x85R",
        "STACK_GLOBAL": _text(MKDIR.module)
        + _text("mkdir")
        + b"\x93"
        + name
        + b"\x85R",
        "INST": b"(" + name + b"i" + mkdir,
        "OBJ": b"(c" + mkdir + name + b"o",
        "EXT1": b"\x82\xf0" + name + b"\x85R",
        "NEWOBJ, BUILD": evil + b"}" + _text("folder") + name + b"sb",
        "NEWOBJ, APPEND": evil + name + b"a",
        "NEWOBJ, SETITEM": evil + name + name + b"s",
    }


@pytest.fixture
def evil_module(tmp_path, monkeypatch):
    """A module whose class makes folders, and an extension code (240) of os.mkdir."""
    (tmp_path / "evil_module.py").write_text(
        "import os\n"
        "class Evil:\n"
        "    def __setstate__(self, state): os.mkdir(state['folder'])\n"
        "    def append(self, folder): os.mkdir(folder)\n"
        "    def __setitem__(self, _, folder): os.mkdir(folder)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    copyreg.add_extension(*MKDIR, 240)
    yield
    copyreg.remove_extension(*MKDIR, 240)
    sys.modules.pop("evil_module", None)


@layouts
@pytest.mark.parametrize("opcode", _hostile(""))
def test_a_hostile_pickle_runs_nothing(tmp_path, evil_module, write, opcode):
    marker = tmp_path / "marker"
    hostile = Raw(_hostile(marker)[opcode])
    pickle.loads(pickled(hostile))
    marker.rmdir()  # Python ran it …
    sys.modules.pop("evil_module", None)

    with pytest.raises(ValueError, match=r"a\.pth: expected weights .*, found"):
        _load(tmp_path, hostile, write=write)
    try:
        _assert_is_weight(
            _load(tmp_path, {"w": TENSOR, "x": hostile}, write=write), "w"
        )
    except ValueError:
        assert opcode == "EXT1"  # PyTorch never writes it: refused as a whole
    assert not marker.exists()  # … and we did not
    assert "evil_module" not in sys.modules


def test_our_own_classes_cannot_be_changed(tmp_path):
    # BUILD with a pair of states sets attributes; here those of the class itself.
    state = (None, {"get": None, "args": None})
    for name in (Name("collections", "OrderedDict"), Name("os", "system")):
        build = Raw(pickled(name)[2:-1] + pickled(state)[2:-1] + b"b")
        with pytest.raises(ValueError, match="a pickle that is cut off or damaged"):
            _load(tmp_path, {"x": build, "w": TENSOR})
    _assert_is_weight(_load(tmp_path, ordered({"w": TENSOR})), "w")


def test_an_unknown_reference_is_refused_without_being_printed(tmp_path):
    # Pairs of the pair before: twenty of them are megabytes of text.
    bomb = b"K\1" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(20))
    tree = {"w": TENSOR, "x": Reference(("bomb", Raw(bomb)))}
    with pytest.raises(ValueError, match="neither a storage nor a module") as error:
        _load(tmp_path, tree)
    assert len(str(error.value)) < 1000


def test_a_module_that_contains_itself_is_refused(tmp_path):
    cycle = b"cm\nNet\n)\x81q\0}" + _text("_modules") + b"}" + _text("a") + b"h\0ssb"
    with pytest.raises(ValueError, match=r"found damage .*recursion"):
        _load(tmp_path, Raw(cycle))


HUGE = 10 * 2**30


@layouts
@pytest.mark.parametrize(
    "tree",
    [
        {"x": tensor(STORAGE, (HUGE // 4,))},
        {"x": tensor(STORAGE, (HUGE // 4,), strides=(0,))},
        {"x": tensor(STORAGE, (2**62, 2**62))},
        {"x": tensor(STORAGE, ("a", HUGE), strides=(1, 1))},
        {"x": tensor(Storage("1", "Float", np.empty(0)), (HUGE // 4,))},
        Raw(b"}r" + (2**22).to_bytes(4, "little")),  # a memo of 64 MB
        Raw(b"\x96" + HUGE.to_bytes(8, "little")),  # a bytearray
        Raw(b"\x8b" + (2**31 - 1).to_bytes(4, "little")),  # an integer
    ],
)
def test_claims_beyond_the_file_take_no_memory(tmp_path, write, tree):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.pth: expected weights"):
            _load(tmp_path, tree, write=write)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_many_tensors_over_one_storage_take_no_memory(tmp_path):
    storage = Storage("0", "Float", np.zeros(2**16, np.float32))  # 256 KiB
    tree = ordered({f"x{n}": tensor(storage, (2**16,)) for n in range(200)})
    tracemalloc.start()
    try:
        message = r"found 200 tensors of 52428800 bytes over the same storages"
        with pytest.raises(ValueError, match=message):
            _load(tmp_path, tree, [storage])
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_tied_weights_are_read_twice(tmp_path):
    storage = Storage("0", "Float", np.arange(2**10, dtype=np.float32))
    tree = ordered({name: tensor(storage, (2**10,)) for name in ("in", "out")})
    weights = _load(tmp_path, tree, [storage])
    np.testing.assert_array_equal(weights["in"], weights["out"])
    assert not np.shares_memory(weights["in"], weights["out"])


def test_a_legacy_storage_that_claims_beyond_the_file_takes_no_memory(tmp_path):
    write_legacy(tmp_path / "a.pth", pickled({"w": TENSOR}), (STORAGE,))
    content = (tmp_path / "a.pth").read_bytes()
    for count in (HUGE, -1):
        claim = count.to_bytes(8, "little", signed=True)
        (tmp_path / "b.pth").write_bytes(content[: -24 - 8] + claim + content[-24:])
        with pytest.raises(ValueError, match="where storage 0 lies at"):
            load_torch(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (3, 1), 1),
        ((3,), (3,), 0),
        ((2,), (1,), -1),
        ((2,), (-1,), 1),
        ((-2,), (1,), 0),
        ((7,), (0,), 0),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape, strides, offset):
    x = tensor(STORAGE, shape, strides=strides, offset=offset)
    with pytest.raises(ValueError, match=r"found x with shape .* of 6 values, too few"):
        _load(tmp_path, {"x": x})


# --- Damaged files, and files of another kind.


@layouts
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, write):
    write(tmp_path / "a.pth", pickled({"w": TENSOR}), (STORAGE,))
    content = (tmp_path / "a.pth").read_bytes()
    for size in range(len(content)):
        (tmp_path / "b.pth").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"b\.pth: expected weights .*again"):
            load_torch(tmp_path / "b.pth")


@layouts
def test_flipped_bits_raise_nothing_but_a_value_error(tmp_path, write):
    write(tmp_path / "a.pth", pickled({"w": TENSOR}), (STORAGE,))
    content = (tmp_path / "a.pth").read_bytes()
    refused = 0
    for position in random.Random(0).sample(range(8 * len(content)), 500):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        (tmp_path / "b.pth").write_bytes(damaged)
        try:
            load_torch(tmp_path / "b.pth")
        except ValueError as error:
            assert "b.pth: expected weights" in str(error)
            refused += 1
    assert refused > 100


def test_a_flipped_bit_in_the_values_of_a_zip_is_noticed(tmp_path):
    write_zip(tmp_path / "a.pth", pickled({"w": TENSOR}), (STORAGE,))
    content = (tmp_path / "a.pth").read_bytes()
    values = WEIGHT.tobytes()
    assert values in content
    damaged = content.replace(values, values[:-1] + b"\x41")
    (tmp_path / "a.pth").write_bytes(damaged)
    with pytest.raises(ValueError, match="CRC"):
        load_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>", "21 bytes that start with b'<!DOCTYP'"),
        (bytes(range(256)), "256 bytes"),
        (pickle.dumps({"a": 1}), "a pickle of another program"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, found):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"a\.pth: expected .*, found {found}.*[Ss]ave"
    ):
        load_torch(tmp_path / "a.pth")


def test_an_archive_that_is_not_pytorchs_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"with 0 files data\.pkl"):
        load_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({"weights": {"w": TENSOR}, "epoch": 3}, "the keys weights, epoch"),
        ({}, r"the keys \(none\)"),
        ([TENSOR], "a list"),
        (TENSOR, "a torch._utils._rebuild_tensor_v2"),
        (Object(Name("m", "Net"), {"w": 3}), "a m.Net"),
        (3, "a int"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, tree, found):
    with pytest.raises(ValueError, match=f"no named tensors, but .*{found}.* Save"):
        _load(tmp_path, tree)


@pytest.mark.parametrize("name", ["_utils._rebuild_qtensor", "_tensor._rebuild_new"])
def test_tensors_of_other_kinds_are_not_left_out(tmp_path, name):
    quantized = Call(Name(*f"torch.{name}".rsplit(".", 1)), TENSOR.args)
    with pytest.raises(ValueError, match=rf"x made by torch\.{name}.*float32"):
        _load(tmp_path, {"w": TENSOR, "x": quantized})


@layouts
def test_numbers_of_other_kinds_are_refused(tmp_path, write):
    storage = Storage("0", "ComplexFloat", np.zeros(2, np.complex64))
    with pytest.raises(ValueError, match=r"torch\.ComplexFloatStorage.*float32"):
        _load(tmp_path, {"x": tensor(storage, (2,))}, (storage,), write)


@layouts
def test_big_endian_files_are_refused(tmp_path, write):
    with pytest.raises(ValueError, match="big-endian"):
        _load(tmp_path, {"w": TENSOR}, write=write, order="big")


def test_compressed_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="compressed"):
        _load(tmp_path, {"w": TENSOR}, compression=zipfile.ZIP_DEFLATED)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "a.pth")


# --- Published files.


def test_osnet_of_the_model_zoo(weights_dir):
    weights = load_torch(weights_dir / "osnet_x0_25_market1501.pth")
    assert len(weights) == 567
    assert weights["conv1.conv.weight"].shape == (16, 3, 7, 7)
    assert weights["classifier.weight"].shape == (751, 512)
    assert weights["conv1.bn.num_batches_tracked"].dtype == np.int64
    for name, array in weights.items():
        assert np.isfinite(array).all()
        assert not name.endswith("running_var") or (array > 0).all()


def test_vdsr_as_a_whole_module_of_python_2(weights_dir):
    weights = load_torch(weights_dir / "vdsr_twtygqyy_model_epoch_50.pth")
    expected = {f"residual_layer.{n}.conv.weight": (64, 64, 3, 3) for n in range(18)}
    expected |= {"input.weight": (64, 1, 3, 3), "output.weight": (1, 64, 3, 3)}
    assert {name: array.shape for name, array in weights.items()} == expected
