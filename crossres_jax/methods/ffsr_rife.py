"""FFSR + RIFE: foreground-focus super-resolution and resolution-invariant features.

Mao, Zhang, Yang: "Resolution-invariant Person Re-Identification", IJCAI 2019. Equation,
section and table numbers are the paper's; docs/methods.md says where this code departs.

Two components:

  restorer   FFSR, an auto-encoder, enlarges detail and above all the person's
  extractor  RIFE, a ResNet-50 each stage of which has two streams, for low and for high
             resolution; it finds the resolution itself and weighs their maps by it

Three steps: FFSR on pairs of images, RIFE on the images as they are, both together.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from crossres_jax.losses import (
    foreground_mse,
    label_smoothed_cross_entropy,
    masked_mean,
    mean_squared_error,
    resolution_weighting,
)
from crossres_jax.methods.contract import (
    Backbone,
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.autoencoder import AutoEncoder
from crossres_jax.modules.dual_stream import DualStream, DualStreamBlock
from crossres_jax.modules.resnet import ResNet, ResNetStage, ResNetStem
from crossres_jax.modules.srcnn import SRCNN
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.ops.distances import euclidean_distances
from crossres_jax.ops.images import denormalize, normalize
from crossres_jax.ops.masks import gaussian_mask
from crossres_jax.pretrained import tables

EXTRACTORS = {  # and how ImageNet's weights fill them
    "rife": tables.RIFE,
    "resnet": tables.ONE_RESNET,
    "two_resnets": tables.TWO_RESNETS,
    "two_weighted_resnets": tables.TWO_RESNETS,
}
RESTORERS = ("ffsr", "srcnn", "vdsr", "none")


class Representation(NamedTuple):
    """What an extractor returns, of T dual-stream blocks.

    Attributes:
      features: f, (B, 256).
      logits: FC(f), (B, num_classes).
      w_low: w_t^L, (T, B) float32.
      w_high: w_t^H, (T, B) float32.
    """

    features: jax.Array
    logits: jax.Array
    w_low: jax.Array
    w_high: jax.Array


class RIFE(nn.Module):
    """Four dual-stream blocks behind the stem of a ResNet (sec. 4.2, Fig. 3).

    Attributes:
      width, num_blocks, last_stride, dtype: see `ResNet`.
    """

    width: int = 64
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    last_stride: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, list[DualStream]]:
        """(B, H, W, 3) → the last map (B, H/32, W/32, 32 · width), all blocks'."""
        strides = (1, 2, 2, self.last_stride)
        x = ResNetStem(self.width, self.dtype, name="stem")(images, train=train)
        blocks = []
        for t, num_blocks in enumerate(self.num_blocks):
            low, high = (
                ResNetStage(
                    self.width * 2**t,
                    num_blocks,
                    strides[t],
                    self.dtype,
                    parent=None,  # they belong to the block
                )
                for _ in range(2)
            )
            block = DualStreamBlock(low, high, name=f"dsb{t + 1}")
            blocks.append(block(x, train=train))
            x = blocks[-1].maps
        return x, blocks


class LastMap(nn.Module):
    """A ResNet as a stream: the map of its last stage."""

    net: ResNet

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.net(images, train=train)[-1]


class ResNets(nn.Module):
    """One or two whole ResNets, Table 2.

    Attributes:
      width, num_blocks, last_stride, dtype: see `ResNet`.
      fusion: "none" for a single one; of two, the last maps are averaged ("mean") or
        weighted as in a dual-stream block ("weights").
    """

    width: int = 64
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    last_stride: int = 2
    dtype: Any = jnp.float32
    fusion: Literal["none", "mean", "weights"] = "none"

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, list[DualStream]]:
        """As `RIFE`; only learned weights are returned."""
        learned = self.fusion == "weights"
        of_resnet = self.width, self.num_blocks, self.last_stride, self.dtype
        if self.fusion == "none":
            return ResNet(*of_resnet, name="resnet")(images, train=train)[-1], []
        low, high = (
            LastMap(ResNet(*of_resnet, parent=None), parent=None) for _ in range(2)
        )
        block = DualStreamBlock(low, high, learned, name="dsb")
        fused = block(images, train=train)
        return fused.maps, [fused] if learned else []


class Extractor(nn.Module):
    """From the maps of `RIFE` or `ResNets` to the feature and its classifier.

    Attributes:
      body: gives the maps.
      num_classes: number of identities.
      feature_size: length of f.
    """

    body: nn.Module
    num_classes: int
    feature_size: int = 256

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Representation:
        """(B, H, W, 3) normalised images → Representation."""
        maps, blocks = self.body(images, train=train)
        x = maps.astype(jnp.float32).mean(axis=(1, 2))
        features = nn.Dense(self.feature_size, name="fc")(x)
        logits = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.001),
            name="classifier",
        )(features)
        w_low, w_high = (
            jnp.array([getattr(block, name) for block in blocks], jnp.float32)
            for name in ("w_low", "w_high")
        )
        shape = len(blocks), len(x)  # there may be none
        return Representation(
            features, logits, w_low.reshape(shape), w_high.reshape(shape)
        )


