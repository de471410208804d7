"""RCAN for pedestrians: one restorer per rate, trained on pairs of images alone.

"Image Super-Resolution Using Very Deep Residual Channel Attention Networks",
arXiv:1807.02758. It is no method of re-identification: DGRL's images are restored with
it, once, before DGRL is trained (launch.py). Compared are the restored pixels.

Components: `x2`, `x3` and `x4`, the restorers of these rates.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from crossres_jax.losses import masked_mean, mean_absolute_error
from crossres_jax.methods.contract import (
    LossOutput,
    Method,
    Optimizer,
    Phase,
    check_choice,
)
from crossres_jax.modules.rcan import UPSAMPLERS, SameSizeRCAN
from crossres_jax.ops.distances import euclidean_distances
from crossres_jax.ops.images import denormalize, normalize

SQUARE = 8  # pixels; what is compared are their means


def build(
    num_classes: int,
    *,
    rates: Sequence[int] = (2, 3, 4),
    num_groups: int = 10,
    num_blocks: int = 20,
    channels: int = 64,
    squeeze: int = 4,
    residual: bool = False,
    epochs: int = 200,
    learning_rate: float = 1e-4,
    milestones: Sequence[int] = (),
    decay_factor: float = 0.5,
    dtype: str = "float32",
) -> Method:
    """RCAN for the pictures of a training set.

    Args:
      num_classes: is not looked at.
      rates: one restorer each.
      num_groups, num_blocks, channels, squeeze, residual: see `SameSizeRCAN`.
      epochs: of each restorer.
      learning_rate, milestones, decay_factor: see `contract.Optimizer`; Adam.
      dtype: "float32" or "bfloat16", type of the networks' computation.

    Returns:
      The method. Its phases want synthetic tuples, each of its own rate; `restore`
      takes the restorer whose rate is nearest to an image's, and leaves an image as it
      is whose rate is nearest to 1. The embedding is (B, D), the restored pixels
      averaged over squares, with Euclidean distance.

    Raises:
      ValueError: if a rate or the dtype is unknown.
    """
    del num_classes
    check_choice("RCAN", "dtype", dtype, ("float32", "bfloat16"))
    for rate in rates:
        check_choice("RCAN", "rate", rate, tuple(UPSAMPLERS))
    restorers = {
        f"x{rate}": SameSizeRCAN(
            rate,
            num_groups,
            num_blocks,
            channels,
            squeeze,
            residual,
            jnp.dtype(dtype),
        )
        for rate in rates
    }

    def init(rng, batch):
        keys = jax.random.split(rng, len(restorers))
        params = {
            name: restorer.init(key, batch["lr"])["params"]
            for key, (name, restorer) in zip(keys, restorers.items(), strict=True)
        }
        return {"params": params, "batch_stats": {}}

    def super_resolve(params, name, images):
        """Normalised images → one restorer's, in float32."""
        restored = restorers[name].apply({"params": params[name]}, images)
        return restored.astype(jnp.float32)

    def loss(params, batch_stats, batch, rng, *, name):
        """Mean absolute error of restored copies (sec. 3.1), of ImageNet's scale."""
        del rng
        restored = super_resolve(params, name, normalize(batch["lr"]))
        error = mean_absolute_error(restored, normalize(batch["hr"]))
        return LossOutput(masked_mean(error, batch["has_hr"]), batch_stats, {})

    def restore(variables, images, *, resolution):
        known = jnp.log(jnp.array([1, *rates]))
        nearest = jnp.abs(known + jnp.log(resolution)[:, None]).argmin(axis=1)
        restored = normalize(images)
        for n, name in enumerate(restorers, start=1):
            chosen = (nearest == n)[:, None, None, None]

            def of_rate(others, name=name, chosen=chosen):
                high = super_resolve(variables["params"], name, normalize(images))
                return jnp.where(chosen, high, others)

            restored = jax.lax.cond(chosen.any(), of_rate, lambda x: x, restored)
        return denormalize(restored)

    def embed(variables, images, *, role, resolution):
        """Pixels, a query's restored before."""
        if role == "query":
            images = restore(variables, images, resolution=resolution)
        batch, height, width, _ = images.shape
        rows, columns = height // SQUARE, width // SQUARE
        images = images[:, : rows * SQUARE, : columns * SQUARE]
        squares = images.reshape(batch, rows, SQUARE, columns, SQUARE, 3)
        return squares.mean(axis=(2, 4)).reshape(batch, -1)

    phases = tuple(
        Phase(
            name=name,
            trains=name,
            epochs=epochs,
            optimizer=Optimizer(
                {name: learning_rate},
                weight_decay=0.0,
                algorithm="adam",
                milestones=tuple(milestones),
                decay_factor=decay_factor,
            ),
            loss=partial(loss, name=name),
            training_rate=rate,
        )
        for name, rate in zip(restorers, rates, strict=True)
    )
    return Method(
        init=init,
        phases=phases,
        embed=embed,
        distance=euclidean_distances,
        restore=restore,
    )
