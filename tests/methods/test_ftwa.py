"""FTWA: what its loss is made of, what reaches what, and the weighted distance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import loss_alone, loss_and_gradient, norms

from crossres_jax.losses import (
    batch_hard_triplet,
    self_weighted_cross_entropy,
    self_weighted_triplet,
)
from crossres_jax.methods import ftwa
from crossres_jax.modules.raft import RAFT
from crossres_jax.ops.images import normalize
from crossres_jax.pretrained import load_torch
from crossres_jax.training.start import import_backbone

NUM_CLASSES = 3
NARROW = {
    "width": 4,
    "num_blocks": (1, 1, 1, 1),
    "raft_channels": 8,
    "raft_blocks": 1,
    "quality_size": 4,
}


@functools.cache
def _build(**options):
    return ftwa.build(NUM_CLASSES, **(NARROW | options))


@functools.cache
def _variables(modeling):
    """Initial variables, with a T and evaluators that do something."""
    images = {"hr": jnp.zeros((1, 32, 16, 3))}
    variables = jax.jit(_build(modeling=modeling).init)(jax.random.key(0), images)
    if "raft" in (params := variables["params"]):
        kernel = params["raft"]["last"]["kernel"]
        noise = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
        params["raft"]["last"]["kernel"] = kernel + noise
    return variables


@functools.cache
def _step(modeling, **options):
    step = loss_and_gradient(_build(modeling=modeling, **options), "reid")
    return functools.partial(step, _variables(modeling))


@pytest.mark.parametrize("modeling", ftwa.COMPONENTS)
def test_size_of_the_full_network(modeling):
    method = ftwa.build(1367, modeling=modeling)
    image = {"hr": jnp.zeros((1, 256, 128, 3))}
    params = jax.eval_shape(method.init, jax.random.key(0), image)["params"]
    found = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    shallow, resnet, classifier = 225_344, 23_508_032, 2048 * 1367
    quality = 2048 * 256 + 256 + 256 + 1 if modeling == "ftwa" else 0
    expected = {
        "encoder_hr": shallow,
        "encoder_lr": shallow,
        "encoder_id": resnet - shallow,
        "raft": 16_262_528,
        "stream_hr": classifier + quality,
        "stream_lr": classifier + quality,
    }
    assert found == {name: expected[name] for name in ftwa.COMPONENTS[modeling]}


def test_imported_weights_fill_both_shallow_encoders_and_the_deep_one(narrow_resnet):
    weights = load_torch(narrow_resnet)
    filled = import_backbone(_variables("ftwa"), weights, _build())["params"]
    shallow = filled["encoder_hr"], filled["encoder_lr"]
    for name, found in {
        "conv1": [x["stem"]["conv1"] for x in shallow],
        "layer1.0.conv2": [x["stage1"]["block0"]["conv2"] for x in shallow],
        "layer3.0.conv2": [filled["encoder_id"]["stage3"]["block0"]["conv2"]],
    }.items():
        expected = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        for layer in found:
            np.testing.assert_array_equal(layer["kernel"], expected)


def test_raft_starts_as_the_identity():
    x = np.random.default_rng(0).normal(size=(2, 4, 2, 12)).astype(np.float32)
    y, _ = RAFT(8, 2).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("modeling", ["ftwa", "ftwa_b", "baseline"])
def test_every_component_gets_a_gradient(batch, modeling):
    output, gradient = _step(modeling)(batch)
    assert np.isfinite(output.loss)
    assert gradient.keys() == {*ftwa.COMPONENTS[modeling]}
    assert all(norm > 0 for norm in norms(gradient).values())
    evaluators = [name for name in gradient if "quality1" in gradient[name]]
    assert evaluators == (["stream_hr", "stream_lr"] if modeling == "ftwa" else [])


@functools.partial(jax.jit, static_argnums=1)
def _module(variables, name, x):
    """What an encoder makes of a batch in training."""
    shallow, deep = ftwa.ShallowEncoder(4, 1), ftwa.ReIDEncoder(4, (1, 1, 1))
    network = deep if name == "encoder_id" else shallow
    of = {kind: tree[name] for kind, tree in variables.items()}
    return network.apply(of, x, train=True, mutable=["batch_stats"])[0]


@jax.jit
def _vectors(variables, batch):
    """(v_HR, v′_HR, v_LR, v′_LR), T(F′_LR) and F_HR in training, part by part."""
    lr = jnp.concatenate([batch["lr"], batch["synthetic_lr"]])
    maps = [
        _module(variables, "encoder_hr", normalize(batch["hr"])),
        _module(variables, "encoder_lr", normalize(lr)),
    ]
    maps = _module(variables, "encoder_id", jnp.concatenate(maps))
    f_hr, f_lr, fake_lr = jnp.split(maps, 3)
    raft = {"params": variables["params"]["raft"]}
    fake_hr, restored = (RAFT(8, 1).apply(raft, x) for x in (f_lr, fake_lr))
    vectors = [x.mean((1, 2)) for x in (f_hr, fake_hr, f_lr, fake_lr)]
    return vectors, restored, f_hr


def test_loss_is_eq_8_of_eqs_2_5_and_7(batch):
    variables, labels = _variables("ftwa"), batch["label"]
    vectors, restored, f_hr = _vectors(variables, batch)
    v_hr, fake_hr, v_lr, fake_lr = vectors
    stream = ftwa.Stream(NUM_CLASSES, quality_size=4)

    def judge(name, x):
        of = {"params": variables["params"][name]}
        return stream.apply(of, x, synthetic=False, train=True)

    hr, of_fake_hr = judge("stream_hr", v_hr), judge("stream_hr", fake_hr)
    lr, of_fake_lr = judge("stream_lr", v_lr), judge("stream_lr", fake_lr)

    def cross_entropy(own, fake):
        return self_weighted_cross_entropy(
            own.logits, fake.logits, labels, own.weights, fake.weights
        )

    has_lr = batch["has_lr"]
    expected = {
        "loss_cls": cross_entropy(hr, of_fake_lr).mean()
        + cross_entropy(lr, of_fake_hr)[has_lr].mean(),
        "loss_tri": self_weighted_triplet(
            (v_hr, fake_hr),
            (v_lr, fake_lr),
            labels,
            (hr.weights, of_fake_hr.weights),
            (lr.weights, of_fake_lr.weights),
            has_lr=has_lr,
        ),
        "loss_raft": jnp.abs(restored - f_hr).mean(),
    }
    output, _ = _step("ftwa")(batch)
    for name, value in expected.items():
        np.testing.assert_allclose(output.scalars[name], value, rtol=1e-4)
    cls, tri, raft = expected.values()
    np.testing.assert_allclose(output.loss, 3 * cls + tri + 0.1 * raft, rtol=1e-4)


@pytest.mark.parametrize("modeling", ["ftwa_b", "baseline"])
def test_without_raft_all_vectors_that_there_are_have_one_plain_loss(batch, modeling):
    variables = _variables(modeling)
    hr, lr, copies = (batch[key] for key in ("hr", "lr", "synthetic_lr"))
    images = {
        "baseline": {"encoder_hr": [hr, lr]},
        "ftwa_b": {"encoder_hr": [hr], "encoder_lr": [lr, copies]},
    }[modeling]
    maps = jnp.concatenate(
        [
            _module(variables, name, normalize(jnp.concatenate(streams)))
            for name, streams in images.items()
        ]
    )
    vectors = _module(variables, "encoder_id", maps).mean((1, 2))
    always = np.full(6, True)
    valid = np.concatenate([always, batch["has_lr"], always])[: len(vectors)]
    vectors, labels = vectors[valid], np.tile(batch["label"], 3)[: len(valid)][valid]
    logits = vectors @ variables["params"]["stream_hr"]["classifier"]["kernel"]
    cls = 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    tri = batch_hard_triplet(vectors, labels).mean()
    output, _ = _step(modeling)(batch)
    np.testing.assert_allclose(output.loss, 3 * cls + tri, rtol=1e-4)


def test_the_baseline_knows_no_copies(batch):
    step = _step("baseline")
    other, _ = step(batch | {"synthetic_lr": batch["lr"]})
    assert other.loss == step(batch)[0].loss


@pytest.mark.parametrize("modeling", ["ftwa", "baseline"])
def test_a_batch_without_lr_images_has_the_loss_of_the_others(batch, modeling):
    none = batch | {"has_lr": np.zeros(6, bool)}
    output, gradient = _step(modeling)(none)
    assert np.isfinite(output.loss)
    assert all(np.isfinite(norm) for norm in norms(gradient).values())
    some, _ = _step(modeling)(batch)
    assert some.scalars["loss_cls"] != output.scalars["loss_cls"]


def test_the_target_of_raft_gets_a_gradient_only_if_asked_for(batch):
    detached, gradient = _step("ftwa")(batch)
    attached, other = _step("ftwa", target_gradient=True)(batch)
    np.testing.assert_allclose(attached.loss, detached.loss, rtol=1e-6)
    # E_H changes with it, T and what stands behind it do not.
    for name, same in (("encoder_hr", False), ("raft", True), ("stream_hr", True)):
        found = jax.tree.leaves(gradient[name]), jax.tree.leaves(other[name])
        equal = [
            np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(*found, strict=True)
        ]
        assert all(equal) == same


def test_normalised_qualities_of_a_batch_lie_around_a_half():
    stream = ftwa.Stream(NUM_CLASSES, quality_size=4, quality_spread=0.5)
    vectors = np.random.default_rng(0).normal(3.0, 2.0, (64, 5)).astype(np.float32)
    for synthetic, name in ((False, "bn_real"), (True, "bn_synthetic")):
        apply = functools.partial(stream.apply, synthetic=synthetic)
        init = functools.partial(stream.init, synthetic=synthetic, train=False)
        variables = init(jax.random.key(0), vectors)
        (_, w), updates = apply(variables, vectors, train=True, mutable=["batch_stats"])
        logits = np.log(w / (1 - w))
        np.testing.assert_allclose(logits.mean(), 0, atol=0.02)  # of the least weight
        np.testing.assert_allclose(logits.std(), 0.5, rtol=0.02)
        assert updates["batch_stats"].keys() == {name}
        before, after = (x["batch_stats"][name] for x in (variables, updates))
        assert (before["mean"] != after["mean"]).all()


def test_the_test_takes_the_statistics_of_real_or_of_synthetic_vectors(batch):
    method = _build(quality_spread=1.0)
    variables = jax.jit(method.init)(jax.random.key(0), {"hr": batch["hr"][:1]})
    output = loss_alone(method, "reid")(variables, batch)
    before, after = variables["batch_stats"], output.batch_stats
    assert jax.tree.structure(before) == jax.tree.structure(after)
    images, copies = batch["hr"], batch["synthetic_lr"]
    embed = {
        "query": lambda v: _embed("query", quality_spread=1.0)(v, copies),
        "gallery": lambda v: _embed("gallery", True, quality_spread=1.0)(
            v, images, copies
        ),
    }
    for stream, used in (
        *(("stream_hr", {"query": "bn_synthetic", "gallery": "bn_real"}),),
        *(("stream_lr", {"query": "bn_real", "gallery": "bn_synthetic"}),),
    ):
        weight = f"w_{stream[-2:]}"
        for norm in ("bn_real", "bn_synthetic"):
            moved = jax.tree.map(lambda x: x + 1, before[stream][norm])
            stats = before | {stream: before[stream] | {norm: moved}}
            for role, name in used.items():
                found = embed[role]({**variables, "batch_stats": stats})[weight]
                same = np.array_equal(found, embed[role](variables)[weight])
                assert same == (norm != name)


# --- The losses


def test_a_vector_of_bad_quality_is_weighted_down():
    # CE of equal logits is log 2, that of (log 3, 0) is −log ¾ or −log ¼.
    logits = jnp.zeros((2, 2))
    other = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    loss = self_weighted_cross_entropy(
        logits, other, jnp.array([0, 1]), jnp.array([1.0, 0.9]), jnp.array([0.5, 0.1])
    )
    expected = [
        (np.log(2) - 0.5 * np.log(0.75)) / 1.5,
        (0.9 * np.log(2) - 0.1 * np.log(0.25)) / 1.0,
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)

    # The gradient with respect to a weight lowers that of the worse of the two.
    gradient = jax.grad(
        lambda w: self_weighted_cross_entropy(
            logits, other, jnp.array([1, 1]), jnp.ones(2), w
        ).sum()
    )(jnp.ones(2))
    assert (gradient > 0).all()  # −log ¼ is above log 2


def test_self_weighted_triplet_of_hand_worked_numbers():
    # One dimension. HR and v′_HR of persons 0, 1: 0, 10 and 1, 11. For each the
    # hardest positive is 1 away, the hardest negative 10, 9, 9, 10: margin 9 leaves 0,
    # 1, 1, 0.
    hr = (jnp.array([[0.0], [10.0]]), jnp.array([[1.0], [11.0]]))
    # LR and v′_LR: 0, 4 and 2, 6; positives 2, negatives 4, 2, 2, 4.
    lr = (jnp.array([[0.0], [4.0]]), jnp.array([[2.0], [6.0]]))
    own = [
        batch_hard_triplet(jnp.concatenate(x), jnp.array([0, 1, 0, 1]), margin=9.0)
        for x in (hr, lr)
    ]
    np.testing.assert_allclose(own[0], [0, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(own[1], [7, 9, 9, 7], atol=1e-5)
    loss = self_weighted_triplet(
        hr,
        lr,
        jnp.array([0, 1]),
        (jnp.array([1.0, 0.5]), jnp.array([0.4, 0.4])),  # a = 0.75 · 0.4 = 0.3
        (jnp.array([0.2, 0.2]), jnp.array([0.25, 0.75])),  # b = 0.2 · 0.5 = 0.1
        has_lr=jnp.array([True, True]),
        margin=9.0,
    )
    np.testing.assert_allclose(loss, (0.3 * 0.5 + 0.1 * 8.0) / 0.4, rtol=1e-5)


def test_a_triplet_without_lr_images_is_one_of_hr_images_and_their_copies():
    rng = np.random.default_rng(0)
    hr, lr, fake_lr = rng.normal(size=(3, 4, 3)).astype(np.float32)
    w = rng.uniform(0.1, 1.0, size=(4, 4)).astype(np.float32)
    pids = np.array([0, 0, 1, 1])
    value, gradient = jax.value_and_grad(
        lambda x: self_weighted_triplet(
            (hr, x), (x, fake_lr), pids, w[:2], w[2:], has_lr=np.zeros(4, bool)
        )
    )(lr)
    a, b = w[0].mean(), w[3].mean()
    of_hr, of_copies = (batch_hard_triplet(x, pids).mean() for x in (hr, fake_lr))
    np.testing.assert_allclose(value, (a * of_hr + b * of_copies) / (a + b), rtol=1e-5)
    assert (gradient == 0).all()


# --- The test


def test_weighted_distances_equal_the_direct_formula():
    rng = np.random.default_rng(0)

    def side(n):
        hr, lr = rng.normal(size=(2, n, 5)).astype(np.float32)
        w_hr, w_lr = rng.uniform(0.01, 1.0, size=(2, n)).astype(np.float32)
        return {"hr": hr, "lr": lr, "w_hr": w_hr, "w_lr": w_lr}

    query, gallery = side(7), side(9)
    found = ftwa.weighted_distances(query, gallery)
    for q in range(7):
        for g in range(9):
            hr, lr = (query[w][q] * gallery[w][g] for w in ("w_hr", "w_lr"))
            total = hr * np.linalg.norm(query["hr"][q] - gallery["hr"][g])
            total += lr * np.linalg.norm(query["lr"][q] - gallery["lr"][g])
            np.testing.assert_allclose(found[q, g], total / (hr + lr), rtol=1e-5)
    # In chunks of queries, as the evaluation takes them.
    some = {name: x[4:] for name, x in query.items()}
    np.testing.assert_allclose(
        ftwa.weighted_distances(some, gallery), found[4:], rtol=1e-6
    )


@functools.cache
def _embed(role, with_copies=False, **options):
    embed = functools.partial(_build(**options).embed, role=role)
    if with_copies:
        return jax.jit(lambda v, x, c: embed(v, x, resolution=None, copies=c))
    return jax.jit(lambda v, x: embed(v, x, resolution=None))


def test_a_query_is_transformed_and_a_gallery_image_has_a_copy(batch):
    variables = _variables("ftwa")
    images, copies = batch["hr"], batch["synthetic_lr"]
    query = _embed("query", modeling="ftwa")(variables, copies)
    gallery = _embed("gallery", True, modeling="ftwa")(variables, images, copies)
    assert {name: x.shape for name, x in query.items()} == {
        **{"hr": (6, 128), "lr": (6, 128)},
        **{"w_hr": (6,), "w_lr": (6,)},
    }
    # The same LR image: one vector as query and as a gallery image's copy.
    np.testing.assert_allclose(query["lr"], gallery["lr"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(query["hr"], gallery["hr"], rtol=1e-2)
    for side in (query, gallery):
        for name in ("w_hr", "w_lr"):
            assert ((side[name] > 0) & (side[name] <= 1)).all()
    no_evaluator = _embed("query", modeling="ftwa_r")
    even = no_evaluator(_variables("ftwa_r"), copies)
    np.testing.assert_array_equal([even["w_hr"], even["w_lr"]], np.ones((2, 6)))
    unit = _embed("query", modeling="ftwa", unit_vectors=True)(variables, copies)
    np.testing.assert_allclose(np.linalg.norm(unit["hr"], axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"needs `copies`, .* down-sampled by 3"):
        _build().embed(variables, images, role="gallery", resolution=None)
    with pytest.raises(ValueError, match=r"role must be .* found 'probe'"):
        _build().embed(variables, images, role="probe", resolution=None)


def test_two_encoders_take_a_role_each_and_one_takes_both(batch):
    for modeling, same in (("ftwa_b", False), ("baseline", True)):
        variables = _variables(modeling)
        query, gallery = (
            _embed(role, modeling=modeling)(variables, batch["hr"])["features"]
            for role in ("query", "gallery")
        )
        assert np.allclose(query, gallery) == same
        method = _build(modeling=modeling)
        assert method.gallery_rate == 0
        distances = method.distance({"features": query}, {"features": gallery})
        expected = np.linalg.norm(query[0] - gallery[1])
        np.testing.assert_allclose(distances[0, 1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modeling": "ftwa_c"}, "no modeling 'ftwa_c'; expected one of ftwa, ftwa_r"),
        ({"dtype": "float16"}, "no dtype 'float16'"),
        ({"gallery_rate": 1}, "a whole gallery_rate of at least 2, found 1"),
        ({"gallery_rate": 2.5}, "a whole gallery_rate of at least 2, found 2.5"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _build(**options)
