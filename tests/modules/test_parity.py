"""The networks against PyTorch: golden files, see tests/golden/make_golden.py."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict

from crossres_jax.modules.attention import NonLocal
from crossres_jax.modules.hrnet import HRNet, HRNetC
from crossres_jax.modules.osnet import OSNet
from crossres_jax.modules.rcan import RCAN
from crossres_jax.modules.resnet import ResNet
from crossres_jax.modules.restormer import RestormerBlock
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.pretrained import tables
from crossres_jax.pretrained.merge import find_paths, to_flax_layout

GOLDEN = Path(__file__).parent.parent / "golden"


class Case(NamedTuple):
    """A network of ours, the keywords of its call, and its name table."""

    module: nn.Module
    kwargs: dict
    table: tuple[tuple[str, str], ...]


EVALUATE = {"train": False}
SHALLOW = HRNet(num_stem_blocks=1, num_modules=(1, 1, 1), num_blocks=1)
RESTORMER = (
    (r"(norm\d)\.body\.weight", r"params/\1/scale"),
    (r"(norm\d)\.body\.bias", r"params/\1/bias"),
    (r"attn\.temperature", "params/mdta/temperature"),
    (r"attn\.(\w+)\.weight", r"params/mdta/\1/kernel"),
    (r"ffn\.(\w+)\.weight", r"params/gdfn/\1/kernel"),
)
NON_LOCAL = (
    (r"(g|theta|phi)\.weight", r"params/\1/kernel"),
    (r"(g|theta|phi)\.bias", r"params/\1/bias"),
    (r"W\.0\.weight", "params/out/kernel"),
    (r"W\.0\.bias", "params/out/bias"),
    (r"W\.1\.weight", "params/bn/scale"),
    (r"W\.1\.bias", "params/bn/bias"),
    (r"W\.1\.running_(mean|var)", r"batch_stats/bn/\1"),
    (r"W\.1\.num_batches_tracked", ""),
)
CASES = {
    "resnet50": Case(ResNet(), EVALUATE, tables.RESNET),
    "osnet_x0_25": Case(OSNet(width=0.25), EVALUATE, tables.OSNET),
    "hrnet": Case(HRNetC(body=SHALLOW), EVALUATE, tables.HRNET),
    "vdsr": Case(VDSR(squeeze=0), {}, tables.VDSR),
    "rcan_x3": Case(RCAN(3, 2, 2, 16), {}, tables.RCAN),
    "rcan_x4": Case(RCAN(4, 2, 2, 16), {}, tables.RCAN),
    "restormer": Case(RestormerBlock(), {}, RESTORMER),
    "non_local": Case(NonLocal(), EVALUATE, NON_LOCAL),
}
PARTS = ("rcan_x3", "rcan_x4", "restormer", "non_local")


def _to_flax(table, tensors):
    """PyTorch tensors by name → Flax variables."""
    paths = {name: find_paths(name, table)[0] for name in tensors}
    kept = [path for path in paths.values() if path]
    assert len(set(kept)) == len(kept)  # no two tensors for one leaf
    return unflatten_dict(
        {
            path: to_flax_layout(path, tensors[name])
            for name, path in paths.items()
            if path
        },
        sep="/",
    )


def _golden(name):
    """The golden file's arrays, the shapes of its tensors, and its images."""
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    shapes = {k: tuple(v) for k, v in json.loads(str(golden["tensors"])).items()}
    return golden, shapes, recipe.images(tuple(golden["shape"]))


def _variables(table, shapes):
    return _to_flax(table, {k: recipe.weight(k, shape) for k, shape in shapes.items()})


def _classify(features, shapes):
    """The classifier of a golden file, which ours has no use for."""
    kernel, bias = (
        recipe.weight(name, shapes[name])
        for name in ("classifier.weight", "classifier.bias")
    )
    return features @ kernel.T + bias


def _outputs(name):
    golden, shapes, images = _golden(name)
    module, kwargs, table = CASES[name]
    apply = jax.jit(lambda variables, x: module.apply(variables, x, **kwargs))
    return apply(_variables(table, shapes), images), golden, shapes


def _assert_equal(actual, golden, tolerance=1e-4):
    """Float32 against float64: the error in units of the output's deviation."""
    assert np.shape(actual) == np.shape(golden)
    error = np.abs(np.asarray(actual) - golden).max() / np.std(golden)
    assert error <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_has_its_place(name):
    _, shapes, images = _golden(name)
    module, kwargs, table = CASES[name]
    # Zeros that take no memory.
    tensors = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    expected = jax.eval_shape(
        lambda rng, x: module.init(rng, x, **kwargs), jax.random.key(0), images
    )
    actual = flatten_dict(_to_flax(table, tensors))
    assert {k: x.shape for k, x in actual.items()} == {
        k: x.shape for k, x in flatten_dict(expected).items()
    }


def test_resnet50_equals_pytorch():
    stages, golden, _ = _outputs("resnet50")
    for i, stage in enumerate(stages, start=1):
        _assert_equal(stage[..., ::4], golden[f"stage{i}"])


