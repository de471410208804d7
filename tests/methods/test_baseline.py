"""The baselines: what each phase trains, what each recipe and option changes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from steps import loss_alone, loss_and_gradient

from crossres_jax.methods import baseline

NUM_CLASSES = 3
NARROW = {
    "width": 4,
    "num_blocks": (1, 1, 1, 1),
    "vdsr_channels": 4,
    "vdsr_depth": 3,
    "epochs_head": 1,
    "epochs_restorer": 1,
}


@functools.cache
def _build(**options):
    return baseline.build(NUM_CLASSES, **(NARROW | options))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hr = rng.uniform(size=(6, 32, 16, 3)).astype(np.float32)
    scale = np.array([2, 1, 3, 1, 4, 1], np.int32)
    noise = 0.1 * rng.normal(size=hr.shape) * (scale > 1)[:, None, None, None]
    return {
        "lr": (hr + noise).astype(np.float32),
        "hr": hr,
        "has_hr": np.ones(6, bool),
        "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
        "scale": scale,
        "resolution": (1 / scale).astype(np.float32),
    }


@functools.cache
def _variables(recipe, restorer="none"):
    images = {"lr": jnp.zeros((1, 32, 16, 3))}
    init = _build(recipe=recipe, restorer=restorer).init
    return jax.jit(init)(jax.random.key(0), images)


@functools.cache
def _loss(phase, **options):
    return loss_alone(_build(**options), phase)


def _changed(before, after):
    return {
        name
        for name in before
        if jax.tree.leaves(before[name])
        and any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        )
    }


@pytest.mark.parametrize(
    ("options", "counts", "size"),
    [
        ({}, {"backbone": 23_508_032, "head": 751 * 2049}, 2048),
        (
            {"recipe": "bot", "last_stride": 1, "pooling": "gem"},
            {"backbone": 23_508_032, "head": 1 + 2048 + 751 * 2048},
            2048,
        ),
        (
            {
                "recipe": "agw",
                "last_stride": 1,
                "num_non_local": (0, 2, 3, 0),
                "pooling": "gem",
            },
            {"backbone": 30_866_496, "head": 1 + 2048 + 751 * 2048},
            2048,
        ),
        (
            {
                "backbone": "osnet",
                "width": 0.25,
                "restorer": "vdsr",
                "epochs_restorer": 1,
            },
            {"backbone": 587_127 - 751 * 513, "head": 751 * 513, "restorer": 667_008},
            512,
        ),
        (
            {"backbone": "hrnet", "width": 32},
            {"backbone": 41_232_680 - 1000 * 2049, "head": 751 * 2049},
            2048,
        ),
    ],
)
def test_full_size_counts(options, counts, size):
    method = baseline.build(751, **options)
    images = jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32)
    variables = jax.eval_shape(method.init, jax.random.key(0), {"lr": images})
    assert counts == {
        name: sum(x.size for x in jax.tree.leaves(component))
        for name, component in variables["params"].items()
    }
    features = jax.eval_shape(
        lambda v, x: method.embed(v, x, role="query", resolution=jnp.ones(2)),
        variables,
        images,
    )
    assert features.shape == (2, size)


def test_the_phases_come_in_their_order_and_only_where_they_train():
    def names(**options):
        return [phase.name for phase in _build(**options).phases]

    assert names(restorer="vdsr") == ["restorer", "head", "identity"]
    assert names() == ["head", "identity"]
    assert names(epochs_head=0, epochs=0) == ["identity"]  # an untrained network


@pytest.mark.parametrize(
    ("recipe", "phase", "trained"),
    [
        ("softmax", "restorer", {"restorer"}),
        ("bot", "head", {"head"}),
        ("softmax", "identity", {"backbone", "head"}),
        ("bot", "identity", {"backbone", "head"}),
        ("agw", "identity", {"backbone", "head"}),
    ],
)
def test_a_phase_trains_its_components_alone(batch, recipe, phase, trained):
    variables = _variables(recipe, "vdsr")
    step = loss_and_gradient(_build(recipe=recipe, restorer="vdsr"), phase)
    output, gradients = step(variables, batch)
    assert set(gradients) == trained
    assert np.isfinite(output.loss) and output.loss > 0
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()
    assert jax.tree.all(jax.tree.map(lambda x: (x != 0).any(), gradients))
    recorded = trained - {"restorer"}
    recorded &= set(variables["batch_stats"])
    if recipe == "bot" and "head" in trained:
        recorded |= {"centers"}
    assert _changed(variables["batch_stats"], output.batch_stats) == recorded


def test_the_restorer_learns_from_degraded_pairs_alone(batch):
    run = _loss("restorer", restorer="vdsr")
    variables = _variables("softmax", "vdsr")
    output = run(variables, batch)
    sharp = batch["scale"] == 1
    changed = batch | {"hr": np.where(sharp[:, None, None, None], 0, batch["hr"])}
    assert run(variables, changed).loss == output.loss
    hidden = batch | {"has_hr": sharp}
    assert run(variables, hidden).loss == 0


def test_training_on_hr_never_sees_low_resolution(batch):
    run, variables = _loss("identity", trains_on="hr"), _variables("softmax")
    output = run(variables, batch)
    assert run(variables, batch | {"lr": 0 * batch["lr"]}).loss == output.loss
    stored = _loss("identity")
    assert stored(variables, batch | {"hr": 0 * batch["hr"]}).loss == (
        stored(variables, batch).loss
    )


def test_images_without_an_original_enter_no_loss_of_hr(batch):
    # In the phase of the head: the backbone's batch normalisation sees all images.
    options = {"trains_on": "hr", "recipe": "bot"}
    run, variables = _loss("head", **options), _variables("bot")
    hidden = batch | {"has_hr": np.array([1, 1, 1, 1, 1, 0], bool)}
    other = hidden | {
        "hr": np.where(np.arange(6) == 5, 0, 1)[:, None, None, None] * batch["hr"]
    }
    one, two = run(variables, hidden), run(variables, other)
    for name in ("loss_triplet", "loss_center"):
        assert one.scalars[name] == two.scalars[name] != 0
    np.testing.assert_array_equal(
        one.batch_stats["centers"]["features"], two.batch_stats["centers"]["features"]
    )
    # The neck's normalisation sees them, too, so the cross-entropy without a neck.
    run_plain, plain = _loss("head", trains_on="hr"), _variables("softmax")
    one_plain, two_plain = run_plain(plain, hidden), run_plain(plain, other)
    assert one_plain.loss == two_plain.loss != run_plain(plain, batch).loss
    whole = run(variables, batch)
    assert whole.scalars["loss_triplet"] != one.scalars["loss_triplet"]
    nothing = batch | {"has_hr": np.zeros(6, bool)}
    assert run(variables, nothing).loss == 0


def test_bot_adds_triplet_and_center_loss(batch):
    variables = _variables("bot")

    def parts(**options):
        output = _loss("identity", recipe="bot", **options)(variables, batch)
        return (
            output.loss,
            output.scalars["loss_triplet"],
            output.scalars["loss_center"],
        )

    loss, triplet, center = parts()
    other_loss, other_triplet, other_center = parts(lambda_center=0.1, margin=1.3)
    assert center == other_center > 0 and other_triplet > triplet + 0.1
    np.testing.assert_allclose(
        other_loss - loss, other_triplet - triplet + (0.1 - 5e-4) * center, rtol=1e-4
    )


def test_agw_adds_the_weighted_regularized_triplet_loss(batch):
    variables = _variables("agw")
    assert set(variables["batch_stats"]) == {"backbone", "head"}  # no centres
    options = {"recipe": "agw", "trains_on": "hr"}
    output = _loss("head", **options)(variables, batch)
    triplet = output.scalars["loss_triplet"]
    cross_entropy = np.log(NUM_CLASSES)  # of a classifier that starts near zero
    np.testing.assert_allclose(output.loss, cross_entropy + triplet, rtol=1e-2)

    hidden = batch | {"has_hr": np.array([1, 1, 1, 1, 1, 0], bool)}
    other = hidden | {
        "hr": np.where(np.arange(6) == 5, 0, 1)[:, None, None, None] * batch["hr"]
    }
    one, two = (_loss("head", **options)(variables, x) for x in (hidden, other))
    assert one.scalars["loss_triplet"] == two.scalars["loss_triplet"] != triplet


def test_imported_weights_leave_the_non_local_blocks_as_they_start():
    options = {"recipe": "agw", "num_non_local": (0, 2, 3, 0)}
    shapes = jax.eval_shape(
        _build(**options).init, jax.random.key(0), {"lr": jnp.zeros((1, 32, 16, 3))}
    )
    backbone = _build(**options).backbone
    skipped = {
        path.split("/")[1]
        for kind in ("params", "batch_stats")
        for path in flatten_dict({kind: shapes[kind]["backbone"]}, sep="/")
        if re.fullmatch(backbone.skip, path)
    }
    assert skipped == {"layer2_0_non_local", "layer3_0_non_local"}


def _embed(variables, images, resolution, **options):
    embed = functools.partial(_build(**options).embed, role="query")
    return jax.jit(embed)(variables, images, resolution=resolution)


def test_only_degraded_images_are_restored(batch):
    variables = _variables("softmax", "vdsr")
    plain = {"params": {k: variables["params"][k] for k in ("backbone", "head")}}
    plain |= {"batch_stats": variables["batch_stats"]}
    restored = _embed(variables, batch["lr"], batch["resolution"], restorer="vdsr")
    untouched = _embed(plain, batch["lr"], batch["resolution"])
    same = np.abs(restored - untouched).max(axis=1) < 1e-5 * np.abs(untouched).max()
    np.testing.assert_array_equal(same, batch["scale"] == 1)


@pytest.mark.parametrize("recipe", ["softmax", "bot", "agw"])
def test_a_neck_is_compared_behind_it_and_by_the_angle(batch, recipe):
    method, variables = _build(recipe=recipe), _variables(recipe)
    features = _embed(variables, batch["lr"], np.ones(6), recipe=recipe)
    distances = method.distance(features, features)
    scaled = method.distance(3 * features, features)
    assert (np.allclose(distances, scaled, atol=1e-5)) == (recipe != "softmax")
    if recipe != "softmax":
        stats = variables["batch_stats"]
        stats = stats | {"head": jax.tree.map(lambda x: x + 1, stats["head"])}
        changed = {**variables, "batch_stats": stats}
        moved = _embed(changed, batch["lr"], np.ones(6), recipe=recipe)
        assert not np.allclose(features, moved)


def test_a_stranger_to_the_baseline_is_refused():
    with pytest.raises(ValueError, match=r"no backbone 'vit'; expected one of resnet,"):
        _build(backbone="vit")
    with pytest.raises(ValueError, match=r"OSNet pools by itself"):
        _build(backbone="osnet", width=0.25, pooling="gem")
    with pytest.raises(ValueError, match=r"OSNet's width as a factor, .* found 64"):
        _build(backbone="osnet", width=64)
    with pytest.raises(ValueError, match=r"resnet's width in channels, found 0.25"):
        _build(width=0.25)
    with pytest.raises(ValueError, match=r"expected epochs_restorer of at least 1"):
        _build(restorer="vdsr", epochs_restorer=0)
