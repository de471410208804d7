"""JBIM: features of high and of low resolution, learned side by side and fused.

Zheng, Hong, Jiao, Wu, Zhu, Gong, Qin, Lai: "Joint Bilateral-Resolution Identity
Modeling for Cross-Resolution Person Re-Identification", IJCV 2021. Equation, section
and figure numbers are the paper's; docs/methods.md says where this code departs.

Three kinds of image: l, an LR image of one camera; h, an HR image of the same identity
by another; h2l, a synthetic LR copy of h. Components:

  restorer   F_sr, enlarges detail in l and h2l
  h, h_head  F_fe^h and F_c^h on F_sr(l), F_sr(h2l) and h (HIM, Fig. 4A)
  l, l_head  F_fe^l and F_c^l on l and h2l (LIM, Fig. 4B)
  ffn        F_fus and F_c^f on both features (Fig. 4C)

HIM and LIM are trained apart, then all together. A model belongs to one rate of h2l;
models of several rates make the ensemble of sec. 5.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.losses import (
    batch_hard_triplet,
    label_smoothed_cross_entropy,
    masked_mean,
    mean_squared_error,
)
from crossres_jax.methods.contract import (
    Backbone,
    Ensemble,
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.heads import BNNeck, HeadOutputs
from crossres_jax.modules.osnet import OSNet
from crossres_jax.modules.residual import batch_norm
from crossres_jax.modules.resnet import ResNet
from crossres_jax.modules.srcnn import SRCNN
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.ops.distances import euclidean_distances, l2_normalize
from crossres_jax.ops.images import normalize
from crossres_jax.ops.streams import apart, together
from crossres_jax.pretrained import tables

COMPONENTS = {
    "jbim": ("restorer", "h", "h_head", "l", "l_head", "ffn"),
    "him": ("restorer", "h", "h_head"),
    "lim": ("l", "l_head"),
    "him_lim": ("restorer", "h", "h_head", "l", "l_head"),
    "all_resolution": ("h", "h_head"),
}


class Head(nn.Module):
    """The re-id feature and its classifier F_c, behind a backbone (sec. 4.1, 6.2).

    Attributes:
      num_classes: number of identities.
      feature_size: n_h or n_l, length of the "penultimate" layer's output; 0 where the
        backbone's own output is the feature.
    """

    num_classes: int
    feature_size: int = 512

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> HeadOutputs:
        """A map (B, H, W, D), whose mean is taken, or a vector (B, D) → HeadOutputs."""
        x = x.astype(jnp.float32)
        if x.ndim == 4:
            x = x.mean(axis=(1, 2))  # (B, D)
        if self.feature_size:
            x = nn.Dense(self.feature_size, name="fc")(x)
        return BNNeck(self.num_classes, name="neck")(x, train=train)


class FeatureFusion(nn.Module):
    """FFN: f_f = F_fus(f_h, f_l) and its classifier F_c^f (sec. 4.3, Eq. 12).

    Attributes:
      num_classes: number of identities.
      dropout: rate, between the fused feature and the classifier.
    """

    num_classes: int
    dropout: float = 0.5

    @nn.compact
    def __call__(self, f_h: jax.Array, f_l: jax.Array, *, train: bool) -> HeadOutputs:
        """(B, n_h) and (B, n_l) → HeadOutputs with features (B, n_h + n_l)."""
        x = jnp.concatenate([f_h, f_l], axis=-1)
        x = nn.Dense(x.shape[-1], name="fc")(x)
        x = nn.relu(batch_norm(train=train)(name="bn")(x))
        dropped = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.001),
            name="classifier",
        )(dropped)
        return HeadOutputs(x, x, logits)


def classification_loss(
    outputs: HeadOutputs,
    labels: jax.Array,
    valid: Sequence[jax.Array],
    *,
    margin: float = 0.3,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """L_reid, L_LIM or L_fus, Eqs. (3), (7), (9): Σ over streams of the mean L_cls.

    L_cls = L_id + L_tri, Eq. (5), the batch-hard triplet loss over all streams.

    Args:
      outputs: HeadOutputs of the streams `together`, S·B rows.
      labels: (B,) int identities of the samples.
      valid: S masks (B,) bool; where one is False the sample lacks that stream.
      margin: of the triplet loss.
      label_smoothing: ε of the cross-entropy.

    Returns:
      () float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    num_streams = len(valid)
    labels = jnp.repeat(labels, num_streams)
    identity = label_smoothed_cross_entropy(
        outputs.logits, labels, epsilon=label_smoothing
    )
    triplet = batch_hard_triplet(
        outputs.features, labels, margin=margin, valid=together(*valid)
    )
    return sum(map(masked_mean, apart(identity + triplet, num_streams), valid))