def build(
    num_classes: int,
    *,
    restorer: Literal["ffsr", "srcnn", "vdsr", "none"] = "ffsr",
    mask: Literal["gaussian", "none"] | ArrayLike = "gaussian",
    joint_learning: bool = True,
    extractor: Literal[
        "rife", "resnet", "two_resnets", "two_weighted_resnets"
    ] = "rife",
    # The networks.
    ffsr_stem_channels: int = 16,
    ffsr_channels: int = 128,
    srcnn_kernel_sizes: Sequence[int] = (9, 1, 5),
    srcnn_channels: Sequence[int] = (64, 32),
    vdsr_channels: int = 64,
    vdsr_depth: int = 20,
    width: int = 64,
    num_blocks: Sequence[int] = (3, 4, 6, 3),
    last_stride: int = 2,
    feature_size: int = 256,
    # The losses.
    alpha: float = 1.0,
    beta: float = 0.1,
    # The training.
    epochs_ffsr: int = 60,
    epochs_rife: int = 60,
    epochs_joint: int = 60,
    learning_rate_ffsr: float = 0.01,
    learning_rate_rife: float = 0.01,
    learning_rate_joint: float = 0.001,
    algorithm: Literal["sgd", "adam"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    milestones: Sequence[int] = (30,),
    decay_factor: float = 0.1,
    dtype: str = "float32",
) -> Method:
    """FFSR + RIFE for a training set of `num_classes` identities.

    Args:
      num_classes: number of training identities.
      restorer: "ffsr"; "srcnn", "vdsr" or "none" in its place (Table 1).
      mask: M of Eq. (5): "gaussian", "none" (Table 1's "AE"), or an array (H, W) for
        all images.
      joint_learning: False freezes the restorer in the third step (Table 1, "JL").
      extractor: "rife", or what Table 2 compares it with.
      ffsr_stem_channels, ffsr_channels: see `AutoEncoder`.
      srcnn_kernel_sizes, srcnn_channels: see `SRCNN`.
      vdsr_channels, vdsr_depth: see `VDSR`.
      width, num_blocks, last_stride: see `ResNet`.
      feature_size: length of f.
      alpha: α of Eq. (4).
      beta: β of Eq. (9).
      epochs_ffsr, epochs_rife, epochs_joint: lengths of the three steps.
      learning_rate_ffsr, learning_rate_rife, learning_rate_joint: of the three steps.
      algorithm: of all steps.
      momentum, weight_decay, milestones, decay_factor: see `contract.Optimizer`, in all
        steps, but for the first, where nothing decays.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method. The embedding is {"features": f (B, 256)}, with the weights "w_low"
      and "w_high" (B, T) of T dual-stream blocks; the distance is Euclidean.

    Raises:
      ValueError: if one of the named choices is unknown, or a mask is no array (H, W)
        of finite numbers.
    """
    check = partial(check_choice, "FFSR + RIFE")
    check("restorer", restorer, RESTORERS)
    check("extractor", extractor, tuple(EXTRACTORS))
    check("dtype", dtype, ("float32", "bfloat16"))
    if isinstance(mask, str):
        check("mask", mask, ("gaussian", "none"))
    else:
        mask = jnp.asarray(mask, jnp.float32)
        if mask.ndim != 2 or not jnp.isfinite(mask).all():
            raise ValueError(
                f"expected a mask (H, W) of finite numbers, found {mask.shape}."
            )

    dtype = jnp.dtype(dtype)
    of_resnet = int(width), tuple(num_blocks), last_stride, dtype
    body = {
        "rife": RIFE(*of_resnet),
        "resnet": ResNets(*of_resnet),
        "two_resnets": ResNets(*of_resnet, fusion="mean"),
        "two_weighted_resnets": ResNets(*of_resnet, fusion="weights"),
    }[extractor]
    net = Extractor(body, num_classes, feature_size)
    sr = {
        "ffsr": AutoEncoder(ffsr_stem_channels, ffsr_channels, dtype),
        "srcnn": SRCNN(tuple(srcnn_kernel_sizes), tuple(srcnn_channels), dtype=dtype),
        "vdsr": VDSR(vdsr_channels, vdsr_depth, squeeze=0, dtype=dtype),
        "none": None,
    }[restorer]

    def init(rng, batch):
        rng_restorer, rng_extractor = jax.random.split(rng)
        variables = net.init(rng_extractor, batch["lr"], train=False)
        params = {"extractor": variables["params"]}
        if sr:
            params["restorer"] = sr.init(rng_restorer, batch["lr"])["params"]
        return {
            "params": params,
            "batch_stats": {"extractor": variables["batch_stats"]},
        }

    def super_resolve(params, images):
        """I^r′ of Eq. (3), in normalised pixels, float32 result."""
        if not sr:
            return images
        restored = sr.apply({"params": params["restorer"]}, images)
        return restored.astype(jnp.float32)

    def represent(params, batch_stats, images, *, train):
        """Normalised pixels → (Representation, batch statistics)."""
        outputs, updates = net.apply(
            {"params": params["extractor"], "batch_stats": batch_stats["extractor"]},
            images,
            train=train,
            mutable=["batch_stats"],
        )
        return outputs, {"extractor": updates["batch_stats"]}

    def restoration_loss(restored, batch):
        """L_FFSR, Eq. (5), over the images that have an original."""
        originals = normalize(batch["hr"])
        if isinstance(mask, jax.Array):
            error = foreground_mse(restored, originals, mask)
        elif mask == "gaussian":
            gaussian = gaussian_mask(*originals.shape[1:3])
            error = foreground_mse(restored, originals, gaussian)
        else:
            error = mean_squared_error(restored, originals)
        return masked_mean(error, batch["has_hr"])

    def extraction_loss(params, batch_stats, images, batch):
        """L_RIFE = L_X + β Σ_t L_t^R, Eq. (9): (loss, batch statistics, scalars).

        r is that of the images before anything restored them.
        """
        labels, r = batch["label"], batch["relative_width"]
        outputs, batch_stats = represent(params, batch_stats, images, train=True)
        identity = label_smoothed_cross_entropy(outputs.logits, labels, epsilon=0.0)
        weighting = resolution_weighting(outputs.w_low, outputs.w_high, r).mean()
        scalars = {
            "accuracy": (outputs.logits.argmax(axis=-1) == labels).mean(),
            "loss_weighting": weighting,
        }
        return identity.mean() + beta * weighting, batch_stats, scalars

    def loss_ffsr(params, batch_stats, batch, rng):
        """First step: L_FFSR of the restorer alone."""
        del rng
        restored = super_resolve(params, normalize(batch["lr"]))
        return LossOutput(restoration_loss(restored, batch), batch_stats, {})

    def loss_rife(params, batch_stats, batch, rng):
        """Second step: L_RIFE on the images as they are."""
        del rng
        images = normalize(batch["lr"])
        return LossOutput(*extraction_loss(params, batch_stats, images, batch))

    def loss_joint(params, batch_stats, batch, rng):
        """Third step: L = L_FFSR + α L_RIFE, Eq. (4)."""
        del rng
        restored = super_resolve(params, normalize(batch["lr"]))
        loss, batch_stats, scalars = extraction_loss(
            params, batch_stats, restored, batch
        )
        loss *= alpha
        if sr:
            restoration = restoration_loss(restored, batch)
            scalars["loss_ffsr"] = restoration
            loss += restoration
        return LossOutput(loss, batch_stats, scalars)

    def embed(variables, images, *, role, resolution):
        """f of the restored image (Eq. 3), of both sides alike."""
        del role, resolution  # the network finds the resolution by itself
        params, batch_stats = variables["params"], variables["batch_stats"]
        restored = super_resolve(params, normalize(images))
        outputs, _ = represent(params, batch_stats, restored, train=False)
        features = {"features": outputs.features}
        if len(outputs.w_low):
            features |= {"w_low": outputs.w_low.T, "w_high": outputs.w_high.T}
        return features

    def restore(variables, images, *, resolution):
        del resolution
        return denormalize(super_resolve(variables["params"], normalize(images)))

    optimizer = partial(
        Optimizer,
        algorithm=algorithm,
        momentum=momentum,
        weight_decay=weight_decay,
        milestones=tuple(milestones),
        decay_factor=decay_factor,
    )
    trains = "restorer|extractor" if sr and joint_learning else "extractor"
    phases = (
        Phase(
            name="ffsr",
            trains="restorer",
            epochs=epochs_ffsr if sr else 0,
            optimizer=optimizer(
                {"restorer": learning_rate_ffsr},
                weight_decay=0.0,
            ),
            loss=loss_ffsr,
        ),
        Phase(
            name="rife",
            trains="extractor",
            epochs=epochs_rife,
            optimizer=optimizer({"extractor": learning_rate_rife}),
            loss=loss_rife,
        ),
        Phase(
            name="joint",
            trains=trains,
            epochs=epochs_joint,
            optimizer=optimizer({trains: learning_rate_joint}),
            loss=loss_joint,
        ),
    )
    return Method(
        init=init,
        phases=tuple(phase for phase in phases if phase.epochs),
        embed=embed,
        distance=_distance,
        restore=restore if sr else None,
        backbone=Backbone(
            components={"extractor": EXTRACTORS[extractor]},
            skip=r"params/(fc|classifier)/.*|.*/weight_(low|high)/.*",
        ),
    )


def _distance(query, gallery):
    return euclidean_distances(query["features"], gallery["features"])
