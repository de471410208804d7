"""FTWA: HR features made of LR features, and attention to how good features are.

"Resolution-invariant Person ReID Based on Feature Transformation and Self-weighted
Attention", arXiv:2101.04544. Equation, section and table numbers are the paper's;
docs/methods.md says where this code departs.

Components:

  encoder_hr, encoder_lr   E_H and E_L, shallow features of HR and of LR images
  encoder_id               E_ID, re-identification features of both
  raft                     T, makes HR features of LR features
  stream_hr, stream_lr     C and W, identity and quality of HR and of LR vectors

Every image has features of both resolutions, of which one is synthetic ("fake", F′): an
HR image F_HR, and F′_LR of its LR copy; an LR image F_LR, and F′_HR = T(F_LR).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.losses import (
    batch_hard_triplet,
    label_smoothed_cross_entropy,
    masked_mean,
    mean_absolute_error,
    self_weighted_cross_entropy,
    self_weighted_triplet,
)
from crossres_jax.methods.contract import (
    Backbone,
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.raft import RAFT
from crossres_jax.modules.residual import batch_norm
from crossres_jax.modules.resnet import ResNetStage, ResNetStem
from crossres_jax.ops.distances import euclidean_distances, l2_normalize
from crossres_jax.ops.images import normalize
from crossres_jax.ops.streams import apart, together
from crossres_jax.pretrained import tables

LEAST_WEIGHT = 1e-3  # Eqs. (5) and (7) divide by weights

ALL = ("encoder_hr", "encoder_lr", "encoder_id", "raft", "stream_hr", "stream_lr")
COMPONENTS = {  # Table 2
    "ftwa": ALL,
    "ftwa_r": ALL,
    "ftwa_b": ("encoder_hr", "encoder_lr", "encoder_id", "stream_hr"),
    "baseline": ("encoder_hr", "encoder_id", "stream_hr"),
}
BACKBONE = {
    "encoder_hr": tables.SHALLOW_RESNET,
    "encoder_lr": tables.SHALLOW_RESNET,
    "encoder_id": tables.DEEP_RESNET,
}


class ShallowEncoder(nn.Module):
    """E_H or E_L: the stem and the first stage of a ResNet (sec. 2.1).

    Attributes:
      width, dtype: see `ResNet`.
      num_blocks: of the stage.
    """

    width: int = 64
    num_blocks: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, 3) normalised images → (B, H/4, W/4, 4 · width)."""
        x = ResNetStem(self.width, self.dtype, name="stem")(images, train=train)
        stage = ResNetStage(self.width, self.num_blocks, 1, self.dtype, name="stage1")
        return stage(x, train=train)


