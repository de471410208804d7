"""The name tables against the architectures, written down again in PyTorch's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_names import hrnet_w32_c

from crossres_jax.methods.ps_hrnet import HRNetReID
from crossres_jax.metrics import psnr
from crossres_jax.modules.hrnet import HRNet, HRNetC
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.pretrained import load_torch, merge, tables

IMAGES = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)


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
    weights = _numbered(hrnet_w32_c())
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
    merged = merge(variables, _numbered(hrnet_w32_c()), tables.HRNET, skip=head)
    left = [
        "/".join(str(key.key) for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(merged)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    assert len(left) == 8 and all(re.fullmatch(head, path) for path in left)


def test_hrnet_of_another_width_is_refused(network):
    message = r"transition1\.0\.0\.weight: .* has shape .* 32\), found .* 18\)"
    with pytest.raises(ValueError, match=message):
        merge(network, _numbered(hrnet_w32_c(width=18)), tables.HRNET)


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