def test_osnet_equals_pytorch():
    features, golden, shapes = _outputs("osnet_x0_25")
    _assert_equal(features, golden["features"])
    _assert_equal(_classify(features, shapes), golden["logits"])


def test_hrnet_equals_pytorch():
    features, golden, shapes = _outputs("hrnet")
    logits = _classify(features.mean(axis=(1, 2)), shapes)
    _assert_equal(logits, golden["logits"])


def test_vdsr_equals_pytorch():
    restored, golden, _ = _outputs("vdsr")
    _assert_equal(restored, golden["restored"])


def _assert_gradients_equal(gradients, golden, shapes, table, rounding):
    """Gradients by path against the golden projections, of all but a classifier.

    A bias before a normalisation has no gradient but what rounding leaves, here in
    units of the largest gradient.
    """
    names = [k for k in shapes if not re.search("running|num_batches", k)]
    floor = rounding * golden["projections"][:, 1].max()
    compared = 0
    for name, (projection, norm) in zip(names, golden["projections"], strict=True):
        path = find_paths(name, table)[0]
        if not path:
            continue
        probe = recipe.noise(f"probe {name}", shapes[name])
        (probe,) = jax.tree.leaves(_to_flax(table, {name: probe}))
        gradient = np.asarray(gradients[path], np.float64)
        errors = (
            abs((gradient * probe).sum() - projection),
            abs(np.linalg.norm(gradient) - norm),
        )
        assert max(errors) <= 1e-4 * norm + floor, name
        compared += 1
    assert compared == len(gradients)


@pytest.mark.parametrize("name", PARTS)
def test_parts_equal_pytorch(name):
    output, golden, _ = _outputs(name)
    _assert_equal(output, golden["output"])


@pytest.mark.parametrize("name", PARTS)
def test_every_gradient_of_a_part_in_train_mode_equals_pytorchs(name):
    golden, shapes, images = _golden(name)
    module, kwargs, table = CASES[name]
    variables = _variables(table, shapes)

    @jax.jit
    def run(params):
        arguments = variables | {"params": params}
        train = dict.fromkeys(kwargs, True)
        output, _ = module.apply(arguments, images, **train, mutable="batch_stats")
        return (output**2).mean()

    gradients = flatten_dict({"params": jax.grad(run)(variables["params"])}, sep="/")
    _assert_gradients_equal(gradients, golden, shapes, table, rounding=1e-6)


class Step(NamedTuple):
    """One step of OSNet in train mode, ours and (`golden`) PyTorch's."""

    loss: jax.Array
    features: jax.Array
    logits: jax.Array
    before: dict  # variables by path
    after: dict  # batch statistics by path
    gradients: dict  # by path
    shapes: dict  # of PyTorch's tensors by name
    golden: dict


@pytest.fixture(scope="module")
def step():
    """In float64, but for the head.

    In float32 a few of the many ReLUs flip and the batch statistics of eight features
    magnify what is rounded: PyTorch's own float32 gradients are 7% off in a leaf.
    """
    golden, shapes, images = _golden("osnet_x0_25")
    variables = _variables(tables.OSNET, shapes)
    module = OSNet(width=0.25, dtype=np.float64)

    @jax.jit
    def run(params, batch_stats):
        def loss(params):
            features, updates = module.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable="batch_stats",
            )
            logits = _classify(features, shapes)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
                logits, np.arange(len(images))
            )
            return cross_entropy.mean(), (features, logits, updates)

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.enable_x64(True):
        (loss, (features, logits, updates)), gradients = run(**variables)
    before, after, gradients = (
        flatten_dict(jax.device_get(x), sep="/")
        for x in (variables, updates, {"params": gradients})
    )
    return Step(loss, features, logits, before, after, gradients, shapes, golden)


def test_osnet_in_train_mode_equals_pytorch(step):
    assert float(step.loss) == pytest.approx(float(step.golden["loss"]), rel=1e-6)
    _assert_equal(step.features, step.golden["train_features"])
    _assert_equal(step.logits, step.golden["train_logits"])


def test_running_statistics_equal_pytorchs_up_to_its_unbiased_variance(step):
    names = [name for name in step.shapes if "running" in name]
    assert len(names) == len(step.after)
    ends = np.cumsum([np.prod(step.shapes[name]) for name in names])
    statistics = np.split(step.golden["statistics"], ends[:-1])
    for name, expected, n in zip(names, statistics, step.golden["counts"], strict=True):
        (path,) = find_paths(name, tables.OSNET)
        actual = step.after[path]
        if name.endswith("var"):
            kept = 0.9 * step.before[path]
            actual = kept + (actual - kept) * n / (n - 1)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_gradient_of_osnet_equals_pytorchs(step):
    _assert_gradients_equal(
        step.gradients, step.golden, step.shapes, tables.OSNET, rounding=1e-7
    )


def test_whole_gradients_of_osnet_equal_pytorchs(step):
    whole = {
        key.removeprefix("gradient "): gradient
        for key, gradient in step.golden.items()
        if key.startswith("gradient ")
    }
    assert len(whole) == 7
    for path, gradient in flatten_dict(_to_flax(tables.OSNET, whole), sep="/").items():
        _assert_equal(step.gradients[path], gradient)
