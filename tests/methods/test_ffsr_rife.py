"""FFSR + RIFE: its two networks, what each step trains, and Tables 1 and 2."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import loss_alone, loss_and_gradient, norms

from crossres_jax.losses import foreground_mse, resolution_weighting
from crossres_jax.methods import ffsr_rife
from crossres_jax.modules.autoencoder import AutoEncoder
from crossres_jax.ops.images import normalize
from crossres_jax.ops.masks import gaussian_mask
from crossres_jax.training.start import import_backbone

NUM_CLASSES = 3
NARROW = {
    "ffsr_stem_channels": 4,
    "ffsr_channels": 4,
    "srcnn_channels": (4, 4),
    "vdsr_channels": 4,
    "vdsr_depth": 3,
    "width": 4,
    "num_blocks": (1, 1, 1, 1),
    "feature_size": 8,
}

OF_INIT = ("restorer", "extractor")  # the options that decide what there is
ONE = {"extractor": "resnet"}  # compiles sooner than RIFE


@functools.cache
def _build(**options):
    return ffsr_rife.build(NUM_CLASSES, **(NARROW | options))


@functools.cache
def _variables(**options):
    """Initial variables, with a restorer that does something, for `OF_INIT`."""
    images = {"lr": jnp.zeros((1, 32, 16, 3))}
    variables = jax.jit(_build(**options).init)(jax.random.key(0), images)
    if "restorer" in variables["params"]:
        leaves, tree = jax.tree.flatten(variables["params"]["restorer"])
        keys = jax.random.split(jax.random.key(1), len(leaves))
        leaves = [
            x + 0.05 * jax.random.normal(key, x.shape)
            for x, key in zip(leaves, keys, strict=True)
        ]
        variables["params"]["restorer"] = jax.tree.unflatten(tree, leaves)
    return variables


def _variables_for(options):
    return _variables(**{name: options[name] for name in OF_INIT if name in options})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hr, lr = rng.uniform(size=(2, 6, 32, 16, 3)).astype(np.float32)
    return {
        "hr": hr,
        "lr": lr,
        "has_hr": np.array([True, True, True, True, False, False]),
        "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
        "relative_width": np.array([1, 0.5, 0.25, 1, 0.5, 0.25], np.float32),
    }


@functools.cache
def _step(phase, **options):
    step = loss_and_gradient(_build(**options), phase)
    return functools.partial(step, _variables_for(options))


def _loss(phase, **options):
    loss = loss_alone(_build(**options), phase)
    return functools.partial(loss, _variables_for(options))


def _count_macs(jaxpr):
    """Multiply-accumulates of convolutions and dot products, padding included."""
    total = 0
    for equation in jaxpr.eqns:
        kernel = equation.invars[1].aval.shape if len(equation.invars) > 1 else ()
        out = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            total += math.prod(out) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += math.prod(out) * math.prod(left[i] for i in contracted)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                total += _count_macs(inner.jaxpr)
    return total


def test_autoencoder_has_the_operations_of_table_1():
    net, images = AutoEncoder(), jax.ShapeDtypeStruct((1, 384, 128, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    macs = _count_macs(jax.make_jaxpr(net.apply)(variables, images).jaxpr)
    assert macs == 3_713_335_296  # 3.71 G
    kernels = [x for x in jax.tree.leaves(variables) if x.ndim == 4]
    assert len(kernels) == 12


def test_autoencoder_adds_what_its_skips_say():
    """Against the layers of docs/methods.md one by one, by `jax.lax`."""
    net = AutoEncoder(4, 6)
    images = jax.random.uniform(jax.random.key(0), (2, 16, 8, 3))
    params = _noisy(net.init(jax.random.key(1), images)["params"])

    def layer(n, x, stride=1):
        kernel, bias = params[f"conv{n}"]["kernel"], params[f"conv{n}"]["bias"]
        dims = ("NHWC", "HWIO", "NHWC")
        if n > 10:  # windows do not overlap: the kernel's taps side by side
            y = jnp.stack(
                [jnp.stack([x @ kernel[i, j] for j in (0, 1)], axis=3) for i in (0, 1)],
                axis=2,
            )  # (B, H, 2, W, 2, C)
            batch, height, _, width, _, channels = y.shape
            return y.reshape(batch, 2 * height, 2 * width, channels) + bias
        strides, pad = (stride, stride), ((1, 1), (1, 1))
        return (
            jax.lax.conv_general_dilated(x, kernel, strides, pad, None, None, dims)
            + bias
        )

    relu = jax.nn.relu
    a = relu(layer(1, images, 2))
    b = relu(layer(2, a, 2))
    c = relu(layer(4, relu(layer(3, b))))
    d = relu(layer(7, relu(layer(6, relu(layer(5, c))))))
    e = relu(layer(8, d) + c)
    f = relu(layer(10, relu(layer(9, e))) + b)
    expected = layer(12, relu(layer(11, f) + a)) + images
    found = net.apply({"params": params}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - images).max() > 0.1


def _noisy(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x + 0.1 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def test_untrained_ffsr_returns_its_input(batch):
    params = AutoEncoder(4, 4).init(jax.random.key(0), batch["hr"])["params"]
    variables = {"params": {"restorer": params}}
    restored = _build().restore(variables, batch["hr"], resolution=None)
    np.testing.assert_allclose(restored, batch["hr"], atol=1e-6)


def test_autoencoder_refuses_sides_that_it_cannot_halve_twice():
    with pytest.raises(ValueError, match=r"multiples of 4, found 32×18"):
        AutoEncoder(2, 2).init(jax.random.key(0), jnp.zeros((1, 32, 18, 3)))


@pytest.mark.parametrize(
    ("extractor", "size"),
    [("resnet", 1), ("two_resnets", 2), ("two_weighted_resnets", 2), ("rife", 2)],
)
def test_extractors_have_one_or_two_resnet50_without_a_second_stem(extractor, size):
    method = ffsr_rife.build(751, restorer="none", extractor=extractor)
    images = {"lr": jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)}
    params = jax.eval_shape(method.init, jax.random.key(0), images)["params"]
    found = sum(x.size for x in jax.tree.leaves(params))
    resnet, stem = 23_508_032, 9_408 + 128
    head = 2048 * 256 + 256 + 256 * 751 + 751
    maps = {"rife": (256, 512, 1024, 2048), "two_weighted_resnets": (2048,)}
    predictors = sum(2 * (c * 64 + 64 + 64 + 1) for c in maps.get(extractor, ()))
    shared = stem if extractor == "rife" else 0
    assert found == size * resnet - shared + head + predictors


def test_imported_weights_fill_both_streams_alike(narrow_resnet):
    from crossres_jax.pretrained import load_torch

    weights = load_torch(narrow_resnet)
    for extractor in ffsr_rife.EXTRACTORS:
        method = _build(extractor=extractor)
        shapes = jax.eval_shape(
            method.init, jax.random.key(0), {"lr": jnp.zeros((1, 32, 16, 3))}
        )
        filled = import_backbone(shapes, weights, method)["params"]["extractor"]
        filled = filled["body"]
        if extractor == "rife":
            blocks = [filled[f"dsb{t}"] for t in (1, 2, 3, 4)]
            names = [f"layer{t}.0.conv2.weight" for t in (1, 2, 3, 4)]
            low = [x["low"]["block0"]["conv2"]["kernel"] for x in blocks]
            high = [x["high"]["block0"]["conv2"]["kernel"] for x in blocks]
        elif extractor == "resnet":
            continue
        else:
            names = ["layer3.0.conv2.weight"]
            low = [filled["dsb"]["low"]["net"]["layer3_0"]["conv2"]["kernel"]]
            high = [filled["dsb"]["high"]["net"]["layer3_0"]["conv2"]["kernel"]]
        for name, of_low, of_high in zip(names, low, high, strict=True):
            np.testing.assert_array_equal(of_low, weights[name].transpose(2, 3, 1, 0))
            np.testing.assert_array_equal(of_low, of_high)


@pytest.mark.parametrize(
    ("options", "phase", "reached"),
    [
        ({}, "ffsr", {"restorer"}),
        ({}, "rife", {"extractor"}),
        ({}, "joint", {"restorer", "extractor"}),
        ({**ONE, "joint_learning": False}, "joint", {"extractor"}),
        ({**ONE, "restorer": "srcnn", "mask": "none"}, "ffsr", {"restorer"}),
        ({**ONE, "restorer": "vdsr", "mask": "none"}, "ffsr", {"restorer"}),
        ({**ONE, "restorer": "none"}, "joint", {"extractor"}),
    ],
)
def test_gradients_reach_what_the_step_trains(batch, options, phase, reached):
    output, gradient = _step(phase, **options)(batch)
    assert np.isfinite(output.loss)
    assert gradient.keys() == reached
    assert all(norm > 0 for norm in norms(gradient).values())


def test_without_a_restorer_there_is_no_first_step():
    assert [phase.name for phase in _build(restorer="none").phases] == ["rife", "joint"]


def test_the_reid_loss_reaches_ffsr_in_the_joint_step(batch):
    hidden = batch | {"has_hr": np.zeros(6, bool)}  # nothing to restore
    output, gradient = _step("joint")(hidden)
    assert output.scalars["loss_ffsr"] == 0
    assert norms(gradient)["restorer"] > 0


@pytest.mark.parametrize("phase", ["ffsr", "joint"])
def test_images_without_an_original_enter_no_restoration_loss(batch, phase):
    other = batch | {"hr": batch["hr"].copy()}
    other["hr"][4:] += 1.0
    output, gradient = _step(phase)(batch)
    found, found_gradient = _step(phase)(other)
    assert output.loss == found.loss
    jax.tree.map(np.testing.assert_array_equal, gradient, found_gradient)
    other["hr"][3] += 1.0
    assert _step(phase)(other)[0].loss > output.loss


@jax.jit
def _outputs(images):
    """RIFE of `_variables` on normalised pixels, in training."""
    net = ffsr_rife.Extractor(ffsr_rife.RIFE(4, (1, 1, 1, 1)), NUM_CLASSES, 8)
    variables = {kind: tree["extractor"] for kind, tree in _variables().items()}
    return net.apply(variables, images, train=True, mutable=["batch_stats"])[0]


def test_losses_are_eqs_4_5_7_8_and_9(batch):
    restorer = AutoEncoder(4, 4)
    params = {"params": _variables()["params"]["restorer"]}
    lr, hr = normalize(batch["lr"]), normalize(batch["hr"])
    restored = restorer.apply(params, lr)
    m = np.asarray(gaussian_mask(32, 16))[..., None]
    l_ffsr = np.mean((m * (restored - hr))[:4] ** 2)
    np.testing.assert_allclose(_step("ffsr")(batch)[0].loss, l_ffsr, rtol=1e-5)

    def l_rife(images):
        outputs, r = _outputs(images), batch["relative_width"]
        log_p = jax.nn.log_softmax(outputs.logits)
        l_x = -np.mean([log_p[i, y] for i, y in enumerate(batch["label"])])
        l_r = np.mean(
            sum(
                (outputs.w_low[t] - (1 - r)) ** 2 + (outputs.w_high[t] - r) ** 2
                for t in range(4)
            )
        )
        return l_x + 0.1 * l_r

    np.testing.assert_allclose(_step("rife")(batch)[0].loss, l_rife(lr), rtol=1e-4)
    joint = _loss("joint", alpha=3.0)(batch)
    np.testing.assert_allclose(joint.loss, l_ffsr + 3 * l_rife(restored), rtol=1e-4)


@pytest.mark.parametrize("mask", ["none", "array"])
def test_the_mask_can_be_left_out_or_supplied(batch, mask):
    values = np.ones((32, 16), np.float32)
    values[:, :4] = 0.0
    if mask == "none":
        values[:] = 1.0
    given = "none" if mask == "none" else tuple(map(tuple, values.tolist()))
    restored = AutoEncoder(4, 4).apply(
        {"params": _variables()["params"]["restorer"]}, normalize(batch["lr"])
    )
    difference = (restored - normalize(batch["hr"])) * values[..., None]
    expected = np.mean(difference[:4] ** 2)
    found = _loss("ffsr", mask=given)(batch).loss
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_two_streams_are_independent_and_the_weights_their_own(batch):
    outputs = _outputs(normalize(batch["lr"]))
    assert outputs.w_low.shape == outputs.w_high.shape == (4, 6)
    assert (outputs.w_low > 0).all()
    assert (outputs.w_high < 1).all()
    assert np.abs(outputs.w_low - outputs.w_high).max() > 1e-3
    _, stats = _step("rife")(batch)[0].loss, _step("rife")(batch)[0].batch_stats
    low, high = (stats["extractor"]["body"]["dsb2"][name] for name in ("low", "high"))
    differs = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), low, high)
    assert max(jax.tree.leaves(differs)) > 0


def test_embedding_is_the_feature_of_the_restored_image(batch):
    method, variables = _build(), _variables()
    embed = jax.jit(functools.partial(method.embed, role="query", resolution=None))
    found = embed(variables, batch["lr"])
    assert found["features"].shape == (6, 8)
    assert found["w_low"].shape == found["w_high"].shape == (6, 4)
    restored = normalize(batch["lr"])
    restored = AutoEncoder(4, 4).apply(
        {"params": variables["params"]["restorer"]}, restored
    )
    net = ffsr_rife.Extractor(ffsr_rife.RIFE(4, (1, 1, 1, 1)), NUM_CLASSES, 8)
    expected = jax.jit(functools.partial(net.apply, train=False))(
        {kind: tree["extractor"] for kind, tree in variables.items()}, restored
    )
    np.testing.assert_allclose(found["features"], expected.features, atol=1e-4)
    assert _build(restorer="none").restore is None
    distances = method.distance(found, found)
    difference = found["features"][0] - found["features"][1]
    np.testing.assert_allclose(distances[0, 1], jnp.linalg.norm(difference), rtol=1e-4)


def test_one_resnet_predicts_no_weights(batch):
    method, variables = _build(**ONE), _variables(**ONE)
    embed = functools.partial(method.embed, role="query", resolution=None)
    assert {*jax.eval_shape(embed, variables, batch["lr"])} == {"features"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restorer": "rcan"}, "FFSR . RIFE has no restorer 'rcan'"),
        ({"extractor": "osnet"}, "no extractor 'osnet'"),
        ({"mask": "ellipse"}, "no mask 'ellipse'"),
        ({"mask": np.ones(3)}, r"mask \(H, W\) of finite numbers, found \(3,\)"),
        ({"mask": np.full((2, 2), np.nan)}, "of finite numbers"),
        ({"dtype": "float16"}, "no dtype 'float16'"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ffsr_rife.build(NUM_CLASSES, **options)


def test_a_mask_of_another_size_is_refused(batch):
    method = _build(mask=((1.0, 1.0), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"found \(2, 2\) for \(6, 32, 16, 3\)"):
        method.phases[0].loss(_variables()["params"], {}, batch, None)


def test_resolution_weighting_is_eq_7():
    r = np.array([1.0, 0.25])
    assert (resolution_weighting(np.stack([1 - r]), np.stack([r]), r) == 0).all()
    w_low, w_high = np.array([[0.0, 0.5], [0.5, 0.5]]), np.array([[1.0, 0.5], [0.5, 1]])
    expected = [0 + 0 + 0.25 + 0.25, 0.0625 + 0.0625 + 0.0625 + 0.5625]
    np.testing.assert_allclose(resolution_weighting(w_low, w_high, r), expected)
    with pytest.raises(ValueError, match=r"\(T, B\) twice and resolutions \(B,\)"):
        resolution_weighting(w_low, w_high[:1], r)


def test_foreground_mse_weighs_before_the_square():
    restored, originals = np.zeros((2, 2, 2, 1)), np.ones((2, 2, 2, 1))
    mask = np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(foreground_mse(restored, originals, mask), [1, 1])
    each = np.stack([mask, 3 * mask])
    np.testing.assert_allclose(foreground_mse(restored, originals, each), [1, 9])
    with pytest.raises(ValueError, match=r"mask \(H, W\) or \(B, H, W\)"):
        foreground_mse(restored, originals, mask[0])


@pytest.mark.parametrize("size", [(384, 128), (31, 16)])
def test_gaussian_mask_is_a_quarter_of_each_side(size):
    mask = np.asarray(gaussian_mask(*size))
    assert mask.shape == size
    np.testing.assert_allclose(mask.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(mask, mask[::-1, ::-1], rtol=1e-4)
    for axis, side in enumerate(size):
        profile = mask.sum(axis=1 - axis)
        distance = np.arange(side) - (side - 1) / 2
        expected = np.exp(-((distance / (side / 4)) ** 2) / 2)
        np.testing.assert_allclose(
            profile / profile.sum(), expected / expected.sum(), rtol=1e-3
        )
