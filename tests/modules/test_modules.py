"""Shapes and parameter counts at full size; the convolution in all its forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.modules import conv
from crossres_jax.modules.attention import ChannelAttention, NonLocal
from crossres_jax.modules.dual_stream import DualStreamBlock
from crossres_jax.modules.galn import GALN
from crossres_jax.modules.heads import BNNeck
from crossres_jax.modules.hrnet import HRNet, HRNetC, upsample_nearest
from crossres_jax.modules.osnet import OSNet
from crossres_jax.modules.pooling import GeM, generalized_mean
from crossres_jax.modules.rcan import RCAN, SameSizeRCAN, pixel_shuffle
from crossres_jax.modules.resnet import ResNet, ResNetStage, ResNetStem
from crossres_jax.modules.restormer import RestormerBlock, transposed_attention
from crossres_jax.modules.srcnn import SRCNN
from crossres_jax.modules.vdsr import VDSR

FULL_SIZE = jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32)


def _count(module, x=FULL_SIZE, **kwargs):
    variables = jax.eval_shape(
        lambda rng, x: module.init(rng, x, **kwargs), jax.random.key(0), x
    )
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def _outputs(module, images=FULL_SIZE, **kwargs):
    return jax.eval_shape(
        lambda rng, x: module.init_with_output(rng, x, **kwargs)[0],
        jax.random.key(0),
        images,
    )


def test_vdsr_counts():
    assert _count(VDSR()) == 677_448  # VDSR-CA, 4 squeeze channels
    assert _count(VDSR(squeeze=16)) == 705_312  # the ratio r = 4 read literally
    assert _count(VDSR(squeeze=0)) == 667_008  # VDSR on RGB


def test_hrnet_w32_c_count():
    classifier = 1000 * (2048 + 1)
    assert _count(HRNetC(), train=False) == 41_232_680 - classifier
    assert _outputs(HRNetC(), train=False).shape == (2, 8, 4, 2048)


def test_hrnet_branches_keep_their_resolutions():
    shapes = [x.shape for x in _outputs(HRNet(), train=True)]
    assert shapes == [(2, 64 >> i, 32 >> i, 32 << i) for i in range(4)]


def test_hrnet_refuses_a_size_that_its_lowest_branch_cannot_halve():
    images = jax.ShapeDtypeStruct((1, 96, 48, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"multiples of 32, found 96×48"):
        _outputs(HRNet(), images, train=False)


def test_resnet50_count():
    assert _count(ResNet(), train=False) == 23_508_032  # 25,557,032 with the classifier


def test_non_local_blocks_follow_the_last_bottlenecks_of_a_stage():
    net = ResNet(num_non_local=(0, 2, 3, 0))
    variables = jax.eval_shape(
        functools.partial(net.init, train=True), jax.random.key(0), FULL_SIZE
    )
    names = {name for name in variables["params"] if "non_local" in name}
    assert names == {
        *("layer2_2_non_local", "layer2_3_non_local"),
        *("layer3_3_non_local", "layer3_4_non_local", "layer3_5_non_local"),
    }
    # θ, φ, g and the convolution back, with biases, and the normalisation's two.
    blocks = [4 * c * (c // 2) + 3 * (c // 2) + 3 * c for c in (512, 1024)]
    assert _count(net, train=True) == 23_508_032 + 2 * blocks[0] + 3 * blocks[1]

    stage = ResNetStage(4, num_blocks=3, num_non_local=1)
    x = jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(stage.init, train=True), jax.random.key(0), x
    )
    assert {*variables["params"]} == {
        *("block0", "block1", "block2", "block2_non_local")
    }


def test_rcan_count():
    # The authors' network has two fixed shifts of the mean, of 12 numbers each.
    assert _count(RCAN(scale=4)) == 15_592_379 - 24


def test_restormer_block_count():
    maps = jax.ShapeDtypeStruct((2, 64, 32, 64), jnp.float32)
    hidden = 170  # int(2.66 · 64)
    attention = 4 + 64 * 192 + 9 * 192 + 64 * 64
    feed_forward = 64 * 2 * hidden + 9 * 2 * hidden + hidden * 64
    assert _count(RestormerBlock(), maps) == 4 * 64 + attention + feed_forward


def test_galn_count():
    features = jax.ShapeDtypeStruct((2, 2048), jnp.float32)
    layers = 2048 * 512 + 2048 * 32 * 512 + 512 * 256
    norms = 2 * (512 + 32 * 512 + 256)
    assert _count(GALN(), features, train=True) == layers + norms + 3 + 257 * 32
    assert _outputs(GALN(), features, train=True).shape == (2, 512)


@pytest.mark.parametrize(("last_stride", "last"), [(2, (8, 4)), (1, (16, 8))])
def test_resnet50_returns_its_four_stages(last_stride, last):
    stages = _outputs(ResNet(last_stride=last_stride), train=True)
    assert [x.shape for x in stages] == [
        (2, 64, 32, 256),
        (2, 32, 16, 512),
        (2, 16, 8, 1024),
        (2, *last, 2048),
    ]


def test_osnet_counts():
    # With the classifier of 751 identities in the published file: 587,127.
    assert _count(OSNet(width=0.25), train=False) == 587_127 - 751 * 513
    # The authors list 2,193,616 for x1.0, which counts each gate four times, once for
    # every stream: six gates in three widths.
    gates = 2 * sum(2 * c * (c // 16) + c // 16 + c for c in (64, 96, 128))
    assert _count(OSNet(), train=False) == 2_193_616 - 3 * gates


def test_osnet_returns_features():
    assert _outputs(OSNet(), train=False).shape == (2, 512)


def test_gem_goes_from_the_mean_to_the_maximum():
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    for p, expected in ((1, 2.5), (2, 7.5**0.5), (3, 25 ** (1 / 3)), (1e4, 4.0)):
        # For large p the result is 4 · 4^(−1/p), here 4 − 6e-4.
        np.testing.assert_allclose(generalized_mean(x, p), [[expected]], rtol=2e-4)


def test_gem_neither_overflows_nor_divides_by_zero():
    x = jnp.array([[0.0, 1e-3], [0.0, 1e6]]).reshape(1, 2, 1, 2)
    value, gradient = jax.value_and_grad(lambda x: generalized_mean(x, 30).sum())(x)
    np.testing.assert_allclose(value, 1e6 * 2 ** (-1 / 30), rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_gem_learns_its_exponent():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    pooled, variables = GeM().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(pooled, [[9 ** (1 / 3)]], rtol=1e-5)  # p = 3 at first
    gradient = jax.grad(lambda v: GeM().apply(v, x).sum())(variables)
    assert gradient["params"]["p"] > 0  # a generalised mean grows with p


def test_bn_neck_normalises_for_the_classifier_alone():
    x = 3 + 2 * jax.random.normal(jax.random.key(1), (16, 8))
    module = BNNeck(num_classes=5)
    variables = module.init(jax.random.key(0), x, train=False)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "bn": {"scale": (8,)},  # no bias anywhere
        "classifier": {"kernel": (8, 5)},
    }
    outputs, _ = module.apply(variables, x, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(outputs.features, x)
    np.testing.assert_allclose(outputs.bn_features.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs.bn_features.std(0), 1.0, rtol=1e-4)
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(outputs.logits, outputs.bn_features @ kernel, rtol=1e-5)


def test_vdsr_returns_its_input_when_it_starts_as_identity():
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    module = VDSR(8, depth=4, start_as_identity=True)
    restored, variables = module.init_with_output(jax.random.key(0), images)
    np.testing.assert_array_equal(restored, images)
    # … and still learns: the last layer sees a signal.
    gradient = jax.grad(lambda v: jnp.abs(module.apply(v, images) - 1).sum())(variables)
    assert float(jnp.abs(gradient["params"]["conv3"]["kernel"]).max()) > 0


@pytest.mark.parametrize("squeeze", [0, 2])
def test_vdsr_learns_the_same_when_layers_are_recomputed(squeeze):
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    stored, recomputed = (VDSR(4, 4, squeeze, remat=remat) for remat in (False, True))
    variables = stored.init(jax.random.key(0), images)

    def gradient(module):
        return jax.grad(lambda v: jnp.abs(module.apply(v, images) - 1).sum())(variables)

    # The same sums, perhaps fused in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient(stored),
        gradient(recomputed),
    )


def test_srcnn_counts_and_widths():
    assert _count(SRCNN()) == 20_099  # 9-1-5
    assert _count(SRCNN((9, 5, 5))) == 69_251


def test_srcnn_is_three_convolutions_with_relus_between():
    images = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    module = SRCNN((3, 1, 5), (4, 6))
    variables = module.init(jax.random.key(0), images)
    x = images
    for n in (1, 2, 3):
        layer = variables["params"][f"conv{n}"]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = x + layer["bias"]
        x = jnp.maximum(x, 0) if n < 3 else x
    np.testing.assert_allclose(module.apply(variables, images), x, rtol=1e-4, atol=1e-5)


def test_residual_srcnn_starts_as_the_identity_and_adds_its_input():
    images = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    plain, residual = (SRCNN((3, 1, 3), (4, 4), residual=r) for r in (False, True))
    variables = residual.init(jax.random.key(0), images)
    np.testing.assert_array_equal(residual.apply(variables, images), images)
    variables = plain.init(jax.random.key(0), images)
    np.testing.assert_allclose(
        residual.apply(variables, images), images + plain.apply(variables, images)
    )


def test_vdsr_gates_halve_the_signal_of_every_middle_layer():
    # With closed-over zeros in the attention every gate is exactly 1/2, so a network
    # with n middle layers predicts 2⁻ⁿ of the residual without attention.
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = VDSR(8, depth=5).init(jax.random.key(0), images)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "attention" in str(path) else x, variables["params"]
    )
    plain = {
        name: {"conv": layer["conv"]} if "conv" in layer else layer
        for name, layer in params.items()
    }
    gated = VDSR(8, depth=5).apply({"params": params}, images) - images
    ungated = VDSR(8, depth=5, squeeze=0).apply({"params": plain}, images) - images
    np.testing.assert_allclose(gated, ungated / 2**3, rtol=1e-4, atol=1e-6)


def test_channel_attention_scales_whole_channels():
    x = jnp.ones((1, 2, 2, 8)) * jnp.arange(1.0, 9.0)
    module = ChannelAttention(squeeze=4)
    y = module.init_with_output(jax.random.key(0), x)[0] / x
    assert ((y > 0) & (y < 1)).all()
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1, :1], y.shape), rtol=1e-6)


def _attention_inputs(positions, heads=2, size=4):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (1, positions, heads, size)) for key in keys]


def test_transposed_attention_mixes_the_channels_of_a_head():
    q, k, v = _attention_inputs(12)
    # At temperature 0 every channel is the mean of its head's, at a large one it is
    # that whose key, over the positions, points most like its query: here the next.
    uniform = transposed_attention(q, k, v, jnp.zeros((2, 1, 1)))
    mean = v.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(uniform, jnp.broadcast_to(mean, v.shape), atol=1e-6)
    hard = transposed_attention(jnp.roll(k, -1, -1), 5 * k, v, jnp.full((2, 1, 1), 1e3))
    np.testing.assert_allclose(hard, jnp.roll(v, -1, -1), atol=1e-6)
    heads = jnp.array([0.0, 1e3]).reshape(2, 1, 1)  # each head has its own
    both = transposed_attention(jnp.roll(k, -1, -1), k, v, heads)
    np.testing.assert_allclose(both[:, :, 0], uniform[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(both[:, :, 1], hard[:, :, 1], atol=1e-6)


def test_transposed_attention_costs_as_much_for_every_pixel():
    def cost(positions):
        arguments = *_attention_inputs(positions), jnp.ones((2, 1, 1))
        return jax.jit(transposed_attention).lower(*arguments).cost_analysis()["flops"]

    # What does not grow, the softmax of 2 · 4 · 4 numbers, is less than a hundredth.
    assert cost(8192) / cost(1024) == pytest.approx(8, rel=0.01)


def test_restormer_block_has_gradients_everywhere():
    x = jax.random.normal(jax.random.key(1), (2, 6, 4, 8))
    module = RestormerBlock()
    variables = jax.jit(module.init)(jax.random.key(0), x)

    @jax.jit
    def gradient(x):
        return jax.grad(lambda v, x: jnp.sin(module.apply(v, x)).sum(), argnums=(0, 1))(
            variables, x
        )

    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient(x)))
    constant = jnp.ones_like(x)  # which LayerNorm makes zero
    for leaf in jax.tree.leaves([gradient(x), gradient(constant)]):
        assert jnp.isfinite(leaf).all()


def test_non_local_block_starts_as_the_identity_and_learns():
    x = jax.random.normal(jax.random.key(1), (2, 4, 3, 6))
    module = NonLocal()
    init = jax.jit(functools.partial(module.init, train=True))
    variables = init(jax.random.key(0), x)
    assert variables["params"]["theta"]["kernel"].shape == (1, 1, 6, 3)
    y, _ = module.apply(variables, x, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(y, x)

    @jax.jit
    def gradient(scale):
        params = variables["params"]
        params = params | {"bn": params["bn"] | {"scale": jnp.full(6, scale)}}

        def loss(params):
            arguments = variables | {"params": params}
            y, _ = module.apply(arguments, x, train=True, mutable="batch_stats")
            return jnp.sin(y).sum()

        return jax.grad(loss)(params)

    assert (gradient(0.0)["bn"]["scale"] != 0).all()  # and then the rest moves, too
    for name in ("theta", "phi", "g", "out"):
        assert (gradient(1.0)[name]["kernel"] != 0).any()


@pytest.mark.parametrize("inner", [1, 8])  # fewer, and more, channels than positions
def test_non_local_block_adds_the_mean_over_positions(inner):
    x = jax.random.normal(jax.random.key(1), (2, 3, 2, 4))
    module = NonLocal(inner)
    variables = module.init(jax.random.key(0), x, train=False)
    params = jax.tree.map(  # a normalisation of 1 and 0, and biases that count
        lambda p: jax.random.normal(jax.random.key(2), p.shape), variables["params"]
    )
    params |= {"bn": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}

    def convolve(name, x):
        return x @ params[name]["kernel"][0, 0] + params[name]["bias"]

    flat = x.reshape(2, 6, 4)
    theta, phi, g = (convolve(name, flat) for name in ("theta", "phi", "g"))
    y = np.zeros((2, 6, inner))
    for b in range(2):
        for i in range(6):
            y[b, i] = sum((theta[b, i] @ phi[b, j]) * g[b, j] for j in range(6)) / 6
    expected = flat + convolve("out", y) / np.sqrt(1 + 1e-5)
    found = module.apply(variables | {"params": params}, x, train=False)
    np.testing.assert_allclose(found, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_pixel_shuffle_fills_squares_row_by_row():
    # Two output channels: 0 to 3 belong to the first, 4 to 7 to the second.
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    y = pixel_shuffle(x, 2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(y[0, :, :, 1], [[4, 5], [6, 7]])
    np.testing.assert_array_equal(
        pixel_shuffle(jnp.tile(x, (1, 1, 3, 1)), 2)[..., 2:4, :], y
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_rcan_enlarges_by_its_scale(scale):
    images = jax.ShapeDtypeStruct((2, 8, 5, 3), jnp.float32)
    assert _outputs(RCAN(scale, 1, 1, 8), images).shape == (2, 8 * scale, 5 * scale, 3)
    assert _outputs(SameSizeRCAN(scale, 1, 1, 8)).shape == FULL_SIZE.shape


def test_same_size_rcan_is_rcan_between_bicubic_resizing():
    # 9 and 8 are no multiples of 2 and 3 at once: 8 becomes 2, 6, and 8 again.
    images = jax.random.uniform(jax.random.key(1), (1, 9, 8, 3))
    module = SameSizeRCAN(3, 1, 1, 8)
    found, variables = module.init_with_output(jax.random.key(0), images)
    small = jax.image.resize(images, (1, 3, 2, 3), "cubic", antialias=True)
    large = RCAN(3, 1, 1, 8).apply({"params": variables["params"]["rcan"]}, small)
    assert large.shape == (1, 9, 6, 3)
    expected = jax.image.resize(large, images.shape, "cubic")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_residual_rcan_starts_as_the_identity_and_learns():
    images = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    module = SameSizeRCAN(2, 1, 1, 8, residual=True)
    found, variables = jax.jit(module.init_with_output)(jax.random.key(0), images)
    np.testing.assert_array_equal(found, images)
    loss = jax.jit(lambda v: (module.apply(v, images) ** 2).sum())
    gradient = jax.grad(loss)(variables)
    assert (gradient["params"]["rcan"]["last"]["kernel"] != 0).any()


def test_galn_adds_the_groups_by_their_probabilities():
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    module = GALN(features=4, num_groups=3, hidden=2)
    variables = module.init(jax.random.key(0), x, train=False)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda v: rng.uniform(0.5, 1.5, v.shape), variables)
    params, stats = variables["params"], variables["batch_stats"]

    def layer(x, name):
        y = x @ params[name]["kernel"]
        norm, running = params[f"{name}_bn"], stats[f"{name}_bn"]
        y = (y - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        y = y * norm["scale"] + norm["bias"]
        return np.where(y > 0, y, params[f"{name}_prelu"]["negative_slope"] * y)

    instance, groups = layer(x, "instance"), layer(x, "groups")
    last = params["probabilities"]
    logits = layer(instance, "hidden") @ last["kernel"] + last["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = instance + sum(
        p[:, [k]] * groups[:, 4 * k : 4 * k + 4] for k in range(3)
    )
    found = module.apply(variables, x, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_upsample_nearest_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(upsample_nearest(x, 2)[0, :, :, 0], expected)


@pytest.mark.parametrize(
    ("kernel_size", "strides", "groups", "channels", "features"),
    [
        (1, 1, 1, 6, 4),
        (1, 2, 1, 6, 4),
        (3, 1, 1, 6, 4),
        (3, 2, 1, 6, 4),
        (3, 1, 6, 6, 6),
        (3, 2, 6, 6, 6),
        (3, 1, 2, 6, 4),
        (5, 1, 6, 6, 6),
        (5, 2, 1, 6, 4),
    ],
)
@pytest.mark.parametrize("size", [(8, 6), (5, 3), (4, 2), (1, 1)])
def test_convolution_is_the_same_on_every_back_end(
    monkeypatch, size, kernel_size, strides, groups, channels, features
):
    x = jax.random.normal(jax.random.key(0), (2, *size, channels))
    module = conv.Conv(features, kernel_size, strides, groups, use_bias=True)
    variables = module.init(jax.random.key(1), x)

    def value_and_gradient():
        return jax.value_and_grad(
            lambda v, x: jnp.sin(module.apply(v, x)).sum(), argnums=(0, 1)
        )(variables, x)

    on_cpu = value_and_gradient()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu = value_and_gradient()  # the same variables: the parameters are shared
    # Float32 sums of at most 25 · 6 products in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        on_cpu,
        on_gpu,
    )


def test_strided_convolution_pads_like_pytorch():
    # A kernel that picks its centre reads pixels 0, 2, 4, …; 'SAME' would read 1, 3, …
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    y = conv.Conv(1, strides=2).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y[0, :, 0, 0], [0, 2, 4, 6])


def test_transposed_convolution_is_that_of_jax():
    """`jax.lax.conv_transpose` mirrors the kernel, PyTorch's and this one do not."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    params = conv.TransposedConv(6).init(jax.random.key(1), x)["params"]
    assert {k: v.shape for k, v in params.items()} == {
        "kernel": (2, 2, 4, 6),
        "bias": (6,),
    }
    bias = jnp.arange(6.0)
    found = conv.TransposedConv(6).apply({"params": params | {"bias": bias}}, x)
    expected = jax.lax.conv_transpose(
        x,
        params["kernel"][::-1, ::-1],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(found, expected + bias, rtol=1e-4, atol=1e-5)


def test_dual_stream_block_is_eq_6():
    """Any two modules, here dense layers over channels."""

    class Stream(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3)(x) * (2.0 if train else 1.0)

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 5))
    block = DualStreamBlock(Stream(), Stream())
    variables = block.init(jax.random.key(1), x, train=False)
    assert {*variables["params"]} == {"low", "high", "weight_low", "weight_high"}
    found = block.apply(variables, x, train=True)
    expected = 0
    for name, weight in (("low", found.w_low), ("high", found.w_high)):
        params = variables["params"][name]["Dense_0"]
        maps = 2 * (x @ params["kernel"] + params["bias"])
        predictor = variables["params"][f"weight_{name}"]
        hidden = maps.mean(axis=(1, 2)) @ predictor["fc1"]["kernel"]
        hidden = jax.nn.relu(hidden + predictor["fc1"]["bias"])
        logit = hidden @ predictor["fc2"]["kernel"] + predictor["fc2"]["bias"]
        np.testing.assert_allclose(weight, jax.nn.sigmoid(logit)[:, 0], rtol=1e-5)
        expected += weight[:, None, None, None] * maps
    np.testing.assert_allclose(found.maps, expected, rtol=1e-4, atol=1e-5)

    equal = DualStreamBlock(Stream(), Stream(), learned=False)
    halves = equal.apply(variables, x, train=False)
    np.testing.assert_array_equal(halves.w_low, [0.5, 0.5])
    both = [variables["params"][n]["Dense_0"] for n in ("low", "high")]
    expected = sum(0.5 * (x @ p["kernel"] + p["bias"]) for p in both)
    np.testing.assert_allclose(halves.maps, expected, rtol=1e-4, atol=1e-5)


def test_stem_and_stages_make_a_resnet():
    images = jax.random.uniform(jax.random.key(0), (1, 32, 16, 3))
    net = ResNet(4, (1, 2, 1, 1), last_stride=1)
    variables = jax.jit(functools.partial(net.init, train=False))(
        jax.random.key(1), images
    )

    def under(names):
        return {
            kind: {new: tree[old] for old, new in names.items() if old in tree}
            for kind, tree in variables.items()
        }

    def apply(module, names, x):
        return jax.jit(functools.partial(module.apply, train=False))(under(names), x)

    x = apply(ResNetStem(4), {"conv1": "conv1", "bn1": "bn1"}, images)
    for i, (blocks, strides) in enumerate(((1, 1), (2, 2), (1, 2), (1, 1))):
        names = {f"layer{i + 1}_{b}": f"block{b}" for b in range(blocks)}
        stage = ResNetStage(4 * 2**i, blocks, strides)
        x = apply(stage, names, x)
    whole = jax.jit(functools.partial(net.apply, train=False))(variables, images)
    np.testing.assert_allclose(x, whole[-1], rtol=1e-4, atol=1e-5)
