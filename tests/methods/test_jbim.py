"""JBIM: what each stage trains, what reaches what, and the ensemble."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import loss_alone, loss_and_gradient, norms

from crossres_jax.losses import batch_hard_triplet, label_smoothed_cross_entropy
from crossres_jax.methods import jbim
from crossres_jax.methods.contract import Ensemble
from crossres_jax.modules.heads import HeadOutputs
from crossres_jax.modules.resnet import ResNet
from crossres_jax.modules.srcnn import SRCNN
from crossres_jax.ops.images import normalize

NUM_CLASSES = 3
NARROW = {
    "rates": (2,),
    "srcnn_channels": (4, 4),
    "vdsr_channels": 4,
    "vdsr_depth": 3,
    "width": 4,
    "num_blocks": (1, 1, 1, 1),
    "feature_size": 8,
}
IMAGE = {"hr": np.zeros((1, 32, 16, 3), np.float32)}


@functools.cache
def _build(**options):
    return jbim.build(NUM_CLASSES, **(NARROW | options))


@functools.cache
def _initial():
    return jax.jit(_build().init)(jax.random.key(0), IMAGE)


def _variables(modeling="jbim"):
    """Initial variables; those of every modeling are a part of JBIM's."""
    names = jbim.COMPONENTS[modeling]
    return {k: {n: x[n] for n in names if n in x} for k, x in _initial().items()}


@functools.cache
def _step(phase, **options):
    return loss_and_gradient(_build(**options), phase)


@functools.cache
def _loss(phase, **options):
    return loss_alone(_build(**options), phase)


def test_size_of_the_paper():
    """Table 2: 52.96 M; the identities are those of CUHK03."""
    method = jbim.build(1367, rates=(2,))
    image = {"hr": jnp.zeros((1, 256, 128, 3))}
    params = jax.eval_shape(method.init, jax.random.key(0), image)["params"]
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    head = 2048 * 512 + 512 + 512 + 512 * 1367
    assert sizes == {
        "restorer": 20_099,
        "h": 23_508_032,
        "l": 23_508_032,
        "h_head": head,
        "l_head": head,
        "ffn": 1024 * 1024 + 1024 + 2 * 1024 + 1024 * 1367 + 1367,
    }
    assert round(sum(sizes.values()) / 1e6, 2) == 52.99


@pytest.mark.parametrize(
    ("modeling", "phases", "components"),
    [
        ("jbim", ["restorer", "him", "lim", "joint"], 6),
        ("him", ["restorer", "him"], 3),
        ("lim", ["lim"], 2),
        ("him_lim", ["restorer", "him", "lim"], 5),
        ("all_resolution", ["him"], 2),
    ],
)
def test_each_modeling_has_its_parts(modeling, phases, components):
    method = _build(modeling=modeling)
    assert [phase.name for phase in method.phases] == phases
    assert method.tuples == "cross"
    rate = 0 if modeling == "all_resolution" else 2
    assert {phase.training_rate for phase in method.phases} == {rate}
    assert method.gallery_rate == rate
    variables = jax.eval_shape(method.init, jax.random.key(0), IMAGE)
    assert variables == jax.eval_shape(lambda x: x, _variables(modeling))
    params = variables["params"]
    assert len(params) == components
    assert (method.restore is None) == ("restorer" not in params)
    assert set(method.backbone.components) == {"h", "l"} & set(params)


@pytest.mark.parametrize(
    ("phase", "trained"),
    [
        ("restorer", {"restorer"}),
        ("him", {"restorer", "h", "h_head"}),
        ("lim", {"l", "l_head"}),
        ("joint", {"restorer", "h", "h_head", "l", "l_head", "ffn"}),
    ],
)
def test_gradients_reach_what_the_stage_trains(batch, phase, trained):
    variables = _variables()
    output, gradient = _step(phase)(variables, batch)
    assert set(gradient) == trained
    assert all(norm > 0 for norm in norms(gradient).values())
    moved = {
        name
        for name, before in variables["batch_stats"].items()
        if any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(before),
                jax.tree.leaves(output.batch_stats[name]),
                strict=True,
            )
        )
    }
    assert moved == trained - {"restorer"}


def test_loss_of_all_together_is_eq_11(batch):
    def losses(**weights):
        return _loss("joint", dropout=0.0, **weights)(_variables(), batch)

    def of(output, *names):
        return [float(output.scalars[name]) for name in names]

    reid, sr, lim, fus = of(losses(), "loss_reid", "loss_sr", "loss_lim", "loss_fus")
    assert min(reid, sr, lim, fus) > 0
    for alpha, beta in ((1.0, 3.0), (7.0, 0.5)):
        found = float(losses(alpha=alpha, beta=beta).loss)
        np.testing.assert_allclose(
            found, reid + alpha * sr + lim + beta * fus, rtol=1e-5
        )


