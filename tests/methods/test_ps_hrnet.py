"""PS-HRNet: equations, full-size counts, and which part gets a gradient when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import loss_and_gradient

from crossres_jax import losses, methods
from crossres_jax.methods import ps_hrnet
from crossres_jax.training.sharding import make_mesh, replicated, sharded
from crossres_jax.training.state import merge, split

NUM_CLASSES = 3
NARROW = {
    "width": 4,
    "stem_width": 4,
    "num_stem_blocks": 1,
    "num_modules": (1, 1, 1),
    "num_blocks": 1,
    "planes": 2,
    "feature_size": 8,
    "vdsr_channels": 4,
    "vdsr_depth": 3,
}


def _build(**options):
    return ps_hrnet.build(NUM_CLASSES, **(NARROW | options))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hr = rng.uniform(size=(8, 64, 32, 3)).astype(np.float32)
    return {
        "lr": np.clip(hr + rng.normal(size=hr.shape) * 0.1, 0, 1).astype(np.float32),
        "hr": hr,
        "has_hr": np.ones(8, bool),
        "label": np.array([0, 0, 1, 1, 2, 2, 0, 1], np.int32),
        "scale": np.array([2, 1, 3, 1, 4, 1, 3, 1], np.int32),
        "resolution": np.ones(8, np.float32),
    }


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(_build().init)(jax.random.key(0), batch)


@functools.cache
def _step(phase):
    """Compiling it takes most of these tests."""
    return loss_and_gradient(_build(), phase)


def test_full_size_counts():
    method = methods.load("ps_hrnet")(751)
    images = jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32)
    variables = jax.eval_shape(
        method.init, jax.random.key(0), {"lr": images, "hr": images}
    )
    counts = {
        name: sum(x.size for x in jax.tree.leaves(component))
        for name, component in variables["params"].items()
    }
    assert counts == {"h": 34_414_383, "l": 34_414_383, "restorer": 677_448}
    features = jax.eval_shape(
        lambda v, x: method.embed(v, x, role="query", resolution=jnp.ones(2)),
        variables,
        images,
    )
    assert features.shape == (2, 6656)  # Seq(5) and ℓ_f


def test_sequences_have_the_lengths_of_section_4c():
    network = ps_hrnet.HRNetReID(751, body=ps_hrnet.HRNet())
    outputs = jax.eval_shape(
        lambda rng, x: network.init_with_output(rng, x, train=False)[0],
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32),
    )
    assert [s.shape[1] for s in outputs.seqs] == [2048, 1024, 2048, 1024, 6144]
    assert outputs.features.shape == (2, 512)
    assert outputs.logits.shape == (2, 751)


def test_equation_6_of_hand_worked_numbers():
    # A 4 × 2 map in a 2 × 2 grid: every cell is a column of two values.
    x = jnp.array([[1.0, 5.0], [3.0, 5.0], [0.0, -1.0], [0.0, -3.0]])[None, :, :, None]
    seq = ps_hrnet.serialize(x, grid=2, weight=0.5)
    # means 2, 5, 0, −2; half the maxima 1.5, 2.5, 0, −0.5
    np.testing.assert_allclose(seq, [[3.5, 7.5, 0.0, -2.5]])


def _representation(seed, labels=6):
    keys = jax.random.split(jax.random.key(seed), 7)
    seqs = [jax.random.normal(k, (labels, 4 + i)) for i, k in enumerate(keys[:5])]
    return ps_hrnet.Representation(
        tuple(seqs),
        jax.random.normal(keys[5], (labels, 8)),
        jax.random.normal(keys[6], (labels, NUM_CLASSES)),
    )


def test_equation_10_adds_five_triplets_to_the_cross_entropy():
    outputs, labels = _representation(0), jnp.array([0, 0, 1, 1, 2, 2])
    cross_entropy = losses.label_smoothed_cross_entropy(outputs.logits, labels)
    triplets = [losses.batch_hard_triplet(s, labels, margin=0.1) for s in outputs.seqs]
    np.testing.assert_allclose(
        ps_hrnet.identity_loss(outputs, labels),
        1.15 * cross_entropy + 0.2 * sum(triplets),
        rtol=1e-6,
    )


def test_equation_11_sums_the_means_of_the_chosen_set():
    high, low = _representation(0), _representation(1)

    def mean(a, b):
        return np.abs(np.asarray(a) - np.asarray(b)).mean(axis=1)

    four = sum(mean(high.seqs[i], low.seqs[i]) for i in (0, 3, 4))
    four = four + mean(high.logits, low.logits)
    np.testing.assert_allclose(ps_hrnet.pseudo_siamese_loss(high, low), four, rtol=1e-5)
    six = four + sum(mean(high.seqs[i], low.seqs[i]) for i in (1, 2))
    np.testing.assert_allclose(
        ps_hrnet.pseudo_siamese_loss(high, low, chosen=ps_hrnet.FEATURES),
        six,
        rtol=1e-5,
    )


def test_equation_11_gives_the_teacher_no_gradient():
    high, low = _representation(0), _representation(1)
    teacher, student = jax.grad(
        lambda h, l: ps_hrnet.pseudo_siamese_loss(h, l).sum(),  # noqa: E741
        argnums=(0, 1),
    )(high, low)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(teacher))
    assert float(jnp.abs(student.seqs[0]).max()) > 0


def test_equation_12():
    assert ps_hrnet.total_loss(1.0, 2.0, 4.0) == 4.0


@pytest.mark.parametrize(
    ("supervision", "phases", "components", "restores"),
    [
        ("hr", ["h"], {"h"}, False),
        ("id", ["l"], {"l"}, False),
        ("id_sr", ["l"], {"l", "restorer"}, True),
        ("id_sr_ps", ["h", "l"], {"h", "l", "restorer"}, True),
    ],
)
def test_rows_of_table_2(batch, supervision, phases, components, restores):
    method = _build(supervision=supervision)
    assert [phase.name for phase in method.phases] == phases
    assert (method.restore is not None) == restores
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert set(shapes["params"]) == components


@pytest.mark.parametrize(("phase", "trained"), [("h", {"h"}), ("l", {"l", "restorer"})])
def test_every_trained_parameter_gets_a_finite_gradient(
    batch, variables, phase, trained
):
    output, gradients = _step(phase)(variables, batch)
    assert set(gradients) == trained
    assert np.isfinite(output.loss)
    largest = jax.tree_util.tree_map_with_path(
        lambda path, g: (jax.tree_util.keystr(path), float(jnp.abs(g).max())), gradients
    )
    for path, value in jax.tree.leaves(largest, is_leaf=lambda x: isinstance(x, tuple)):
        assert np.isfinite(value), path
        assert value > 0, path
    assert set(output.batch_stats) == {"h", "l"}


def test_four_devices_give_the_gradient_of_one(batch, variables):
    # Of the global batch: its statistics, its hardest triplets, its dropout.
    one, gradient_of_one = _step("l")(variables, batch)
    mesh = make_mesh(jax.devices()[:4])
    four, gradient_of_four = _step("l")(
        jax.device_put(variables, replicated(mesh)),
        jax.device_put(batch, sharded(mesh)),
    )
    assert float(four.loss) == pytest.approx(float(one.loss), rel=1e-5)
    jax.tree.map(  # only the order of float32 sums differs
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        gradient_of_one,
        jax.device_get(gradient_of_four),
    )


def test_phase_2_leaves_the_statistics_of_h_alone(batch, variables):
    output, _ = _step("l")(variables, batch)
    before, after = variables["batch_stats"], output.batch_stats
    jax.tree.map(np.testing.assert_array_equal, before["h"], after["h"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before["l"], after["l"])
    assert all(jax.tree.leaves(changed))


def test_pairs_without_an_original_enter_neither_sr_nor_ps(batch, variables):
    other = batch["hr"].copy()
    other[2] = 0.5
    masked = batch | {"has_hr": np.arange(8) != 2}
    one, _ = _step("l")(variables, masked)
    two, _ = _step("l")(variables, masked | {"hr": other})
    np.testing.assert_array_equal(one.loss, two.loss)
    assert one.scalars["loss_sr"] > 0
    all_pairs, _ = _step("l")(variables, batch)
    assert one.loss != all_pairs.loss
    none = batch | {"has_hr": np.zeros(8, bool)}
    without, _ = _step("l")(variables, none)
    assert without.scalars["loss_sr"] == without.scalars["loss_ps"] == 0


def test_sr_compares_degraded_pairs_alone_where_that_is_asked_for(batch, variables):
    other = batch["hr"].copy()
    other[1] = 0.5  # its scale is 1

    def loss_sr(sr_pairs):
        loss = _build(supervision="id_sr", sr_pairs=sr_pairs).phases[0].loss
        # Of this scalar alone, or l would be compiled, too.
        scalar = jax.jit(lambda *args: loss(*args).scalars["loss_sr"])
        of = variables["params"], variables["batch_stats"]
        return [float(scalar(*of, x, jax.random.key(1))) for x in (batch, changed)]

    changed = batch | {"hr": other}
    before, after = loss_sr("all")
    assert before != after
    before, after = loss_sr("degraded")
    assert before == after > 0


@pytest.mark.parametrize("phase", ["h", "l"])
def test_loss_falls_along_the_gradient(batch, variables, phase):
    # One batch, no momentum: a small step must lower the very loss it was taken for.
    before, gradients = _step(phase)(variables, batch)
    trained, frozen = split(variables["params"], "|".join(gradients))
    moved = jax.tree.map(lambda p, g: p - 1e-3 * g, trained, gradients)
    after, _ = _step(phase)({**variables, "params": merge(moved, frozen)}, batch)
    assert after.loss < before.loss


def test_embedding_is_a_unit_vector_that_ignores_mirroring(batch, variables):
    method = _build()
    embed = jax.jit(
        lambda v, x: method.embed(v, x, role="query", resolution=jnp.ones(8))
    )
    features = embed(variables, batch["lr"])
    assert features.shape == (8, (4 * 4 * 8 + 2 * 2 * 16 + 2 * 2 * 32 + 64) + 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    mirrored = embed(variables, batch["lr"][:, :, ::-1])
    np.testing.assert_allclose(features, mirrored, atol=1e-6)
    assert float(method.distance(features, features)[0, 0]) == pytest.approx(
        0, abs=1e-6
    )


def test_restored_images_are_pixels(batch, variables):
    restore = jax.jit(_build().restore)
    restored = restore(variables, batch["lr"], resolution=batch["resolution"])
    assert restored.shape == batch["lr"].shape
    assert float(restored.min()) >= 0
    assert float(restored.max()) <= 1


@pytest.fixture(scope="module")
def program(batch, variables):
    """Options → the program of phase 2's gradient, as text, and its result's shapes."""

    @functools.cache
    def program(**options):
        loss = _build(**options).phases[1].loss
        gradient = jax.grad(lambda *args: loss(*args).loss)
        jaxpr, shapes = jax.make_jaxpr(gradient, return_shape=True)(
            *(variables["params"], variables["batch_stats"], batch, jax.random.key(1))
        )
        return str(jaxpr), shapes

    return program


@pytest.mark.parametrize(
    ("option", "mark"), [({"remat": True}, "remat"), ({"dtype": "bfloat16"}, "bf16")]
)
def test_remat_and_bfloat16_change_the_program_and_not_the_parameters(
    program, option, mark
):
    (text, shapes), (plain, shapes_of_plain) = program(**option), program()
    assert mark in text
    assert mark not in plain
    assert shapes == shapes_of_plain


@pytest.mark.parametrize(
    "option",
    [
        {"supervision": "sr"},
        {"dtype": "float16"},
        {"ps_set": ("seq6",)},
        {"sr_pairs": "some"},
    ],
)
def test_unknown_options_are_named(option):
    with pytest.raises(ValueError, match=r"no \w+ '\w+'; expected one of"):
        _build(**option)
