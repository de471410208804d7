"""DGRL: a Transformer block on shallow features, and three branches of group features.

"Cross-Resolution Person Re-Identification via Deep Group-Aware Representation
Learning" (Ye and Gao). Equation, section and table numbers are the paper's;
docs/methods.md says where this code departs.

Components:

  shallow_hr, shallow_sr   dual-branch feature extraction, of HR and of restored images
  body                     the four stages that both share, "feature embedding"
  side1, side2             side branches from the second and from the third stage
  head, head1, head2       pooling, group-aware representation, neck and classifier

DGRL itself restores nothing: RCAN has done so before (methods/rcan.py), and whoever
embeds a query has to do the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.losses import (
    label_smoothed_cross_entropy,
    masked_mean,
    mutual_kl,
    smooth_l1,
    weighted_regularized_triplet,
)
from crossres_jax.methods.contract import (
    Backbone,
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.galn import GALN
from crossres_jax.modules.heads import BNNeck, HeadOutputs
from crossres_jax.modules.pooling import GeM
from crossres_jax.modules.resnet import ResNetStage, ResNetStem
from crossres_jax.modules.restormer import RestormerBlock
from crossres_jax.ops.distances import cosine_distances, l2_normalize
from crossres_jax.ops.images import normalize
from crossres_jax.ops.streams import together
from crossres_jax.pretrained import tables

BACKBONE = {
    "shallow_hr": tables.DGRL_SHALLOW,
    "shallow_sr": tables.DGRL_SHALLOW,
    "body": tables.DGRL_BODY,
    "side1": tables.DGRL_SIDE1,
    "side2": tables.DGRL_SIDE2,
}
NEW = r"params/restormer/.*|(params|batch_stats)/.*_non_local/.*"  # in no file


class ShallowExtractor(nn.Module):
    """One of the two feature extraction branches (sec. III-B2).

    Attributes:
      width: channels of the stem.
      restormer: whether the residual Restormer block stands behind it.
      num_heads: of its attention.
      dtype: type of the computation.
    """

    width: int = 64
    restormer: bool = True
    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, 3) normalised images → f, (B, H/4, W/4, width)."""
        x = ResNetStem(self.width, self.dtype, name="stem")(images, train=train)
        if not self.restormer:
            return x
        return x + RestormerBlock(self.num_heads, self.dtype, name="restormer")(x)


class Maps(NamedTuple):
    """What the shared stages make of shallow features.

    Attributes:
      second, third: (B, H/8, W/8, 8 · width) and (B, H/16, W/16, 16 · width), where the
        side branches begin.
      last: (B, H/16, W/16, 32 · width).
    """

    second: jax.Array
    third: jax.Array
    last: jax.Array


class Body(nn.Module):
    """The four stages of a ResNet, the last without its stride, with non-local blocks.

    Attributes:
      width, num_blocks, num_non_local, dtype: see `ResNet`.
    """

    width: int = 64
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    num_non_local: tuple[int, int, int, int] = (0, 2, 3, 0)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Maps:
        """(B, H/4, W/4, width) → Maps."""
        stages = []
        for i, strides in enumerate((1, 2, 2, 1)):
            stage = ResNetStage(
                self.width * 2**i,
                self.num_blocks[i],
                strides,
                self.dtype,
                self.num_non_local[i],
                name=f"stage{i + 1}",
            )
            stages.append(x := stage(x, train=train))
        return Maps(*stages[1:])


