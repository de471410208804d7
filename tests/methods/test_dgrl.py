"""DGRL: what its loss is made of, what reaches what, and the way of the two roles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import loss_and_gradient, norms

from crossres_jax.losses import (
    label_smoothed_cross_entropy,
    mutual_kl,
    smooth_l1,
    weighted_regularized_triplet,
)
from crossres_jax.methods import dgrl
from crossres_jax.ops.images import normalize
from crossres_jax.pretrained import load_torch
from crossres_jax.training.start import import_backbone

NUM_CLASSES = 3
NARROW = {
    "width": 4,
    "num_blocks": (1, 1, 1, 1),
    "side1_blocks": (1, 1),
    "side2_blocks": 1,
    "num_groups": 2,
    "group_features": 8,
}
MAIN = {"shallow_hr", "shallow_sr", "body", "head"}


@functools.cache
def _build(**options):
    return dgrl.build(NUM_CLASSES, **(NARROW | options))


@functools.cache
def _variables(**options):
    images = {"hr": jnp.zeros((1, 32, 16, 3))}
    return jax.jit(_build(**options).init)(jax.random.key(0), images)


@functools.cache
def _step(**options):
    step = loss_and_gradient(_build(**options), "reid")
    return functools.partial(step, _variables(**options))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lr, hr = rng.uniform(size=(2, 6, 32, 16, 3)).astype(np.float32)
    return {
        "lr": lr,
        "hr": hr,
        "has_hr": np.array([True, True, True, True, True, False]),
        "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
    }


def test_size_of_the_full_network():
    image = {"hr": jnp.zeros((1, 256, 128, 3))}
    init = dgrl.build(751).init
    params = jax.eval_shape(init, jax.random.key(0), image)["params"]
    found = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    stem, resnet = 9_536, 23_508_032
    restormer = 64 * (192 + 64) + 9 * 192 + 4 + 64 * 340 + 9 * 340 + 170 * 64 + 256
    # θ, φ, g and out with biases, and the norm, of 512 and of 1024 channels.
    non_local = [4 * c * c // 2 + 3 * c // 2 + c + 2 * c for c in (512, 1024)]
    galn = 2048 * 33 * 512 + 512 * 256 + 2 * (33 * 512 + 256) + 3 + 257 * 32
    head = 1 + galn + 512 + 512 * 751
    layer4 = 14_964_736
    assert found == {
        "shallow_hr": stem + restormer,
        "shallow_sr": stem + restormer,
        "body": resnet - stem + 2 * non_local[0] + 3 * non_local[1],
        "side1": 3_746_816 + 10_502_144,  # three of layer3's blocks, two of layer4's
        "side2": layer4,
        "head": head,
        "head1": head,
        "head2": head,
    }


def test_imported_weights_fill_both_stems_the_body_and_the_side_branches(narrow_resnet):
    weights = load_torch(narrow_resnet)
    filled = import_backbone(_variables(), weights, _build())["params"]
    for name, found in {
        "conv1": [filled[x]["stem"]["conv1"] for x in ("shallow_hr", "shallow_sr")],
        "layer2.0.conv2": [filled["body"]["stage2"]["block0"]["conv2"]],
        "layer3.0.conv2": [filled["side1"]["stage1"]["block0"]["conv2"]],
        "layer4.0.conv2": [
            filled["side1"]["stage2"]["block0"]["conv2"],
            filled["side2"]["stage1"]["block0"]["conv2"],
        ],
    }.items():
        expected = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        for layer in found:
            np.testing.assert_array_equal(layer["kernel"], expected)


@pytest.mark.parametrize(
    ("options", "components"),
    [
        ({}, {*MAIN, "side1", "side2", "head1", "head2"}),
        ({"group_aware": False, "restormer": False, "non_local": False}, MAIN),
    ],
)
def test_every_component_gets_a_gradient(batch, options, components):
    output, gradient = _step(**options)(batch)
    assert np.isfinite(output.loss)
    assert gradient.keys() == components
    assert all(norm > 0 for norm in norms(gradient).values())
    parts = {"/".join(map(str, path)) for path, _ in _paths(gradient)}
    for option, part in (
        *(("group_aware", "galn"), ("restormer", "restormer")),
        ("non_local", "non_local"),
    ):
        assert any(part in path for path in parts) == options.get(option, True)


def _paths(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@jax.jit
def _branches(variables, batch):
    """(f_h, f_s), and what each branch makes of both in training, part by part."""

    def run(module, name, x):
        of = {kind: tree[name] for kind, tree in variables.items()}
        return module.apply(of, x, train=True, mutable=["batch_stats"])[0]

    shallow, head = dgrl.ShallowExtractor(4), dgrl.Head(NUM_CLASSES, 2, 8)
    f_h = run(shallow, "shallow_hr", normalize(batch["hr"]))
    f_s = run(shallow, "shallow_sr", normalize(batch["lr"]))
    maps = run(dgrl.Body(4, (1, 1, 1, 1)), "body", jnp.concatenate([f_h, f_s]))
    side1 = run(dgrl.Side((16, 32), (1, 1), (2, 1)), "side1", maps.second)
    side2 = run(dgrl.Side((32,), (1,), (1,)), "side2", maps.third)
    ends = {"head": maps.last, "head1": side1, "head2": side2}
    return f_h, f_s, [run(head, name, x) for name, x in ends.items()]


def test_loss_is_eq_13_of_eqs_5_7_9_and_12(batch):
    f_h, f_s, branches = _branches(_variables(), batch)
    there = np.concatenate([batch["has_hr"], np.full(6, True)])
    labels = np.tile(batch["label"], 2)
    weights = np.array([1.0, 0.5, 0.25])
    l_id = [
        label_smoothed_cross_entropy(x.logits, labels)[there].mean() for x in branches
    ]
    l_wrt = [
        weighted_regularized_triplet(x.features[there], labels[there]).mean()
        for x in branches
    ]
    expected = {
        "loss_l1": smooth_l1(f_h, f_s)[batch["has_hr"]].mean(),
        "loss_id": weights @ np.array(l_id),
        "loss_wrt": weights @ np.array(l_wrt),
        "loss_kl": mutual_kl([x.logits for x in branches])[there].mean(),
    }
    output, _ = _step(beta=0.25)(batch)
    for name, value in expected.items():
        np.testing.assert_allclose(output.scalars[name], value, rtol=1e-3, atol=1e-6)
    l_1, l_id, l_wrt, d_kl = expected.values()
    np.testing.assert_allclose(output.loss, 5 * l_1 + l_id + l_wrt + d_kl, rtol=1e-4)


def test_the_rows_of_table_2_leave_losses_out(batch):
    scalars = _step()(batch)[0].scalars
    output, _ = _step(gamma=0.0, lambda_wrt=0.0, lambda_kl=0.0)(batch)
    np.testing.assert_allclose(output.loss, scalars["loss_id"], rtol=1e-5)


def test_without_originals_there_are_no_pairs(batch):
    output, gradient = _step()(batch | {"has_hr": np.zeros(6, bool)})
    assert output.scalars["loss_l1"] == 0
    assert np.isfinite(output.loss)
    assert all(np.isfinite(norm) for norm in norms(gradient).values())


def test_queries_go_the_way_of_restored_images(batch):
    variables, method = _variables(), _build()
    embed = {
        role: jax.jit(functools.partial(method.embed, role=role, resolution=None))
        for role in ("query", "gallery")
    }
    query, gallery = (embed[role](variables, batch["hr"]) for role in embed)
    assert query.shape == gallery.shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, rtol=1e-5)
    swapped = {
        kind: {**x, "shallow_sr": x["shallow_hr"], "shallow_hr": x["shallow_sr"]}
        for kind, x in variables.items()
    }
    np.testing.assert_array_equal(embed["gallery"](swapped, batch["hr"]), query)
    assert not np.allclose(query, gallery, atol=1e-3)
    with pytest.raises(ValueError, match=r"role must be .* found 'probe'"):
        method.embed(variables, batch["hr"], role="probe", resolution=None)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"DGRL has no dtype 'float16'"):
        _build(dtype="float16")
