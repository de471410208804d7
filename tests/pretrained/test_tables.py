"""The name tables against the architectures, written down again in PyTorch's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.methods.ps_hrnet import HRNetReID
from crossres_jax.metrics import psnr
from crossres_jax.modules.hrnet import HRNet, HRNetC
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.pretrained import load_torch, merge, tables

IMAGES = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)


def _conv(name, inputs, outputs, k, *, bias=False):
    yield f"{name}.weight", (outputs, inputs, k, k)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name, width):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def _conv_norm(name, inputs, outputs, k, **options):
    yield from _conv(f"{name}.0", inputs, outputs, k, **options)
    yield from _norm(f"{name}.1", outputs)


def _basic(name, width):
    for n in (1, 2):
        yield from _conv(f"{name}.conv{n}", width, width, 3)
        yield from _norm(f"{name}.bn{n}", width)


def _bottleneck(name, inputs, planes):
    widths = [(inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)]
    for n, (a, b, k) in enumerate(widths, start=1):
        yield from _conv(f"{name}.conv{n}", a, b, k)
        yield from _norm(f"{name}.bn{n}", b)
    if inputs != 4 * planes:
        yield from _conv_norm(f"{name}.downsample", inputs, 4 * planes, 1)


def _exchange(name, widths):
    for i, width in enumerate(widths):
        for b in range(4):
            yield from _basic(f"{name}.branches.{i}.{b}", width)
    for i, to in enumerate(widths):
        for j, start in enumerate(widths):
            fuse = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                yield from _conv_norm(fuse, start, to, 1)
            for n in range(i - j):
                outputs = to if n == i - j - 1 else start
                yield from _conv_norm(f"{fuse}.{n}", start, outputs, 3)


def _hrnet(width=32):
    """Names and shapes of HRNet-W32-C in PyTorch; of W18-C if width is 18."""
    yield from _conv("conv1", 3, 64, 3)
    yield from _norm("bn1", 64)
    yield from _conv("conv2", 64, 64, 3)
    yield from _norm("bn2", 64)
    for b in range(4):
        yield from _bottleneck(f"layer1.{b}", 256 if b else 64, 64)
    widths = [width, 2 * width, 4 * width, 8 * width]
    yield from _conv_norm("transition1.0", 256, widths[0], 3)
    yield from _conv_norm("transition1.1.0", 256, widths[1], 3)
    yield from _conv_norm("transition2.2.0", widths[1], widths[2], 3)
    yield from _conv_norm("transition3.3.0", widths[2], widths[3], 3)
    for stage, num_modules in ((2, 1), (3, 4), (4, 3)):
        for m in range(num_modules):
            yield from _exchange(f"stage{stage}.{m}", widths[:stage])
    for i, inputs in enumerate(widths):
        yield from _bottleneck(f"incre_modules.{i}.0", inputs, 32 * 2**i)
    for i in range(3):
        inputs, outputs = 128 * 2**i, 256 * 2**i
        yield from _conv_norm(f"downsamp_modules.{i}", inputs, outputs, 3, bias=True)
    yield from _conv_norm("final_layer", 1024, 2048, 1, bias=True)
    yield "classifier.weight", (1000, 2048)
    yield "classifier.bias", (1000,)


def _numbered(shapes):
    """Weights of these shapes without their memory: the n-th is n everywhere."""
    return {
        name: np.broadcast_to(np.float32(n), shape)
        for n, (name, shape) in enumerate(shapes)
    }


def _variables(module):
    return jax.eval_shape(
        lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), IMAGES
    )


@pytest.fixture(scope="module")
def network():
    return _variables(HRNetC())


def test_hrnet_fills_every_variable_but_the_classifier(network):
    weights = _numbered(_hrnet())
    assert len(weights) == 1956  # as many tensors as timm's hrnet_w32 has
    merged = merge(network, weights, tables.HRNET)
    found = {float(x.ravel()[0]) for x in jax.tree.leaves(merged)}
    dropped = {
        n
        for n, name in enumerate(weights)
        if "num_batches_tracked" in name or name.startswith("classifier")
    }
    assert found == set(range(1956)) - dropped

    def number(path):
        leaf = merged
        for key in path.split("/"):
            leaf = leaf[key]
        return int(leaf.ravel()[0])

    # Where shapes alone cannot tell which is which.
    names = list(weights)
    for path, name in {
        "params/body/stem1/bn/scale": "bn1.weight",
        "params/body/stem1/bn/bias": "bn1.bias",
        "batch_stats/body/stem1/bn/mean": "bn1.running_mean",
        "batch_stats/body/stem1/bn/var": "bn1.running_var",
        "params/body/layer1_2/conv1/kernel": "layer1.2.conv1.weight",
        "params/body/layer1_0/shortcut_conv/kernel": "layer1.0.downsample.0.weight",
        "params/body/transition1_1/conv/kernel": "transition1.1.0.0.weight",
        "params/body/stage3_2/b1_block3/conv2/kernel": (
            "stage3.2.branches.1.3.conv2.weight"
        ),
        "params/body/stage4_1/up_3_to_0/conv/kernel": (
            "stage4.1.fuse_layers.0.3.0.weight"
        ),
        "params/body/stage4_1/down_0_to_3_1/bn/scale": (
            "stage4.1.fuse_layers.3.0.1.1.weight"
        ),
        "params/downsample3/conv/bias": "downsamp_modules.2.0.bias",
    }.items():
        assert names[number(path)] == name


def test_hrnet_fills_all_of_hrnet_reid_but_its_head():
    variables = _variables(HRNetReID(num_classes=10, body=HRNet()))
    head = r"\w+/(fc1|fc2|bn|downsample\d|final)/.*"
    merged = merge(variables, _numbered(_hrnet()), tables.HRNET, skip=head)
    left = [
        "/".join(str(key.key) for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(merged)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    assert len(left) == 8 and all(re.fullmatch(head, path) for path in left)


def test_hrnet_of_another_width_is_refused(network):
    message = r"transition1\.0\.0\.weight: .* has shape .* 32\), found .* 18\)"
    with pytest.raises(ValueError, match=message):
        merge(network, _numbered(_hrnet(width=18)), tables.HRNET)


@pytest.mark.parametrize(("scale", "gain"), [(2, 5.0), (3, 2.0), (4, 1.0)])
def test_the_published_vdsr_restores(weights_dir, scale, gain):
    high = _rectangles()  # (1, 48, 48, 1)
    size = (1, 48 // scale, 48 // scale, 1)
    low = jax.image.resize(high, size, "cubic", antialias=True)
    low = jax.image.resize(low, high.shape, "cubic", antialias=True)

    module = VDSR(squeeze=0)
    weights = load_torch(weights_dir / "vdsr_twtygqyy_model_epoch_50.pth")
    shapes = jax.eval_shape(module.init, jax.random.key(0), low)
    restored = jax.jit(module.apply)(merge(shapes, weights, tables.VDSR), low)
    # Bicubic has 22.6, 20.4 and 19.3 dB; the network adds 6.2, 2.6 and 1.6 to them.
    assert psnr(restored, high)[0] > psnr(low, high)[0] + gain


def _rectangles():
    rng = np.random.default_rng(0)
    image = np.full((1, 48, 48, 1), 0.5, np.float32)
    for _ in range(30):
        top, left = rng.integers(0, 40, 2)
        height, width = rng.integers(6, 24, 2)
        image[:, top : top + height, left : left + width] = rng.uniform(0.1, 0.9)
    return image