class ReIDEncoder(nn.Module):
    """E_ID: the other three stages (sec. 2.1), the last without its stride (3.2).

    Attributes:
      width, last_stride, dtype: see `ResNet`.
      num_blocks: of the three stages.
    """

    width: int = 64
    num_blocks: tuple[int, int, int] = (4, 6, 3)
    last_stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H/4, W/4, 4 · width) → (B, H/16, W/16, 32 · width)."""
        strides = (2, 2, self.last_stride)
        for i, num_blocks in enumerate(self.num_blocks):
            planes = self.width * 2 ** (i + 1)
            name = f"stage{i + 2}"
            x = ResNetStage(planes, num_blocks, strides[i], self.dtype, name=name)(
                x, train=train
            )
        return x


class Judgement(NamedTuple):
    """What a stream makes of vectors, Eq. (4).

    Attributes:
      logits: f, (B, num_classes).
      weights: w, (B,) float32 in (0, 1].
    """

    logits: jax.Array
    weights: jax.Array


class Stream(nn.Module):
    """Identity classifier C and quality evaluator W of one resolution (sec. 2.3).

    Attributes:
      num_classes: number of identities.
      weighs: whether there is an evaluator; else all weights are 1.
      quality_size: of the evaluator's hidden layer.
      quality_spread: standard deviation to which what its sigmoid gets is normalised
        over a batch, around 0, real and synthetic vectors apart: the weights of either
        then lie around 1/2. 0 leaves it as it is.
    """

    num_classes: int
    weighs: bool = True
    quality_size: int = 256
    quality_spread: float = 0.0

    @nn.compact
    def __call__(
        self, vectors: jax.Array, *, synthetic: bool, train: bool
    ) -> Judgement:
        """(B, D) float32 → Judgement."""
        classifier = nn.Dense(self.num_classes, use_bias=False, name="classifier")
        logits = classifier(vectors)
        if not self.weighs:
            return Judgement(logits, jnp.ones(len(vectors)))
        x = nn.leaky_relu(nn.Dense(self.quality_size, name="quality1")(vectors))
        x = nn.Dense(1, name="quality2")(x)
        if self.quality_spread:
            norm = batch_norm(train=train)
            name = "bn_synthetic" if synthetic else "bn_real"
            x = norm(use_scale=False, use_bias=False, name=name)(x)
            x = self.quality_spread * x
        w = (nn.sigmoid(x[:, 0]) + LEAST_WEIGHT) / (1 + LEAST_WEIGHT)
        return Judgement(logits, w)


def weighted_distances(query: dict, gallery: dict) -> jax.Array:
    """Distances in HR and in LR vectors, and their mean weighted by the qualities.

    D = (w_q^HR w_g^HR D^HR + w_q^LR w_g^LR D^LR) / (w_q^HR w_g^HR + w_q^LR w_g^LR),
    the metric of sec. 2.3 as Eq. (7) weighs its two terms. No difference of a pair is
    ever in memory.

    Args:
      query, gallery: {"hr", "lr": (B, D) vectors, "w_hr", "w_lr": (B,) positive}.

    Returns:
      (Q, G) float32.
    """
    weights, total = 0.0, 0.0
    for name in ("hr", "lr"):
        weight = query[f"w_{name}"][:, None] * gallery[f"w_{name}"][None]
        total += weight * euclidean_distances(query[name], gallery[name])
        weights += weight
    return total / weights


def build(
    num_classes: int,
    *,
    modeling: Literal["ftwa", "ftwa_r", "ftwa_b", "baseline"] = "ftwa",
    # The networks.
    width: int = 64,
    num_blocks: Sequence[int] = (3, 4, 6, 3),
    last_stride: int = 1,
    raft_channels: int = 256,
    raft_blocks: int = 4,
    quality_size: int = 256,
    quality_spread: float = 0.0,
    # The losses.
    margin: float = 0.3,
    label_smoothing: float = 0.0,
    lambda_1: float = 3.0,
    lambda_2: float = 1.0,
    lambda_3: float = 0.1,
    target_gradient: bool = False,
    # The test.
    gallery_rate: int = 3,
    unit_vectors: bool = False,
    # The training.
    epochs: int = 120,
    learning_rate: float = 7e-4,
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (40, 70),
    decay_factor: float = 0.2,
    warmup_epochs: int = 10,
    warmup_learning_rate: float = 7e-6,
    dtype: str = "float32",
) -> Method:
    """FTWA for a training set of `num_classes` identities.

    Args:
      num_classes: number of training identities.
      modeling: "ftwa", or what Table 2 compares it with: "ftwa_r", where all weights
        are 1; "ftwa_b", two encoders, and one classifier and one triplet loss on F_HR,
        F_LR and F′_LR; "baseline", one encoder for the HR and the LR images alike.
      width, num_blocks, last_stride: see `ResNet`.
      raft_channels, raft_blocks: see `RAFT`.
      quality_size, quality_spread: see `Stream`.
      margin: m of Eq. (6).
      label_smoothing: ε of the cross-entropy.
      lambda_1, lambda_2, lambda_3: of Eq. (8).
      target_gradient: whether L_RAFT moves its target F_HR too.
      gallery_rate: of the LR copies of gallery images, whole and at least 2.
      unit_vectors: whether vectors are brought to length 1 before the distance.
      epochs, learning_rate, weight_decay, milestones, decay_factor, warmup_epochs,
        warmup_learning_rate: see `contract.Optimizer`: Adam, the warm-up is linear.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method. The embedding of "ftwa" and "ftwa_r" and its distance are those of
      `weighted_distances`; a query counts as LR and a gallery image as HR. The others'
      is {"features": (B, D)}, a query's by E_L and a gallery image's by E_H where
      there are both, with the Euclidean distance.

    Raises:
      ValueError: if one of the named choices is unknown, or a gallery rate is none.
    """
    check = partial(check_choice, "FTWA")
    check("modeling", modeling, tuple(COMPONENTS))
    check("dtype", dtype, ("float32", "bfloat16"))
    if gallery_rate < 2 or gallery_rate % 1:
        raise ValueError(
            f"expected a whole gallery_rate of at least 2, found {gallery_rate}."
        )

    dtype = jnp.dtype(dtype)
    components = COMPONENTS[modeling]
    shallow = ShallowEncoder(width, num_blocks[0], dtype)
    encoders = {
        "encoder_hr": shallow,
        "encoder_lr": shallow,
        "encoder_id": ReIDEncoder(width, tuple(num_blocks[1:]), last_stride, dtype),
    }
    raft = RAFT(raft_channels, raft_blocks, dtype)
    stream = Stream(num_classes, modeling == "ftwa", quality_size, quality_spread)
    # Whose encoder takes the LR images.
    of_lr = "encoder_lr" if "encoder_lr" in components else "encoder_hr"

    def init(rng, batch):
        rngs = dict(zip(ALL, jax.random.split(rng, len(ALL)), strict=True))
        images, variables = batch["hr"], {}
        for name in ("encoder_lr", "encoder_hr"):
            x, variables[name] = shallow.init_with_output(
                rngs[name], images, train=False
            )
        x, variables["encoder_id"] = encoders["encoder_id"].init_with_output(
            rngs["encoder_id"], x, train=False
        )
        variables["raft"] = raft.init(rngs["raft"], x)
        for name in ("stream_hr", "stream_lr"):
            made = [
                stream.init(rngs[name], vector(x), synthetic=synthetic, train=False)
                for synthetic in (False, True)
            ]
            stats = {k: x for of in made for k, x in of.get("batch_stats", {}).items()}
            variables[name] = made[0] | ({"batch_stats": stats} if stats else {})
        kept = {name: variables[name] for name in components}
        return {
            kind: {name: x[kind] for name, x in kept.items() if kind in x}
            for kind in ("params", "batch_stats")
        }

    def run(name, params, batch_stats, streams, *, train):
        """An encoder on streams as one batch: (what it makes of each, statistics)."""
        x, updates = encoders[name].apply(
            {"params": params[name], "batch_stats": batch_stats[name]},
            together(*streams),
            train=train,
            mutable=["batch_stats"],
        )
        return apart(x, len(streams)), {**batch_stats, name: updates["batch_stats"]}

    def encode(params, batch_stats, images, *, train):
        """F of Eq. (1), maps (B, H/16, W/16, 32 · width), and the batch statistics.

        images: encoder → the pixels (B, H, W, 3) that it takes, one by one.
        """
        maps = []
        for name, streams in images.items():
            streams = [normalize(x) for x in streams]
            found, batch_stats = run(name, params, batch_stats, streams, train=train)
            maps += found
        maps, batch_stats = run("encoder_id", params, batch_stats, maps, train=train)
        return [x.astype(jnp.float32) for x in maps], batch_stats

    def vector(maps):
        """v: the mean of a map, (B, D)."""
        return maps.mean(axis=(1, 2))

    def transform(params, maps):
        """T, Eq. (3), computed in `dtype`, float32 result."""
        return raft.apply({"params": params["raft"]}, maps).astype(jnp.float32)

    def judge(params, batch_stats, name, vectors, *, synthetic=False, train=False):
        """Eq. (4): (Judgement, batch statistics)."""
        judgement, updates = stream.apply(
            {"params": params[name], "batch_stats": batch_stats.get(name, {})},
            vectors,
            synthetic=synthetic,
            train=train,
            mutable=["batch_stats"],
        )
        if name in batch_stats:  # of `quality_spread`
            batch_stats = {**batch_stats, name: updates["batch_stats"]}
        return judgement, batch_stats

    def loss_ftwa(params, batch_stats, batch, rng):
        """L_ReID = λ1 L_Cls^SWA + λ2 L_Tri^SWA + λ3 L_RAFT, Eq. (8)."""
        del rng
        labels, has_lr = batch["label"], batch["has_lr"]
        images = {
            "encoder_hr": [batch["hr"]],
            "encoder_lr": [batch["lr"], batch["synthetic_lr"]],
        }
        (f_hr, f_lr, fake_f_lr), batch_stats = encode(
            params, batch_stats, images, train=True
        )
        fake_f_hr, restored = apart(transform(params, together(f_lr, fake_f_lr)), 2)
        target = f_hr if target_gradient else jax.lax.stop_gradient(f_hr)
        l_raft = mean_absolute_error(restored, target).mean()  # Eq. (2)

        v_hr, v_lr, fake_v_hr, fake_v_lr = map(
            vector, (f_hr, f_lr, fake_f_hr, fake_f_lr)
        )
        judged = []
        for name, v, synthetic in (
            *(("stream_hr", v_hr, False), ("stream_hr", fake_v_hr, True)),
            *(("stream_lr", v_lr, False), ("stream_lr", fake_v_lr, True)),
        ):
            judgement, batch_stats = judge(
                params, batch_stats, name, v, synthetic=synthetic, train=True
            )
            judged.append(judgement)
        hr, fake_hr, lr, fake_lr = judged
        of_hr_images, of_lr_images = (
            self_weighted_cross_entropy(
                own.logits,
                fake.logits,
                labels,
                own.weights,
                fake.weights,
                epsilon=label_smoothing,
            )
            for own, fake in ((hr, fake_lr), (lr, fake_hr))
        )
        l_cls = of_hr_images.mean() + masked_mean(of_lr_images, has_lr)  # Eq. (5)
        l_tri = self_weighted_triplet(
            (v_hr, fake_v_hr),
            (v_lr, fake_v_lr),
            labels,
            (hr.weights, fake_hr.weights),
            (lr.weights, fake_lr.weights),
            has_lr=has_lr,
            margin=margin,
        )
        scalars = {
            "accuracy": (hr.logits.argmax(axis=-1) == labels).mean(),
            "loss_cls": l_cls,
            "loss_tri": l_tri,
            "loss_raft": l_raft,
        }
        loss = lambda_1 * l_cls + lambda_2 * l_tri + lambda_3 * l_raft
        return LossOutput(loss, batch_stats, scalars)

    def loss_without_raft(params, batch_stats, batch, rng):
        """The plain loss of Table 2's first rows: one classifier, one triplet loss."""
        del rng
        hr, lr, copies = (batch[key] for key in ("hr", "lr", "synthetic_lr"))
        valid = [jnp.full(len(hr), True), batch["has_lr"]]
        if modeling == "baseline":
            images = {"encoder_hr": [hr, lr]}
        else:
            images = {"encoder_hr": [hr], "encoder_lr": [lr, copies]}
            valid.append(valid[0])
        maps, batch_stats = encode(params, batch_stats, images, train=True)
        vectors, valid = together(*map(vector, maps)), together(*valid)
        labels = jnp.repeat(batch["label"], len(maps))
        (logits, _), _ = judge(params, batch_stats, "stream_hr", vectors, train=True)
        cross_entropy = label_smoothed_cross_entropy(
            logits, labels, epsilon=label_smoothing
        )
        l_cls = 2 * masked_mean(cross_entropy, valid)  # as heavy as Eq. (5)
        l_tri = masked_mean(
            batch_hard_triplet(vectors, labels, margin=margin, valid=valid), valid
        )
        scalars = {
            "accuracy": masked_mean(logits.argmax(axis=-1) == labels, valid),
            "loss_cls": l_cls,
            "loss_tri": l_tri,
        }
        return LossOutput(lambda_1 * l_cls + lambda_2 * l_tri, batch_stats, scalars)

    def embed(variables, images, *, role, resolution, copies=None):
        """Vectors, real and synthetic, and how good they are."""
        del resolution
        if role not in ("query", "gallery"):
            raise ValueError(f"role must be 'query' or 'gallery', found {role!r}.")
        params, batch_stats = variables["params"], variables["batch_stats"]
        by_encoder = partial(encode, params, batch_stats, train=False)
        finish = l2_normalize if unit_vectors else jnp.asarray
        if "raft" not in components:
            name = of_lr if role == "query" else "encoder_hr"
            (maps,), _ = by_encoder({name: [images]})
            return {"features": finish(vector(maps))}
        if role == "query":
            (f_lr,), _ = by_encoder({"encoder_lr": [images]})
            f_hr = transform(params, f_lr)
        elif copies is None:
            raise ValueError(
                "FTWA's gallery needs `copies`, the images down-sampled by "
                f"{gallery_rate} and brought back."
            )
        else:
            streams = {"encoder_hr": [images], "encoder_lr": [copies]}
            (f_hr, f_lr), _ = by_encoder(streams)
        v_hr, v_lr = vector(f_hr), vector(f_lr)
        evaluate = partial(judge, params, batch_stats)
        hr, _ = evaluate("stream_hr", v_hr, synthetic=role == "query")
        lr, _ = evaluate("stream_lr", v_lr, synthetic=role == "gallery")
        return {
            "hr": finish(v_hr),
            "lr": finish(v_lr),
            "w_hr": hr.weights,
            "w_lr": lr.weights,
        }

    trains = "|".join(components)
    phase = Phase(
        name="reid",
        trains=trains,
        epochs=epochs,
        optimizer=Optimizer(
            {trains: learning_rate},
            weight_decay=weight_decay,
            algorithm="adam",
            milestones=tuple(milestones),
            decay_factor=decay_factor,
            warmup_epochs=warmup_epochs,
            warmup="linear",
            warmup_learning_rate=warmup_learning_rate,
        ),
        loss=loss_ftwa if "raft" in components else loss_without_raft,
    )
    return Method(
        init=init,
        phases=(phase,),
        embed=embed,
        distance=weighted_distances if "raft" in components else _distance,
        backbone=Backbone({n: x for n, x in BACKBONE.items() if n in components}),
        tuples="cross",
        gallery_rate=int(gallery_rate) if "raft" in components else 0,
    )


def _distance(query, gallery):
    return euclidean_distances(query["features"], gallery["features"])