def test_images_of_l_enter_no_restoration_loss(batch):
    for phase in ("restorer", "him"):
        other = batch | {"lr": batch["lr"][::-1]}
        before, after = (_step(phase)(_variables(), each)[0] for each in (batch, other))
        name = "loss_sr" if phase == "him" else None
        for output in (before, after):
            assert name is None or output.scalars[name] > 0
        if name:
            assert before.scalars[name] == after.scalars[name]
            assert before.loss != after.loss
        else:
            assert before.loss == after.loss


@pytest.mark.parametrize("stream", ["lr", "synthetic_lr"])
def test_reid_losses_of_both_lr_streams_reach_the_restorer(batch, stream):
    """With α = 0; the other stream shows nothing that the restorer could change."""
    variables = _variables()
    other = {"lr": "synthetic_lr", "synthetic_lr": "lr"}[stream]
    dark = batch | {other: np.zeros_like(batch[other])}
    _, both = _step("him", alpha=0.0)(variables, batch)
    _, one = _step("him", alpha=0.0)(variables, dark)
    kernel = one["restorer"]["conv1"]["kernel"]  # a dark picture has no part in it
    assert jnp.abs(kernel).max() > 0
    assert (kernel != both["restorer"]["conv1"]["kernel"]).any()


@functools.cache
def _features():
    """f_h, f_l and f_f of a batch in training, part by part, as sec. 3 writes them."""
    net = ResNet(4, (1, 1, 1, 1))
    head, fusion = jbim.Head(NUM_CLASSES, 8), jbim.FeatureFusion(NUM_CLASSES, 0.0)
    sr = SRCNN((9, 1, 5), (4, 4))

    @jax.jit
    def run(variables, batch):
        def of(name):
            return {
                kind: tree[name] for kind, tree in variables.items() if name in tree
            }

        def module(network, name, *x):
            mutable = ["batch_stats"]
            return network.apply(of(name), *x, train=True, mutable=mutable)[0]

        def extract(name, *streams):
            images = normalize(jnp.concatenate(streams))
            x = module(net, name, images)[-1]
            return module(head, f"{name}_head", x)

        lr, h2l, hr = batch["lr"], batch["synthetic_lr"], batch["hr"]
        sr_lr, sr_h2l = (sr.apply(of("restorer"), x) for x in (lr, h2l))
        high, low = extract("h", sr_lr, sr_h2l, hr), extract("l", lr, h2l)
        of_l, _, of_h = jnp.split(high.bn_features, 3)
        fused = module(fusion, "ffn", jnp.concatenate([of_l, of_h]), low.bn_features)
        return high, low, fused

    return run


def _cls(outputs, labels, valid):
    """L_reid, L_LIM or L_fus of streams that lie one behind the other."""
    rows = np.concatenate(valid)
    labels = np.tile(labels, len(valid))
    loss = label_smoothed_cross_entropy(outputs.logits, labels, epsilon=0.0)
    loss += batch_hard_triplet(outputs.features, labels, margin=0.3, valid=rows)
    streams = np.split(np.asarray(loss), len(valid))
    return sum(x[v].mean() for x, v in zip(streams, valid, strict=True))