class Side(nn.Module):
    """A side branch: stages of the main branch's kind on its own path (sec. III-C).

    Attributes:
      planes: of the bottlenecks of each stage.
      num_blocks: bottlenecks of each stage.
      strides: of each stage.
      dtype: type of the computation.
    """

    planes: tuple[int, ...]
    num_blocks: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, h, w, C) → (B, H/16, W/16, 4 · last of `planes`)."""
        stages = zip(self.planes, self.num_blocks, self.strides, strict=True)
        for i, (planes, num_blocks, strides) in enumerate(stages):
            stage = ResNetStage(
                planes, num_blocks, strides, dtype=self.dtype, name=f"stage{i + 1}"
            )
            x = stage(x, train=train)
        return x


class Head(nn.Module):
    """From a branch's map to F and its logits (sec. III-C).

    Attributes:
      num_classes: number of identities.
      groups: of `GALN`; 0 for the pooled map itself as F.
      group_features: length of F with `GALN`.
    """

    num_classes: int
    groups: int = 32
    group_features: int = 512

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> HeadOutputs:
        """(B, h, w, C) → HeadOutputs."""
        x = GeM(name="gem")(maps)  # (B, C) float32
        if self.groups:
            x = GALN(self.group_features, self.groups, name="galn")(x, train=train)
        return BNNeck(self.num_classes, name="neck")(x, train=train)


def build(
    num_classes: int,
    *,
    # The networks, Table III.
    non_local: bool = True,
    group_aware: bool = True,
    restormer: bool = True,
    width: int = 64,
    num_blocks: Sequence[int] = (3, 4, 6, 3),
    side1_blocks: Sequence[int] = (3, 2),
    side2_blocks: int = 3,
    num_heads: int = 4,
    num_groups: int = 32,
    group_features: int = 512,
    # The losses; a weight of 0 leaves one out, Table II.
    label_smoothing: float = 0.1,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 5.0,
    lambda_wrt: float = 1.0,
    lambda_kl: float = 1.0,
    # The training.
    epochs: int = 70,
    learning_rate: float = 1.3e-2,
    algorithm: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (30, 60),
    decay_factor: float = 0.1,
    warmup_epochs: int = 0,
    warmup_learning_rate: float = 0.0,
    dtype: str = "float32",
) -> Method:
    """DGRL for a training set of `num_classes` identities.

    Args:
      num_classes: number of training identities.
      non_local: whether non-local blocks follow the last two bottlenecks of the second
        stage and the last three of the third.
      group_aware: whether there are side branches, and GALN behind all three; else the
        main branch alone, whose pooled map is F.
      restormer: whether the residual Restormer block is there.
      width, num_blocks: see `ResNet`.
      side1_blocks: bottlenecks of the first side branch, of the kind of the third stage
        and of the last.
      side2_blocks: those of the second, of the kind of the last stage.
      num_heads: of the Restormer block's attention.
      num_groups, group_features: K and d, see `GALN`.
      label_smoothing: ξ of Eq. (6).
      alpha, beta: weights of the two side branches' losses, α1 = α2 and β1 = β2 of
        Eqs. (7) and (9).
      gamma: of Eq. (13); lambda_wrt and lambda_kl are the weights that are 1 there.
      epochs, learning_rate, algorithm, momentum, weight_decay, milestones,
        decay_factor, warmup_epochs, warmup_learning_rate: see `contract.Optimizer`; the
        warm-up is linear.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method. The embedding is (B, D), F of the main branch behind its neck, of
      length 1; queries go the way of restored images, gallery images that of HR ones.

    Raises:
      ValueError: if the dtype is unknown.
    """
    check_choice("DGRL", "dtype", dtype, ("float32", "bfloat16"))

    dtype = jnp.dtype(dtype)
    shallow = ShallowExtractor(width, restormer, num_heads, dtype)
    head = Head(num_classes, num_groups if group_aware else 0, group_features)
    modules = {
        "shallow_hr": shallow,
        "shallow_sr": shallow,
        "body": Body(
            width, tuple(num_blocks), (0, 2, 3, 0) if non_local else (0,) * 4, dtype
        ),
        "side1": Side((4 * width, 8 * width), tuple(side1_blocks), (2, 1), dtype),
        "side2": Side((8 * width,), (side2_blocks,), (1,), dtype),
        "head": head,
        "head1": head,
        "head2": head,
    }
    if not group_aware:
        for name in ("side1", "side2", "head1", "head2"):
            del modules[name]

    def init(rng, batch):
        variables = {"params": {}, "batch_stats": {}}

        def make(name, x):
            key = jax.random.fold_in(rng, list(modules).index(name))
            y, made = modules[name].init_with_output(key, x, train=False)
            for kind in variables:
                variables[kind][name] = made[kind]
            return y

        for name in ("shallow_sr", "shallow_hr"):
            f = make(name, batch["hr"])
        maps = make("body", f)
        make("head", maps.last)
        if group_aware:
            make("head1", make("side1", maps.second))
            make("head2", make("side2", maps.third))
        return variables

    def runner(params, batch_stats, *, train):
        """A function (component, input) → output, and the statistics it has left."""
        left = dict(batch_stats)

        def run(name, x):
            y, updates = modules[name].apply(
                {"params": params[name], "batch_stats": batch_stats[name]},
                x,
                train=train,
                mutable=["batch_stats"],
            )
            left[name] = updates["batch_stats"]
            return y

        return run, left

    def represent(run, maps):
        """HeadOutputs of every branch, the main one first."""
        outputs = [run("head", maps.last)]
        if group_aware:
            outputs.append(run("head1", run("side1", maps.second)))
            outputs.append(run("head2", run("side2", maps.third)))
        return outputs

    def loss(params, batch_stats, batch, rng):
        """L = γ L1 + L_ID + L_WRT + D_KL, Eq. (13)."""
        del rng
        labels, has_hr = jnp.repeat(batch["label"], 2), batch["has_hr"]
        valid = together(has_hr, jnp.full(len(has_hr), True))
        run, batch_stats = runner(params, batch_stats, train=True)
        f_h = run("shallow_hr", normalize(batch["hr"]))
        f_s = run("shallow_sr", normalize(batch["lr"]))
        branches = represent(run, run("body", together(f_h, f_s)))

        def over_branches(loss_of):
            """Eqs. (7) and (9)."""
            return sum(
                weight * masked_mean(loss_of(branch), valid)
                for weight, branch in zip((1.0, alpha, beta), branches, strict=False)
            )

        l_1 = masked_mean(smooth_l1(f_h, f_s), has_hr)  # Eq. (5)
        l_id = over_branches(
            lambda x: label_smoothed_cross_entropy(
                x.logits, labels, epsilon=label_smoothing
            )
        )
        l_wrt = over_branches(
            lambda x: weighted_regularized_triplet(x.features, labels, valid=valid)
        )
        scalars = {"loss_l1": l_1, "loss_id": l_id, "loss_wrt": l_wrt}
        total = gamma * l_1 + l_id + lambda_wrt * l_wrt
        if group_aware:
            d_kl = masked_mean(mutual_kl([x.logits for x in branches]), valid)
            scalars["loss_kl"] = d_kl
            total += lambda_kl * d_kl
        correct = branches[0].logits.argmax(axis=-1) == labels
        scalars["accuracy"] = masked_mean(correct, valid)
        return LossOutput(total, batch_stats, scalars)

    def embed(variables, images, *, role, resolution):
        """F of the main branch; a query goes the way of restored images, being one."""
        del resolution
        if role not in ("query", "gallery"):
            raise ValueError(f"role must be 'query' or 'gallery', found {role!r}.")
        run, _ = runner(variables["params"], variables["batch_stats"], train=False)
        shallow = "shallow_sr" if role == "query" else "shallow_hr"
        maps = run("body", run(shallow, normalize(images)))
        return l2_normalize(run("head", maps.last).bn_features)

    phase = Phase(
        name="reid",
        trains="|".join(modules),
        epochs=epochs,
        optimizer=Optimizer(
            {"|".join(modules): learning_rate},
            weight_decay=weight_decay,
            algorithm=algorithm,
            momentum=momentum,
            milestones=tuple(milestones),
            decay_factor=decay_factor,
            warmup_epochs=warmup_epochs,
            warmup="linear",
            warmup_learning_rate=warmup_learning_rate,
        ),
        loss=loss,
    )
    return Method(
        init=init,
        phases=(phase,),
        embed=embed,
        distance=cosine_distances,
        squared=True,
        backbone=Backbone({n: x for n, x in BACKBONE.items() if n in modules}, NEW),
    )
