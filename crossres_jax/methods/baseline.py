"""The baselines: one backbone, trained to tell identities apart, and its restorer.

What every cross-resolution paper compares itself with. "Bicubic + ResNet-50" is a
backbone trained on the images as an MLR set stores them, brought to one size; "VDSR +
ResNet-50" restores the down-sampled ones before. Three recipes train the backbone:

  softmax: cross-entropy on the backbone's feature, as OSNet was trained (Zhou et al.,
    arXiv:1905.00953, sec. 4.1).
  bot: "Bag of Tricks and a Strong Baseline" (Luo et al., arXiv:1903.07071): triplet and
    centre loss before a batch normalisation, cross-entropy behind it.
  agw: "Deep Learning for Person Re-identification: A Survey and Outlook" (Ye et al.,
    arXiv:2001.04193, sec. 4): as "bot" with the weighted regularised triplet loss
    instead of those two; its non-local blocks and pooling are options of the networks.

Components: `backbone`, `head` and, if one restores, `restorer`; "bot" keeps `centers`
among the batch statistics. The restorer is trained first and then frozen; the backbone
may wait, frozen too, until a new head fits it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.losses import (
    batch_hard_triplet,
    center_loss,
    label_smoothed_cross_entropy,
    masked_mean,
    mean_absolute_error,
    update_centers,
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
from crossres_jax.modules.heads import BNNeck, HeadOutputs
from crossres_jax.modules.hrnet import HRNet, HRNetC
from crossres_jax.modules.osnet import OSNet
from crossres_jax.modules.pooling import GeM
from crossres_jax.modules.resnet import ResNet
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.ops.distances import cosine_distances, euclidean_distances
from crossres_jax.ops.images import denormalize, normalize
from crossres_jax.pretrained import tables

TABLES = {"resnet": tables.RESNET, "osnet": tables.OSNET, "hrnet": tables.HRNET}


class Head(nn.Module):
    """From the backbone's output to the feature and the logits.

    Attributes:
      num_classes: number of identities.
      gem: whether a map is pooled by a generalised mean instead of the mean.
      neck: whether a `BNNeck` stands before the classifier.
    """

    num_classes: int
    gem: bool = False
    neck: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> HeadOutputs:
        """A map (B, H, W, D), which is pooled, or a feature (B, D) → HeadOutputs."""
        x = x.astype(jnp.float32)
        if x.ndim == 4:
            x = GeM(name="gem")(x) if self.gem else x.mean(axis=(1, 2))  # (B, D)
        if self.neck:
            return BNNeck(self.num_classes, name="neck")(x, train=train)
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier",
        )
        return HeadOutputs(x, x, classifier(x))


def build(
    num_classes: int,
    *,
    recipe: Literal["softmax", "bot", "agw"] = "softmax",
    trains_on: Literal["lr", "hr"] = "lr",
    # The networks.
    backbone: Literal["resnet", "osnet", "hrnet"] = "resnet",
    width: float = 64,
    num_blocks: Sequence[int] = (3, 4, 6, 3),
    last_stride: int = 2,
    num_non_local: Sequence[int] = (0, 0, 0, 0),
    pooling: Literal["average", "gem"] = "average",
    restorer: Literal["none", "vdsr"] = "none",
    vdsr_channels: int = 64,
    vdsr_depth: int = 20,
    vdsr_squeeze: int = 0,
    # The losses.
    label_smoothing: float = 0.1,
    margin: float = 0.3,
    lambda_center: float = 5e-4,
    # The training.
    epochs: int = 120,
    epochs_head: int = 0,
    learning_rate: float = 3.5e-4,
    algorithm: Literal["sgd", "adam", "amsgrad"] = "adam",
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (40, 70),
    decay_factor: float = 0.1,
    warmup_epochs: int = 0,
    warmup_learning_rate: float = 3.5e-5,
    epochs_restorer: int = 0,
    learning_rate_restorer: float = 1e-4,
    dtype: str = "float32",
) -> Method:
    """A baseline for a training set of `num_classes` identities.

    The defaults are no paper's recipe; configs/baseline.py holds those.

    Args:
      num_classes: number of training identities.
      recipe: "softmax", "bot" or "agw", see above.
      trains_on: "lr", the images as the MLR set stores them, or "hr", their originals,
        as a network that knows nothing of low resolution. Images without an original
        then enter no loss, and of the statistics only the batch normalisation's.
      backbone: "resnet", "osnet" or "hrnet" (HRNet-W32-C).
      width: of the backbone: channels of ResNet's stem (64 at full size), the factor of
        OSNet's (1), channels of HRNet's highest branch and planes of its head (32).
      num_blocks, last_stride, num_non_local: of ResNet.
      pooling: of the map of ResNet or HRNet; OSNet pools by itself.
      restorer: "none", or "vdsr": VDSR, or VDSR-CA if `vdsr_squeeze` is not 0.
      vdsr_channels, vdsr_depth, vdsr_squeeze: see `VDSR`.
      label_smoothing: ε of the cross-entropy.
      margin: of the triplet loss, "bot" only.
      lambda_center: weight of the centre loss, "bot" only.
      epochs: length of the training of backbone and head.
      epochs_head: epochs before that in which the head is trained alone.
      learning_rate: of backbone and head.
      algorithm, weight_decay, milestones, decay_factor, warmup_epochs,
        warmup_learning_rate: see `contract.Optimizer`; the warm-up is linear.
      epochs_restorer: epochs before all that, in which the restorer is trained on pairs
        of a down-sampled image and its original.
      learning_rate_restorer: of Adam, without decay.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method. The embedding is (B, D): the backbone's feature with Euclidean
      distance ("softmax"), or the normalised one with cosine distance ("bot", "agw").

    Raises:
      ValueError: if one of the named choices is unknown, if OSNet is to be pooled by a
        generalised mean, if a width does not suit its backbone, or if a backbone would
        be trained behind an untrained restorer.
    """
    check = partial(check_choice, "the baseline")
    check("recipe", recipe, ("softmax", "bot", "agw"))
    check("trains_on", trains_on, ("lr", "hr"))
    check("backbone", backbone, tuple(TABLES))
    check("pooling", pooling, ("average", "gem"))
    check("restorer", restorer, ("none", "vdsr"))
    check("dtype", dtype, ("float32", "bfloat16"))
    if backbone == "osnet" and pooling == "gem":
        raise ValueError("OSNet pools by itself: expected pooling 'average'.")
    if backbone != "resnet" and any(num_non_local):
        raise ValueError(
            f"ResNet alone has non-local blocks, found {backbone} with {num_non_local}."
        )
    if backbone == "osnet" and not 0 < width <= 4:
        raise ValueError(
            f"expected OSNet's width as a factor, 0.25 or 1, found {width}."
        )
    if backbone != "osnet" and (width < 1 or width != int(width)):
        raise ValueError(f"expected {backbone}'s width in channels, found {width}.")
    if restorer != "none" and epochs and not epochs_restorer:
        raise ValueError(
            "a restorer that is not trained makes images worse: expected "
            "epochs_restorer of at least 1, found 0."
        )

    dtype = jnp.dtype(dtype)
    neck, restores = recipe != "softmax", restorer == "vdsr"
    net = {
        "resnet": lambda: ResNet(
            int(width), tuple(num_blocks), last_stride, dtype, tuple(num_non_local)
        ),
        "osnet": lambda: OSNet(width, dtype=dtype),
        "hrnet": lambda: HRNetC(HRNet(int(width), dtype=dtype), int(width), dtype),
    }[backbone]()
    head = Head(num_classes, gem=pooling == "gem", neck=neck)
    vdsr = VDSR(vdsr_channels, vdsr_depth, vdsr_squeeze, dtype=dtype)

    def last(x):
        """ResNet gives the maps of all stages."""
        return x[-1] if backbone == "resnet" else x

    def init(rng, batch):
        rngs = jax.random.split(rng, 3)
        x, of_net = net.init_with_output(rngs[0], batch["lr"], train=False)
        outputs, of_head = head.init_with_output(rngs[1], last(x), train=False)
        params = {"backbone": of_net["params"], "head": of_head["params"]}
        batch_stats = {"backbone": of_net["batch_stats"]}
        if neck:
            batch_stats["head"] = of_head["batch_stats"]
        if recipe == "bot":
            shape = num_classes, outputs.features.shape[1]
            batch_stats["centers"] = {"features": jax.random.normal(rngs[2], shape)}
        if restores:
            key = jax.random.fold_in(rng, 3)
            params["restorer"] = vdsr.init(key, batch["lr"])["params"]
        return {"params": params, "batch_stats": batch_stats}

    def represent(params, batch_stats, images, *, train):
        """Normalised images → (HeadOutputs, batch statistics).

        `train` names the components that use, and record, the batch's statistics.
        """
        variables = {
            name: {"params": params[name], "batch_stats": batch_stats.get(name, {})}
            for name in ("backbone", "head")
        }
        x, of_net = net.apply(
            variables["backbone"],
            images,
            train="backbone" in train,
            mutable=["batch_stats"],
        )
        outputs, of_head = head.apply(
            variables["head"], last(x), train="head" in train, mutable=["batch_stats"]
        )
        updates = {"backbone": of_net, "head": of_head}
        recorded = {
            name: updates[name]["batch_stats"] for name in train if name in batch_stats
        }
        return outputs, {**batch_stats, **recorded}

    def super_resolve(params, images):
        """Normalised images → the restorer's, in float32."""
        restored = vdsr.apply({"params": params["restorer"]}, images)
        return restored.astype(jnp.float32)

    def sharpen(params, images, resolution):
        """Normalised images, of which the down-sampled ones are restored."""
        if not restores:
            return images
        degraded = (resolution < 1)[:, None, None, None]
        return jnp.where(degraded, super_resolve(params, images), images)

    def loss_restorer(params, batch_stats, batch, rng):
        """Mean absolute error on the down-sampled images that have an original."""
        del rng
        compared = batch["has_hr"] & (batch["scale"] > 1)
        restored = super_resolve(params, normalize(batch["lr"]))
        error = mean_absolute_error(restored, normalize(batch["hr"]))
        return LossOutput(masked_mean(error, compared), batch_stats, {})

    def loss_identity(params, batch_stats, batch, rng, *, train):
        """Cross-entropy, and if there is a neck losses on the features before it."""
        del rng
        labels = batch["label"]
        if trains_on == "hr":
            images, valid = normalize(batch["hr"]), batch["has_hr"]
        else:
            images = sharpen(params, normalize(batch["lr"]), batch["resolution"])
            valid = jnp.full(len(labels), True)
        outputs, batch_stats = represent(params, batch_stats, images, train=train)

        loss = label_smoothed_cross_entropy(
            outputs.logits, labels, epsilon=label_smoothing
        )
        correct = outputs.logits.argmax(axis=-1) == labels
        scalars = {"accuracy": masked_mean(correct, valid)}
        if recipe == "bot":
            features, centers = outputs.features, batch_stats["centers"]["features"]
            triplet = batch_hard_triplet(features, labels, margin=margin, valid=valid)
            center = center_loss(features, labels, centers)
            loss += triplet + lambda_center * center
            scalars |= {
                "loss_triplet": masked_mean(triplet, valid),
                "loss_center": masked_mean(center, valid),
            }
            moved = update_centers(features, jnp.where(valid, labels, -1), centers)
            batch_stats = {**batch_stats, "centers": {"features": moved}}
        if recipe == "agw":
            triplet = weighted_regularized_triplet(
                outputs.features, labels, valid=valid
            )
            loss += triplet
            scalars["loss_triplet"] = masked_mean(triplet, valid)
        return LossOutput(masked_mean(loss, valid), batch_stats, scalars)

    def embed(variables, images, *, role, resolution):
        """The feature, behind the neck if there is one, of both sides alike."""
        del role
        params, batch_stats = variables["params"], variables["batch_stats"]
        images = sharpen(params, normalize(images), resolution)
        outputs, _ = represent(params, batch_stats, images, train=())
        return outputs.bn_features

    def restore(variables, images, *, resolution):
        del resolution
        return denormalize(super_resolve(variables["params"], normalize(images)))

    optimizer = partial(
        Optimizer, algorithm=algorithm, weight_decay=weight_decay, warmup="linear"
    )
    both = {"backbone|head": learning_rate}
    phases = (
        Phase(
            name="restorer",
            trains="restorer",
            epochs=epochs_restorer if restores else 0,
            optimizer=Optimizer(
                {"restorer": learning_rate_restorer}, 0.0, algorithm="adam"
            ),
            loss=loss_restorer,
        ),
        Phase(
            name="head",
            trains="head",
            epochs=epochs_head,
            optimizer=optimizer(both),
            loss=partial(loss_identity, train=("head",)),
        ),
        Phase(
            name="identity",
            trains="backbone|head",
            epochs=epochs,
            optimizer=optimizer(
                both,
                milestones=tuple(milestones),
                decay_factor=decay_factor,
                warmup_epochs=warmup_epochs,
                warmup_learning_rate=warmup_learning_rate,
            ),
            loss=partial(loss_identity, train=("backbone", "head")),
        ),
    )
    return Method(
        init=init,
        phases=tuple(p for p in phases if p.epochs or p.name == "identity"),
        embed=embed,
        distance=cosine_distances if neck else euclidean_distances,
        squared=neck,
        restore=restore if restores else None,
        backbone=Backbone({"backbone": TABLES[backbone]}, skip=r".*_non_local/.*"),
    )