def test_losses_are_those_of_the_streams_that_the_paper_names(batch):
    """And samples without l are no part of its stream."""
    variables = _variables()
    high, low, fused = _features()(variables, batch)
    has_lr, ones, labels = batch["has_lr"], np.ones(6, bool), batch["label"]
    scalars = _loss("joint", dropout=0.0)(variables, batch).scalars
    found = [float(scalars[f"loss_{name}"]) for name in ("reid", "lim", "fus")]
    expected = [
        _cls(high, labels, [has_lr, ones, ones]),
        _cls(low, labels, [has_lr, ones]),
        _cls(fused, labels, [has_lr, ones]),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    logits = np.asarray(fused.logits).argmax(1) == np.tile(labels, 2)
    accuracy = logits[np.concatenate([has_lr, ones])].mean()
    np.testing.assert_allclose(scalars["accuracy"], accuracy, rtol=1e-6)


@pytest.mark.parametrize("phase", ["him", "lim", "joint"])
def test_a_batch_without_any_l_is_finite(batch, phase):
    none = batch | {"has_lr": np.zeros(6, bool)}
    output, gradient = _step(phase)(_variables(), none)
    assert np.isfinite(output.loss)
    assert all(np.isfinite(norm) for norm in norms(gradient).values())


def test_schedule_of_each_stage():
    options = {"epochs_restorer": 5, "epochs": 7, "epochs_joint": 9}
    options |= {"learning_rate": 0.3, "learning_rate_joint": 0.2}
    options |= {"learning_rate_restorer": 0.1, "weight_decay": 0.4}
    options |= {"milestones": (3,), "milestones_joint": (4,), "warmup_epochs": 2}
    restorer, him, lim, joint = _build(**options).phases
    assert [x.epochs for x in (restorer, him, lim, joint)] == [5, 7, 7, 9]
    assert restorer.optimizer.learning_rates == {"restorer": 0.1}
    assert set(him.optimizer.learning_rates.values()) == {0.3}
    assert set(lim.optimizer.learning_rates.values()) == {0.3}
    both = "restorer|h|h_head|l|l_head"
    assert joint.optimizer.learning_rates == {both: 0.2, "ffn": 0.3}
    assert [x.optimizer.milestones for x in (him, lim, joint)] == [(3,), (3,), (4,)]
    assert [x.optimizer.warmup_epochs for x in (him, lim, joint)] == [2, 2, 0]
    assert him.optimizer.warmup == "linear"
    assert {x.optimizer.weight_decay for x in (him, lim, joint)} == {0.4}


def test_fused_feature_is_taken_before_the_dropout():
    fusion = jbim.FeatureFusion(NUM_CLASSES, 0.5)
    f_h, f_l = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    variables = fusion.init(jax.random.key(0), f_h, f_l, train=False)

    def outputs(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return fusion.apply(
            variables, f_h, f_l, train=True, mutable=["batch_stats"], rngs=rngs
        )[0]

    one, other = outputs(0), outputs(1)
    np.testing.assert_array_equal(one.features, other.features)
    assert (one.logits != other.logits).any()
    assert one.features.shape == (6, 8) and one.features.min() == 0


def test_him_without_synthetic_images(batch):
    options = {"him_synthetic": False}
    assert "restorer" not in [phase.name for phase in _build(**options).phases]
    output, gradient = _step("him", **options)(_variables(), batch)
    assert "loss_sr" not in output.scalars
    assert norms(gradient)["restorer"] > 0
    other = batch | {"synthetic_lr": 1 - batch["synthetic_lr"]}
    assert _step("him", **options)(_variables(), other)[0].loss == output.loss
    joint = _loss("joint", **options)(_variables(), batch)
    assert np.isfinite(joint.loss)


def test_classification_loss_sums_the_means_of_the_streams():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 2])
    valid = [np.array([True, True, False, True]), np.ones(4, bool)]
    features = rng.normal(size=(8, 5)).astype(np.float32)
    logits = rng.normal(size=(8, 3)).astype(np.float32)
    found = jbim.classification_loss(
        HeadOutputs(features, features, logits), labels, valid, margin=0.4
    )
    # Rows 0, 2, 4, 6 are the first stream; row 4 is the one that is not valid.
    kept = np.array([0, 1, 2, 3, 5, 6, 7])
    rows = np.repeat(labels, 2)
    triplet = np.zeros(8)
    triplet[kept] = batch_hard_triplet(features[kept], rows[kept], margin=0.4)
    identity = label_smoothed_cross_entropy(logits, rows, epsilon=0.0)
    per_row = np.asarray(identity) + triplet
    expected = per_row[[0, 2, 6]].mean() + per_row[1::2].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_of_the_ensemble_are_eq_19():
    distances = np.array([[[1.0, 2.0]], [[3.0, 5.0]]])  # two models, a query
    found = jbim.fused_distances(distances, np.array([0.5]), (2, 4), sigma=0.5)
    weight = np.exp(-(0.25**2) / 0.25)  # r = 1/2, m = 1/4
    np.testing.assert_allclose(found, [[1 + 3 * weight, 2 + 5 * weight]], rtol=1e-6)
    # A small σ leaves the model of the nearest rate.
    for resolution, chosen in ((0.5, 0), (0.25, 1), (1.0, 0)):
        found = jbim.fused_distances(
            distances, np.array([resolution]), (2, 4), sigma=0.01
        )
        np.testing.assert_allclose(found, distances[chosen], rtol=1e-6)


def _embed(role, modeling="jbim", with_copies=True, **changes):
    rng = np.random.default_rng(1)
    images, copies = rng.uniform(size=(2, 3, 32, 16, 3)).astype(np.float32)
    unit = changes.pop("unit_features", True)
    method = _build(modeling=modeling, unit_features=unit)
    inputs = {"images": images, "copies": copies} | changes
    copies = {"copies": inputs["copies"]} if role == "gallery" and with_copies else {}
    resolution = np.full(3, 0.5, np.float32)
    return method.embed(
        _variables(modeling),
        inputs["images"],
        role=role,
        resolution=resolution,
        **copies,
    )["features"]


