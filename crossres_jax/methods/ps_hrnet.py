"""PS-HRNet: a high-resolution pseudo-siamese framework.

Zhang, Ge, Dong, Wang, Zheng, Chen: Deep High-Resolution Representation Learning for
Cross-Resolution Person Re-identification, arXiv:2105.11722. Equations and sections
below are the paper's; departures, and what the released code does differently, are
listed in docs/methods.md.

Three components: `h` and `l` are two HRNet-ReID of the same shape, for HR and for
restored LR images, and `restorer` is VDSR-CA. Phase 1 trains h on HR images; phase 2
freezes h and trains restorer and l under its guidance; restorer and l are the result.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.losses import (
    batch_hard_triplet,
    feature_alignment,
    label_smoothed_cross_entropy,
    masked_mean,
    mean_absolute_error,
)
from crossres_jax.methods.contract import (
    Backbone,
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.conv import he_fan_out
from crossres_jax.modules.hrnet import HRNet, IncreModules
from crossres_jax.modules.residual import batch_norm
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.ops.distances import cosine_distances, l2_normalize
from crossres_jax.ops.images import denormalize, mirror, normalize
from crossres_jax.pretrained import tables

# Eq. (6): side of the pooled grid and weight λ of the max-pooled part, for branches
# 1–4. The paper prints "n × n"; these grids are the ones that give its lengths 2048,
# 1024, 2048, 1024 (sec. IV-C) on W32's 128, 256, 512, 1024 channels. λ: released code.
GRIDS = (4, 2, 2, 1)
LAMBDAS = (0.5, 0.2, 0.2, 0.2)

FEATURES = ("seq1", "seq2", "seq3", "seq4", "seq5", "logits")  # the set A of Eq. (11)


class Representation(NamedTuple):
    """What HRNet-ReID returns (Fig. 4). Lengths are those of the full-size network.

    Attributes:
      seqs: Seq(1)…Seq(5): (B, 2048), (B, 1024), (B, 2048), (B, 1024), (B, 6144).
      features: ℓ_f, (B, 512).
      logits: ℓ_c, (B, num_classes).
    """

    seqs: tuple[jax.Array, ...]
    features: jax.Array
    logits: jax.Array


class HRNetReID(nn.Module):
    """HRNet with the representation head of sec. III-C; 34,414,383 parameters at M=751.

    Attributes:
      num_classes: number of identities M.
      body: the HRNet body.
      planes: of the incre modules, see `IncreModules`.
      feature_size: length of ℓ_f (512, sec. IV-C).
      dropout: rate after the batch normalisation of ℓ_f (released code: 0.5).
      dtype: type of the computation; the head works in float32.
    """

    num_classes: int
    body: HRNet
    planes: int = 32
    feature_size: int = 512
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Representation:
        """(B, H, W, 3) normalised images → Representation."""
        branches = self.body(images, train=train)
        branches = IncreModules(self.planes, dtype=self.dtype, name="incre")(
            branches, train=train
        )
        seqs = tuple(
            serialize(x.astype(jnp.float32), grid, weight)
            for x, grid, weight in zip(branches, GRIDS, LAMBDAS, strict=True)
        )
        seq5 = jnp.concatenate(seqs, axis=-1)

        x = nn.Dense(self.feature_size, kernel_init=he_fan_out, name="fc1")(seq5)
        x = batch_norm(train=train)(scale_init=_bn_init, name="bn")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=_fc2_init, name="fc2")(x)
        return Representation((*seqs, seq5), x, logits)


_fc2_init = nn.initializers.normal(0.001)


def _bn_init(rng, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(rng, shape, dtype)


def serialize(x: jax.Array, grid: int, weight: float) -> jax.Array:
    """The mapping P of Eq. (6): V(AAP(f, n, n) + λ AMP(f, n, n)).

    Args:
      x: (B, H, W, C) final feature map of a branch, H and W multiples of `grid`.
      grid: n, side of the pooled grid.
      weight: λ of the max-pooled part.

    Returns:
      (B, grid · grid · C).
    """
    batch, height, width, channels = x.shape
    cells = x.reshape(
        batch, grid, height // grid, grid, width // grid, channels
    )  # (B, n, H/n, n, W/n, C)
    pooled = cells.mean(axis=(2, 4)) + weight * cells.max(axis=(2, 4))
    return pooled.reshape(batch, grid * grid * channels)


def identity_loss(
    outputs: Representation,
    labels: jax.Array,
    *,
    lambda_ce: float = 1.15,
    lambda_bh: float = 0.2,
    margin: float = 0.1,
    valid: jax.Array | None = None,
) -> jax.Array:
    """L_ID = λ_CE L_CE + λ_BH L_BH, Eq. (10).

    L_BH sums the batch-hard triplet loss of Seq(1)…Seq(5), Eq. (7).

    Args:
      outputs: Representation of the batch.
      labels: (B,) int.
      lambda_ce: λ_CE.
      lambda_bh: λ_BH.
      margin: m of Eq. (7), in units of distance.
      valid: (B,) bool; rows where it is False are no part of a triplet.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    cross_entropy = label_smoothed_cross_entropy(outputs.logits, labels)
    triplet = sum(
        batch_hard_triplet(seq, labels, margin=margin, valid=valid)
        for seq in outputs.seqs
    )
    return lambda_ce * cross_entropy + lambda_bh * triplet