def fused_distances(
    distances: jax.Array,
    resolution: jax.Array,
    rates: Sequence[float],
    *,
    sigma: float = 0.5,
) -> jax.Array:
    """D_mra = Σ_i w_i D_i with w_i = exp(−(r − m_i)² / σ²), Eqs. (17) to (19).

    Up to a factor for each query, which makes the largest of its weights 1 and leaves
    its ranking: else all weights of a small σ would be zero.

    Args:
      distances: (M, Q, G) float, D_i of the M models.
      resolution: (Q,) float, r of the queries, 1 for full resolution.
      rates: M rates, of which the m_i are the inverses.
      sigma: σ, positive.

    Returns:
      (Q, G) float32.
    """
    ratios = 1 / jnp.array(rates, jnp.float32)
    exponents = -(((resolution[None] - ratios[:, None]) / sigma) ** 2)  # (M, Q)
    weights = jnp.exp(exponents - exponents.max(axis=0))
    return (weights[..., None] * distances).sum(axis=0)


def build(
    num_classes: int,
    *,
    modeling: Literal["jbim", "him", "lim", "him_lim", "all_resolution"] = "jbim",
    rates: Sequence[int] = (2, 3, 4),
    him_synthetic: bool = True,
    # The networks.
    restorer: Literal["srcnn", "vdsr"] = "srcnn",
    srcnn_kernel_sizes: Sequence[int] = (9, 1, 5),
    srcnn_channels: Sequence[int] = (64, 32),
    srcnn_residual: bool = False,
    vdsr_channels: int = 64,
    vdsr_depth: int = 20,
    backbone: Literal["resnet", "osnet"] = "resnet",
    width: float = 64,
    num_blocks: Sequence[int] = (3, 4, 6, 3),
    last_stride: int = 2,
    feature_size: int = 512,
    dropout: float = 0.5,
    # The losses.
    margin: float = 0.3,
    label_smoothing: float = 0.0,
    alpha: float = 1.0,
    beta: float = 3.0,
    # The test.
    sigma: float = 0.5,
    unit_features: bool = True,
    # The training.
    epochs_restorer: int = 20,
    learning_rate_restorer: float = 1e-3,
    epochs: int = 120,
    epochs_joint: int = 60,
    learning_rate: float = 3.5e-4,
    learning_rate_joint: float = 3.5e-5,
    algorithm: Literal["sgd", "adam", "amsgrad"] = "adam",
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (40, 70),
    milestones_joint: Sequence[int] = (40,),
    decay_factor: float = 0.1,
    warmup_epochs: int = 10,
    warmup_learning_rate: float = 3.5e-5,
    dtype: str = "float32",
) -> Method | Ensemble:
    """JBIM for a training set of `num_classes` identities.

    Args:
      num_classes: number of training identities.
      modeling: "jbim", or what Tables 5, 6 and 8 compare it with: "him" (without LIM;
        SING's scheme), "lim" (without HIM), "him_lim" (both, independent of
        each other and put side by side), "all_resolution" (one backbone on l, h2l at
        all of the protocol's rates, and h).
      rates: of the synthetic copies; several make an ensemble of one model each.
        "all_resolution" knows none.
      him_synthetic: False leaves h2l and L_sr out of HIM, as in Table 7; F_sr is then
        not trained beforehand either.
      restorer: "srcnn" or "vdsr" (Table 11), without channel attention.
      srcnn_kernel_sizes, srcnn_channels, srcnn_residual: see `SRCNN`.
      vdsr_channels, vdsr_depth: see `VDSR`.
      backbone: "resnet" or "osnet" (Table 12).
      width: channels of ResNet's stem (64 at full size) or the factor of OSNet's (1).
      num_blocks, last_stride: see `ResNet`.
      feature_size: n_h and n_l behind a ResNet; OSNet's own feature has 512.
      dropout: see `FeatureFusion`.
      margin, label_smoothing: see `classification_loss`.
      alpha: α of Eq. (6).
      beta: β of Eq. (11).
      sigma: see `fused_distances`; of an ensemble alone.
      unit_features: whether features are brought to length 1 before the distance, so
        that the distances of several models have one scale.
      epochs_restorer, learning_rate_restorer: F_sr alone at first, on L_sr by Adam, in
        place of the published weights that the paper starts from.
      epochs: of HIM, and of LIM.
      epochs_joint: of all together.
      learning_rate: of HIM and LIM, and of the new FFN.
      learning_rate_joint: of all but the FFN when they are trained together.
      algorithm, weight_decay, decay_factor, warmup_epochs, warmup_learning_rate: see
        `contract.Optimizer`; the warm-up is linear, and of HIM and LIM alone.
      milestones, milestones_joint: of HIM and LIM, and of all together.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method; an `Ensemble` if there are several rates. The embedding is
      {"features": f_f (B, n_h + n_l), "resolution": (B,)}, or in its place f_h, f_l or
      both, by `modeling`; the distance is Euclidean.

    Raises:
      ValueError: if one of the named choices is unknown, if a width does not suit its
        backbone, if SRCNN has not three odd sizes and two widths, if the rates are not
        whole numbers from 2, each once, if σ is not positive, or if there is nothing to
        train.
    """
    check = partial(check_choice, "JBIM")
    check("modeling", modeling, tuple(COMPONENTS))
    check("restorer", restorer, ("srcnn", "vdsr"))
    check("backbone", backbone, ("resnet", "osnet"))
    check("dtype", dtype, ("float32", "bfloat16"))
    if backbone == "osnet" and not 0 < width <= 4:
        raise ValueError(
            f"expected OSNet's width as a factor, 0.25 or 1, found {width}."
        )
    if backbone == "resnet" and (width < 1 or width != int(width)):
        raise ValueError(f"expected ResNet's width in channels, found {width}.")
    if (
        len(srcnn_kernel_sizes) != 3
        or len(srcnn_channels) != 2
        or any(size % 2 == 0 for size in srcnn_kernel_sizes)
    ):
        raise ValueError(
            "expected SRCNN with three odd kernel sizes and two widths, found "
            f"{tuple(srcnn_kernel_sizes)} and {tuple(srcnn_channels)}."
        )
    if len({*rates}) < max(1, len(rates)) or any(r < 2 or r % 1 for r in rates):
        raise ValueError(
            f"expected rates as whole numbers from 2, each once, found {tuple(rates)}."
        )
    if sigma <= 0:
        raise ValueError(f"expected a positive sigma, found {sigma}.")
    if modeling != "all_resolution" and len(rates) > 1:
        return _ensemble([int(rate) for rate in rates], sigma)

    components = COMPONENTS[modeling]
    rate = 0 if modeling == "all_resolution" else int(rates[0])
    dtype = jnp.dtype(dtype)
    if backbone == "resnet":
        net = ResNet(int(width), tuple(num_blocks), last_stride, dtype)
        table = tables.RESNET
    else:
        net, feature_size = OSNet(width, dtype=dtype), 0
        table = tables.OSNET
    head = Head(num_classes, feature_size)
    fusion = FeatureFusion(num_classes, dropout)
    if restorer == "srcnn":
        kernel_sizes, channels = tuple(srcnn_kernel_sizes), tuple(srcnn_channels)
        sr = SRCNN(kernel_sizes, channels, srcnn_residual, dtype)
    else:
        sr = VDSR(vdsr_channels, vdsr_depth, squeeze=0, dtype=dtype)

    def last(x):
        """ResNet gives the maps of all stages."""
        return x[-1] if backbone == "resnet" else x

    def init(rng, batch):
        rngs = dict(zip(COMPONENTS["jbim"], jax.random.split(rng, 6), strict=True))
        image, variables = batch["hr"], {}
        for name in ("h", "l"):
            x, variables[name] = net.init_with_output(rngs[name], image, train=False)
            outputs, variables[f"{name}_head"] = head.init_with_output(
                rngs[f"{name}_head"], last(x), train=False
            )
        f = outputs.bn_features
        variables["ffn"] = fusion.init(rngs["ffn"], f, f, train=False)
        variables["restorer"] = sr.init(rngs["restorer"], image)
        kept = {name: variables[name] for name in components}
        return {
            kind: {name: x[kind] for name, x in kept.items() if kind in x}
            for kind in ("params", "batch_stats")
        }

    def super_resolve(params, images):
        """F_sr, on pixels in [0, 1], computed in `dtype`, float32 result."""
        restored = sr.apply({"params": params["restorer"]}, images)
        return restored.astype(jnp.float32)

    def extract(name, params, batch_stats, images, *, train):
        """F_fe and F_c of "h" or "l": (HeadOutputs, batch statistics)."""
        recorded = {}

        def apply(component, module, x):
            variables = {
                "params": params[component],
                "batch_stats": batch_stats[component],
            }
            x, updates = module.apply(
                variables, x, train=train, mutable=["batch_stats"]
            )
            recorded[component] = updates["batch_stats"]
            return x

        x = apply(name, net, normalize(images))
        outputs = apply(f"{name}_head", head, last(x))
        return outputs, {**batch_stats, **recorded} if train else batch_stats

    classify = partial(
        classification_loss, margin=margin, label_smoothing=label_smoothing
    )

    def him(params, batch_stats, batch):
        """HIM's outputs on its streams, and L_HIM, Eq. (6)."""
        lr, h2l, hr = (batch[key] for key in ("lr", "synthetic_lr", "hr"))
        has_lr, always = batch["has_lr"], jnp.full(len(hr), True)
        if modeling == "all_resolution":
            images, valid = (lr, h2l, hr), (has_lr, always, always)
        elif him_synthetic:
            sr_lr, sr_h2l = apart(super_resolve(params, together(lr, h2l)), 2)
            images, valid = (sr_lr, sr_h2l, hr), (has_lr, always, always)
        else:
            images, valid = (super_resolve(params, lr), hr), (has_lr, always)
        outputs, batch_stats = extract(
            "h", params, batch_stats, together(*images), train=True
        )
        loss = classify(outputs, batch["label"], valid)
        accuracy = _accuracy(outputs, batch["label"], valid)
        scalars = {"loss_reid": loss, "accuracy": accuracy}
        if modeling != "all_resolution" and him_synthetic:
            restoration = mean_squared_error(sr_h2l, hr).mean()  # L_sr, Eq. (2)
            scalars["loss_sr"] = restoration
            loss += alpha * restoration
        return outputs, batch_stats, loss, scalars

    def lim(params, batch_stats, batch):
        """LIM's outputs on l and h2l, and L_LIM, Eq. (7)."""
        valid = batch["has_lr"], jnp.full(len(batch["label"]), True)
        images = together(batch["lr"], batch["synthetic_lr"])
        outputs, batch_stats = extract("l", params, batch_stats, images, train=True)
        loss = classify(outputs, batch["label"], valid)
        accuracy = _accuracy(outputs, batch["label"], valid)
        scalars = {"loss_lim": loss, "accuracy": accuracy}
        return outputs, batch_stats, loss, scalars

    def loss_restorer(params, batch_stats, batch, rng):
        """L_sr alone."""
        del rng
        error = mean_squared_error(
            super_resolve(params, batch["synthetic_lr"]), batch["hr"]
        )
        return LossOutput(error.mean(), batch_stats, {})

    def loss_him(params, batch_stats, batch, rng):
        del rng
        _, batch_stats, loss, scalars = him(params, batch_stats, batch)
        return LossOutput(loss, batch_stats, scalars)

    def loss_lim(params, batch_stats, batch, rng):
        del rng
        _, batch_stats, loss, scalars = lim(params, batch_stats, batch)
        return LossOutput(loss, batch_stats, scalars)

    def loss_joint(params, batch_stats, batch, rng):
        """L_overall = L_HIM + L_LIM + β L_fus, Eq. (11)."""
        high, batch_stats, l_him, scalars = him(params, batch_stats, batch)
        low, batch_stats, l_lim, scalars_lim = lim(params, batch_stats, batch)

        f_h = apart(high.bn_features, 3 if him_synthetic else 2)
        f_l = apart(low.bn_features, 2)
        outputs, updates = fusion.apply(
            {"params": params["ffn"], "batch_stats": batch_stats["ffn"]},
            together(f_h[0], f_h[-1]),  # of l and of h …
            together(*f_l),  # … with those of l and of h2l, Eq. (10)
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        batch_stats = {**batch_stats, "ffn": updates["batch_stats"]}
        valid = batch["has_lr"], jnp.full(len(batch["label"]), True)
        fusing = classify(outputs, batch["label"], valid)
        scalars |= {
            "loss_lim": scalars_lim["loss_lim"],
            "loss_fus": fusing,
            "accuracy": _accuracy(outputs, batch["label"], valid),
        }
        return LossOutput(l_him + l_lim + beta * fusing, batch_stats, scalars)

    def embed(variables, images, *, role, resolution, copies=None):
        """f_f of a probe from F_sr(l) and l, of a gallery image from h and h2l."""
        if role not in ("query", "gallery"):
            raise ValueError(f"role must be 'query' or 'gallery', found {role!r}.")
        if role == "gallery" and "l" in components and copies is None:
            raise ValueError(
                "JBIM's gallery needs `copies`, the images down-sampled by "
                f"{rate} and brought back."
            )
        params, batch_stats = variables["params"], variables["batch_stats"]
        parts, restores = [], role == "query" and "restorer" in components
        if "h" in components:
            high = super_resolve(params, images) if restores else images
            outputs, _ = extract("h", params, batch_stats, high, train=False)
            parts.append(outputs.bn_features)
        if "l" in components:
            low = images if role == "query" else copies
            outputs, _ = extract("l", params, batch_stats, low, train=False)
            parts.append(outputs.bn_features)
        if "ffn" in components:
            ffn = {"params": params["ffn"], "batch_stats": batch_stats["ffn"]}
            parts = [fusion.apply(ffn, *parts, train=False).features]
        if unit_features:
            parts = [l2_normalize(part) for part in parts]
        return {"features": jnp.concatenate(parts, -1), "resolution": resolution}

    def restore(variables, images, *, resolution):
        del resolution
        return jnp.clip(super_resolve(variables["params"], images), 0.0, 1.0)

    optimizer = partial(
        Optimizer,
        weight_decay=weight_decay,
        algorithm=algorithm,
        decay_factor=decay_factor,
    )
    separate = partial(
        optimizer,
        milestones=tuple(milestones),
        warmup_epochs=warmup_epochs,
        warmup="linear",
        warmup_learning_rate=warmup_learning_rate,
    )
    of_him = "restorer|h|h_head" if "restorer" in components else "h|h_head"
    of_lim = "l|l_head"
    both = f"{of_him}|{of_lim}"
    phase = partial(Phase, training_rate=rate)
    phases = (
        phase(
            name="restorer",
            trains="restorer",
            epochs=epochs_restorer if him_synthetic else 0,
            optimizer=Optimizer(
                {"restorer": learning_rate_restorer}, 0.0, algorithm="adam"
            ),
            loss=loss_restorer,
        ),
        phase("him", of_him, epochs, separate({of_him: learning_rate}), loss_him),
        phase("lim", of_lim, epochs, separate({of_lim: learning_rate}), loss_lim),
        phase(
            name="joint",
            trains=f"{both}|ffn",
            epochs=epochs_joint,
            optimizer=optimizer(
                {both: learning_rate_joint, "ffn": learning_rate},
                milestones=tuple(milestones_joint),
            ),
            loss=loss_joint,
        ),
    )
    phases = tuple(
        phase
        for phase in phases
        if phase.epochs and {*phase.trains.split("|")} <= {*components}
    )
    if not phases:
        raise ValueError(f"JBIM has nothing to train: {modeling} with epochs={epochs}.")
    return Method(
        init=init,
        phases=phases,
        embed=embed,
        distance=_distance,
        restore=restore if "restorer" in components else None,
        backbone=Backbone({name: table for name in components if name in ("h", "l")}),
        tuples="cross",
        gallery_rate=rate,
    )


def _ensemble(rates, sigma):
    """One model per rate, and D_mra."""
    names = [f"x{rate}" for rate in rates]

    def distance(query, gallery):
        distances = jnp.stack([_distance(query[n], gallery[n]) for n in names])
        resolution = query[names[0]]["resolution"]
        return fused_distances(distances, resolution, rates, sigma=sigma)

    members = {f"x{rate}": {"rates": [rate]} for rate in rates}
    return Ensemble(members, distance)


def _distance(query, gallery):
    return euclidean_distances(query["features"], gallery["features"])


def _accuracy(outputs, labels, valid):
    """On all streams together."""
    correct = outputs.logits.argmax(axis=-1) == jnp.repeat(labels, len(valid))
    return masked_mean(correct, together(*valid))
