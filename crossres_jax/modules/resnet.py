"""ResNet, the backbone of most re-identification baselines.

He et al., arXiv:1512.03385, with the stride of a bottleneck on its 3×3 convolution, as
in the weights that are published for PyTorch ("v1.5"). `ResNet` with its defaults is
ResNet-50 without its classifier, 23,508,032 parameters.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.attention import NonLocal
from crossres_jax.modules.conv import Conv
from crossres_jax.modules.pooling import max_pool
from crossres_jax.modules.residual import Bottleneck, batch_norm


class ResNet(nn.Module):
    """Stem and four stages of bottlenecks.

    Attributes:
      width: channels of the stem and planes of the first stage, doubled from stage to
        stage; stage i has `4 · width · 2^i` output channels.
      num_blocks: bottlenecks of each stage; (3, 4, 6, 3) is ResNet-50.
      last_stride: stride of the last stage. 1 keeps its map as large as the one before,
        as re-identification prefers it (Luo et al., arXiv:1903.07071, sec. 3.4).
      dtype: type of the computation.
      num_non_local: how many of the last bottlenecks of each stage a `NonLocal` block
        follows, all of them if there are fewer; (0, 2, 3, 0) is AGW's.
    """

    width: int = 64
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    last_stride: int = 2
    dtype: Any = jnp.float32
    num_non_local: tuple[int, int, int, int] = (0, 0, 0, 0)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """(B, H, W, 3) → four maps (B, H/4·2⁻ⁱ, W/4·2⁻ⁱ, 4 · width · 2ⁱ).

        With `last_stride` 1 the last map has the sides of the one before. Sides that do
        not divide are rounded up.
        """
        x = _stem(images, self.width, self.dtype, train=train)
        strides = (1, 2, 2, self.last_stride)
        stages = []
        for i, num_blocks in enumerate(self.num_blocks):
            x = _stage(
                x,
                self.width * 2**i,
                num_blocks,
                strides[i],
                self.dtype,
                self.num_non_local[i],
                f"layer{i + 1}_",
                train=train,
            )
            stages.append(x)
        return tuple(stages)


class ResNetStem(nn.Module):
    """What stands before the stages, for networks that put them together otherwise.

    Attributes:
      width: number of output channels.
      dtype: type of the computation.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, 3) → (B, H/4, W/4, width)."""
        return _stem(images, self.width, self.dtype, train=train)


class ResNetStage(nn.Module):
    """One stage.

    Attributes:
      planes: of its bottlenecks.
      num_blocks: how many there are.
      strides: of the first of them.
      dtype: type of the computation.
      num_non_local: how many of the last of them a `NonLocal` block follows.
    """

    planes: int
    num_blocks: int
    strides: int = 1
    dtype: Any = jnp.float32
    num_non_local: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H / strides, W / strides, 4 · planes)."""
        return _stage(
            x,
            self.planes,
            self.num_blocks,
            self.strides,
            self.dtype,
            self.num_non_local,
            "block",
            train=train,
        )


def _stem(images, width, dtype, *, train):
    """The layers of a stem, in the module that calls it."""
    x = Conv(width, kernel_size=7, strides=2, dtype=dtype, name="conv1")(images)
    x = nn.relu(batch_norm(train=train, dtype=dtype)(name="bn1")(x))
    return max_pool(x)


def _stage(x, planes, num_blocks, strides, dtype, num_non_local, name, *, train):
    """The blocks of a stage, in the module that calls it."""
    for b in range(num_blocks):
        block = Bottleneck(planes, strides if b == 0 else 1, dtype, name=f"{name}{b}")
        x = block(x, train=train)
        if b >= num_blocks - num_non_local:
            non_local = NonLocal(dtype=dtype, name=f"{name}{b}_non_local")
            x = non_local(x, train=train)
    return x