def pseudo_siamese_loss(
    high: Representation,
    low: Representation,
    *,
    chosen: Sequence[str] = ("seq1", "seq4", "seq5", "logits"),
) -> jax.Array:
    """L_PS = Σ_{C ⊆ A} ‖C_h − C_l‖₁, Eq. (11).

    Args:
      high: Representation of the HR images by HRNet-ReID-H. It gets no gradient.
      low: Representation of the restored images by HRNet-ReID-L.
      chosen: the set C, names of `FEATURES`. The default is the paper's (sec. IV-C).

    Returns:
      (B,) float32, a mean over each feature's elements (docs/methods.md).

    Raises:
      KeyError: if a name in `chosen` is not one of `FEATURES`.
      ValueError: if `chosen` is empty, or the two differ in shape.
    """
    high = dict(zip(FEATURES, (*high.seqs, high.logits), strict=True))
    low = dict(zip(FEATURES, (*low.seqs, low.logits), strict=True))
    return feature_alignment(
        [jax.lax.stop_gradient(high[name]) for name in chosen],
        [low[name] for name in chosen],
    )


def total_loss(
    identity: jax.Array | float,
    restoration: jax.Array | float,
    alignment: jax.Array | float,
    *,
    lambda_sr: float = 0.5,
    lambda_ps: float = 0.5,
) -> jax.Array | float:
    """L_TOTAL = L_ID + λ_SR L_SR + λ_PS L_PS, Eq. (12).

    Args:
      identity: L_ID, () or (B,) float.
      restoration: L_SR, of the same shape; a plain 0 where nothing is restored.
      alignment: L_PS, of the same shape; a plain 0 where nothing guides.
      lambda_sr: λ_SR.
      lambda_ps: λ_PS.

    Returns:
      Float, of the same shape.
    """
    return identity + lambda_sr * restoration + lambda_ps * alignment