@pytest.mark.parametrize(
    ("modeling", "size"),
    [("jbim", 16), ("him", 8), ("lim", 8), ("him_lim", 16), ("all_resolution", 8)],
)
def test_embedding_has_the_parts_of_the_modeling(modeling, size):
    features = _embed("query", modeling)
    assert features.shape == (3, size)
    parts = 2 if modeling == "him_lim" else 1
    np.testing.assert_allclose((features**2).sum(1), parts, rtol=1e-4)


@pytest.mark.parametrize("role", ["query", "gallery"])
def test_fused_feature_is_of_f_h_and_f_l(role):
    """Of the same images: HIM's, then LIM's, through the FFN."""
    variables = _variables()
    f_h, f_l = np.split(_parts(role), 2, axis=1)
    ffn = {kind: tree["ffn"] for kind, tree in variables.items()}
    fused = jbim.FeatureFusion(NUM_CLASSES).apply(ffn, f_h, f_l, train=False).features
    found = _embed(role, unit_features=False)
    np.testing.assert_allclose(found, fused, rtol=1e-4, atol=1e-5)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 1e-3).any()
    np.testing.assert_allclose(_embed(role), found / lengths, rtol=1e-4, atol=1e-5)


def _parts(role):
    """f_h and f_l of the networks of JBIM, side by side."""
    variables = _variables("him_lim")
    method = _build(modeling="him_lim", unit_features=False)
    rng = np.random.default_rng(1)
    images, copies = rng.uniform(size=(2, 3, 32, 16, 3)).astype(np.float32)
    resolution = np.full(3, 0.5, np.float32)
    copies = {"copies": copies} if role == "gallery" else {}
    found = method.embed(variables, images, role=role, resolution=resolution, **copies)
    return np.asarray(found["features"])


def test_gallery_uses_its_copies_where_lim_looks():
    other = np.zeros((3, 32, 16, 3), np.float32)
    for modeling, matters in (("jbim", True), ("lim", True), ("him", False)):
        one, two = (
            _embed("gallery", modeling),
            _embed("gallery", modeling, copies=other),
        )
        assert (one != two).any() == matters
    with pytest.raises(ValueError, match="images down-sampled by 2"):
        _embed("gallery", with_copies=False)
    with pytest.raises(ValueError, match="'query' or 'gallery', found 'probe'"):
        _embed("probe")


def test_only_probes_are_restored():
    assert (_embed("query", "him") != _embed("gallery", "him")).any()
    one, two = (_embed(role, "all_resolution") for role in ("query", "gallery"))
    np.testing.assert_array_equal(one, two)


def test_ensemble_weighs_the_distances_of_its_members():
    ensemble = _build(rates=(2.0, 3), sigma=0.2)
    assert isinstance(ensemble, Ensemble)
    assert ensemble.members == {"x2": {"rates": [2]}, "x3": {"rates": [3]}}
    rng = np.random.default_rng(0)
    resolution = np.array([0.5, 1 / 3], np.float32)

    def side(n):
        features = rng.normal(size=(2, n, 4)).astype(np.float32)
        return {
            name: {"features": x, "resolution": np.resize(resolution, n)}
            for name, x in zip(("x2", "x3"), features, strict=True)
        }

    query, gallery = side(2), side(3)
    apart = [
        _build(rates=(r,)).distance(query[f"x{r}"], gallery[f"x{r}"]) for r in (2, 3)
    ]
    expected = jbim.fused_distances(np.stack(apart), resolution, (2, 3), sigma=0.2)
    np.testing.assert_allclose(ensemble.distance(query, gallery), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modeling": "hlm"}, "no modeling 'hlm'; expected one of jbim, him"),
        ({"restorer": "rcan"}, "no restorer 'rcan'"),
        ({"backbone": "vgg"}, "no backbone 'vgg'"),
        ({"dtype": "float16"}, "no dtype"),
        ({"backbone": "osnet", "width": 64}, "width as a factor, 0.25 or 1, found 64"),
        ({"width": 0.25}, "ResNet's width in channels, found 0.25"),
        ({"rates": ()}, r"whole numbers from 2, each once, found \(\)"),
        ({"rates": (2, 2)}, r"found \(2, 2\)"),
        ({"rates": (1, 2)}, r"found \(1, 2\)"),
        ({"rates": (2.5,)}, r"found \(2.5,\)"),
        ({"sigma": 0.0}, "a positive sigma, found 0.0"),
        ({"srcnn_channels": (4,)}, "three odd kernel sizes and two widths"),
        ({"srcnn_kernel_sizes": (9, 1, 4)}, r"found \(9, 1, 4\) and \(64, 32\)"),
        ({"rates": (2,), "modeling": "lim", "epochs": 0}, "nothing to train: lim"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jbim.build(3, **options)