def build(
    num_classes: int,
    *,
    supervision: Literal["hr", "id", "id_sr", "id_sr_ps"] = "id_sr_ps",
    # The networks; the defaults are the paper's.
    width: int = 32,
    stem_width: int = 64,
    num_stem_blocks: int = 4,
    num_modules: Sequence[int] = (1, 4, 3),
    num_blocks: int = 4,
    planes: int = 32,
    feature_size: int = 512,
    dropout: float = 0.5,
    vdsr_channels: int = 64,
    vdsr_depth: int = 20,
    vdsr_squeeze: int = 4,
    vdsr_start_as_identity: bool = False,
    # The losses.
    margin: float = 0.1,
    lambda_ce: float = 1.15,
    lambda_bh: float = 0.2,
    lambda_sr: float = 0.5,
    lambda_ps: float = 0.5,
    ps_set: Sequence[str] = ("seq1", "seq4", "seq5", "logits"),
    sr_pairs: Literal["all", "degraded"] = "all",
    # The training.
    epochs_h: int = 70,
    epochs_l: int = 70,
    learning_rate: float = 8.5e-3,
    learning_rate_sr: float = 8.5e-4,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (30, 60),
    decay_factor: float = 0.1,
    warmup_epochs: int = 5,
    warmup_learning_rate: float = 3e-4,
    l_starts_from_h: bool = False,
    dtype: str = "float32",
    remat: bool = False,
) -> Method:
    """PS-HRNet for a training set of `num_classes` identities.

    Args:
      num_classes: number of training identities M.
      supervision: which rows of Table II. "id_sr_ps" is PS-HRNet; "id_sr" leaves out
        h, phase 1 and L_PS (the paper's CAVIAR setting); "id" trains l alone on the
        stored images, without restorer; "hr" runs phase 1 only and tests h.
      width, stem_width, num_stem_blocks, num_modules, num_blocks: see `HRNet`.
      planes, feature_size, dropout: see `HRNetReID`.
      vdsr_channels, vdsr_depth, vdsr_squeeze, vdsr_start_as_identity: see `VDSR`.
      margin, lambda_ce, lambda_bh: see `identity_loss`.
      lambda_sr, lambda_ps: see `total_loss`.
      ps_set: see `pseudo_siamese_loss`.
      sr_pairs: which pairs L_SR compares: "all", or only those whose `lr` is degraded.
        On an MLR set the other pairs are an HR image and itself (docs/methods.md).
      epochs_h, epochs_l: lengths of phase 1 and phase 2.
      learning_rate, learning_rate_sr: of the HRNet-ReIDs and of VDSR-CA.
      momentum, nesterov, weight_decay, milestones, decay_factor, warmup_epochs,
        warmup_learning_rate: see `contract.Optimizer`.
      l_starts_from_h: begin phase 2 with phase 1's weights in l.
      dtype: "float32" or "bfloat16", type of the networks' computation.
      remat: recompute activations in the backward pass, to save memory.

    Returns:
      The method. `embed` is (B, Seq(5) + ℓ_f) of the image plus that of its mirror,
      L2-normalised; `distance` is cosine.

    Raises:
      ValueError: if one of the named choices, or a name in `ps_set`, is unknown.
    """
    check = partial(check_choice, "PS-HRNet")
    check("supervision", supervision, ("hr", "id", "id_sr", "id_sr_ps"))
    check("dtype", dtype, ("float32", "bfloat16"))
    check("sr_pairs", sr_pairs, ("all", "degraded"))
    for name in ps_set:
        check("ps_set", name, FEATURES)

    dtype = jnp.dtype(dtype)
    body = HRNet(
        width,
        stem_width,
        num_stem_blocks,
        tuple(num_modules),
        num_blocks,
        dtype=dtype,
        remat=remat,
    )
    reid = HRNetReID(
        num_classes,
        body,
        planes=planes,
        feature_size=feature_size,
        dropout=dropout,
        dtype=dtype,
    )
    vdsr = VDSR(
        vdsr_channels,
        vdsr_depth,
        vdsr_squeeze,
        vdsr_start_as_identity,
        dtype=dtype,
        remat=remat,
    )
    components = {
        "hr": ("h",),
        "id": ("l",),
        "id_sr": ("l", "restorer"),
        "id_sr_ps": ("h", "l", "restorer"),
    }[supervision]
    restores = "restorer" in components
    guided = supervision == "id_sr_ps"
    tested = "l" if "l" in components else "h"

    def init(rng, batch):
        params, batch_stats = {}, {}
        for name in components:
            # A component starts the same whichever others there are.
            key = jax.random.fold_in(rng, ("h", "l", "restorer").index(name))
            if name == "restorer":
                variables = vdsr.init(key, batch["lr"])
            else:
                variables = reid.init(key, batch["hr"], train=False)
                batch_stats[name] = variables["batch_stats"]
            params[name] = variables["params"]
        return {"params": params, "batch_stats": batch_stats}

    def reid_train(name, params, batch_stats, images, rng):
        outputs, updates = reid.apply(
            {"params": params[name], "batch_stats": batch_stats[name]},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return outputs, {**batch_stats, name: updates["batch_stats"]}

    def reid_eval(name, params, batch_stats, images):
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        return reid.apply(variables, images, train=False)

    def super_resolve(params, images):
        """G of Eq. (5), in normalised pixels, computed in `dtype`, float32 result."""
        if not restores:
            return images
        restored = vdsr.apply({"params": params["restorer"]}, images)
        return restored.astype(jnp.float32)

    id_loss = partial(
        identity_loss, lambda_ce=lambda_ce, lambda_bh=lambda_bh, margin=margin
    )

    def loss_h(params, batch_stats, batch, rng):
        """Phase 1: L_ID of HRNet-ReID-H on HR images."""
        outputs, batch_stats = reid_train(
            "h", params, batch_stats, normalize(batch["hr"]), rng
        )
        loss = id_loss(outputs, batch["label"], valid=batch["has_hr"])
        loss = masked_mean(loss, batch["has_hr"])
        scalars = {"accuracy": _accuracy(outputs.logits, batch["label"])}
        return LossOutput(loss, batch_stats, scalars)

    def loss_l(params, batch_stats, batch, rng):
        """Phase 2: L_TOTAL of VDSR-CA and HRNet-ReID-L, guided by the frozen H."""
        lr, hr, has_hr = normalize(batch["lr"]), normalize(batch["hr"]), batch["has_hr"]
        restored = super_resolve(params, lr)
        outputs, batch_stats = reid_train("l", params, batch_stats, restored, rng)

        identity = id_loss(outputs, batch["label"]).mean()
        scalars = {
            "loss_id": identity,
            "accuracy": _accuracy(outputs.logits, batch["label"]),
        }
        restoration = alignment = 0.0
        if restores:
            compared = has_hr & ((sr_pairs == "all") | (batch["scale"] > 1))
            restoration = masked_mean(mean_absolute_error(restored, hr), compared)
            scalars["loss_sr"] = restoration
        if guided:
            high = reid_eval("h", params, batch_stats, hr)
            alignment = masked_mean(
                pseudo_siamese_loss(high, outputs, chosen=ps_set), has_hr
            )
            scalars["loss_ps"] = alignment
        loss = total_loss(
            identity, restoration, alignment, lambda_sr=lambda_sr, lambda_ps=lambda_ps
        )
        return LossOutput(loss, batch_stats, scalars)

    def embed(variables, images, *, role, resolution):
        """[Seq(5), ℓ_f] of image plus mirror, L2-normalised (sec. III-E, code)."""
        del role, resolution  # every image takes the same way
        params, batch_stats = variables["params"], variables["batch_stats"]

        def features(x):
            outputs = reid_eval(tested, params, batch_stats, super_resolve(params, x))
            return jnp.concatenate([outputs.seqs[-1], outputs.features], axis=-1)

        images = normalize(images)
        return l2_normalize(features(images) + features(mirror(images)))

    def restore(variables, images, *, resolution):
        del resolution
        return denormalize(super_resolve(variables["params"], normalize(images)))

    optimizer = partial(
        Optimizer,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        milestones=tuple(milestones),
        decay_factor=decay_factor,
        warmup_epochs=warmup_epochs,
        warmup_learning_rate=warmup_learning_rate,
    )
    phase_h = Phase(
        name="h",
        trains="h",
        epochs=epochs_h,
        optimizer=optimizer({"h": learning_rate}),
        loss=loss_h,
    )
    phase_l = Phase(
        name="l",
        trains="l|restorer" if restores else "l",
        epochs=epochs_l,
        optimizer=optimizer(
            {"l": learning_rate, "restorer": learning_rate_sr}
            if restores
            else {"l": learning_rate}
        ),
        loss=loss_l,
        starts_from={"l": "h"} if guided and l_starts_from_h else {},
    )
    return Method(
        init=init,
        phases=tuple(p for p in (phase_h, phase_l) if p.name in components),
        embed=embed,
        distance=cosine_distances,
        squared=True,
        restore=restore if restores else None,
        backbone=Backbone(
            {name: tables.HRNET for name in components if name != "restorer"},
            # Its own head, and ImageNet's, which it has not.
            skip=r"\w+/(fc1|fc2|bn|downsample\d|final)/.*",
        ),
    )


def _accuracy(logits, labels):
    return (logits.argmax(axis=-1) == labels).mean()
