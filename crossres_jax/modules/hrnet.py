"""HRNet: parallel branches that keep the high resolution to the end.

Sun et al., arXiv:1902.09212; the classification network HRNet-W32-C of
Wang et al., arXiv:1908.07919. `HRNet` with its defaults is HRNet-W32.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.residual import BasicBlock, Bottleneck, ConvNormRelu

NUM_BRANCHES = 4


class Exchange(nn.Module):
    """One HRNet module: residual blocks on every branch, then all branches mixed.

    Output i is ReLU(Σ_j f_ij(x_j)) with f_ii the identity, 1×1 convolution and
    nearest up-sampling from a smaller branch (j > i), and i − j strided 3×3
    convolutions from a larger one (j < i).

    Attributes:
      num_blocks: residual blocks on each branch.
      dtype: type of the computation.
    """

    num_blocks: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, branches: Sequence[jax.Array], *, train: bool
    ) -> tuple[jax.Array, ...]:
        """Sequence of (B, H / 2^i, W / 2^i, C_i) → tuple of the same shapes."""
        widths = [x.shape[-1] for x in branches]
        refined = []
        for i, x in enumerate(branches):
            for b in range(self.num_blocks):
                block = BasicBlock(widths[i], dtype=self.dtype, name=f"b{i}_block{b}")
                x = block(x, train=train)
            refined.append(x)

        step = partial(ConvNormRelu, dtype=self.dtype)
        mixed = []
        for i, width in enumerate(widths):
            total = refined[i]
            for j, x in enumerate(refined):
                if j > i:
                    x = step(width, kernel_size=1, relu=False, name=f"up_{j}_to_{i}")(
                        x, train=train
                    )
                    total = total + upsample_nearest(x, 2 ** (j - i))
                if j < i:
                    for n in range(i - j):
                        last = n == i - j - 1
                        x = step(
                            width if last else widths[j],
                            strides=2,
                            relu=not last,
                            name=f"down_{j}_to_{i}_{n}",
                        )(x, train=train)
                    total = total + x
            mixed.append(nn.relu(total))
        return tuple(mixed)


class HRNet(nn.Module):
    """HRNet's body: stem, one residual stage and three exchange stages.

    Attributes:
      width: channels of the highest branch; branch i has `width · 2^i`.
      stem_width: channels of the stem and planes of the first stage (64 in the paper).
      num_stem_blocks: bottlenecks of the first stage.
      num_modules: exchange modules of stages 2, 3 and 4.
      num_blocks: residual blocks per branch and module.
      dtype: type of the computation.
      remat: recompute each block in the backward pass instead of storing its inside.
    """

    width: int = 32
    stem_width: int = 64
    num_stem_blocks: int = 4
    num_modules: tuple[int, int, int] = (1, 4, 3)
    num_blocks: int = 4
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """(B, H, W, 3), H and W multiples of 32 → four maps (B, H/4·2⁻ⁱ, W/4·2⁻ⁱ, Cᵢ).

        Raises:
          ValueError: if a side is no multiple of 32, the stride of the lowest branch.
        """
        height, width = images.shape[1:3]
        if height % 32 or width % 32:
            raise ValueError(
                "HRNet's lowest branch has stride 32: height and width must be "
                f"multiples of 32, found {height}×{width}. Choose another image size."
            )

        def run(block, x):
            return block(x, train=train)

        run = nn.remat(run) if self.remat else run
        step = partial(ConvNormRelu, dtype=self.dtype)
        x = step(self.stem_width, strides=2, name="stem1")(images, train=train)
        x = step(self.stem_width, strides=2, name="stem2")(x, train=train)
        for b in range(self.num_stem_blocks):
            block = Bottleneck(self.stem_width, dtype=self.dtype, name=f"layer1_{b}")
            x = run(block, x)  # (B, H/4, W/4, 4 · stem_width)

        widths = [self.width * 2**i for i in range(NUM_BRANCHES)]
        branches = [step(widths[0], name="transition1_0")(x, train=train)]
        for stage, modules in enumerate(self.num_modules, start=2):
            # A new, lower branch grows from the lowest one (stage 2: from layer1).
            source = x if stage == 2 else branches[-1]
            grow = step(
                widths[stage - 1], strides=2, name=f"transition{stage - 1}_{stage - 1}"
            )
            branches = [*branches, grow(source, train=train)]
            for m in range(modules):
                exchange = Exchange(
                    self.num_blocks, dtype=self.dtype, name=f"stage{stage}_{m}"
                )
                branches = run(exchange, branches)
        return tuple(branches)


class IncreModules(nn.Module):
    """One bottleneck per branch that widens it: the "incre modules" of HRNet-W32-C.

    Attributes:
      planes: planes of the highest branch's bottleneck, doubled from branch to branch;
        the outputs have `4 · planes · 2^i` channels.
      dtype: type of the computation.
    """

    planes: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, branches: Sequence[jax.Array], *, train: bool
    ) -> tuple[jax.Array, ...]:
        """Sequence of (B, Hᵢ, Wᵢ, Cᵢ) → tuple of (B, Hᵢ, Wᵢ, 4 · planes · 2^i)."""
        return tuple(
            Bottleneck(self.planes * 2**i, dtype=self.dtype, name=f"incre{i}")(
                x, train=train
            )
            for i, x in enumerate(branches)
        )


class HRNetC(nn.Module):
    """HRNet-W32-C up to its last map: the network that is pretrained on ImageNet.

    39,183,680 parameters, 41,232,680 with the classifier of 1,000 classes.

    Attributes:
      body: the body; its defaults are W32.
      planes: see `IncreModules`.
      dtype: type of the computation behind the body.
    """

    body: HRNet = HRNet()
    planes: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, 3) → (B, H/32, W/32, 64 · planes)."""
        step = partial(ConvNormRelu, use_bias=True, dtype=self.dtype)
        branches = self.body(images, train=train)
        branches = IncreModules(self.planes, dtype=self.dtype, name="incre")(
            branches, train=train
        )
        y = branches[0]
        for i, x in enumerate(branches[1:], start=1):
            down = step(x.shape[-1], strides=2, name=f"downsample{i}")
            y = x + down(y, train=train)
        return step(2 * y.shape[-1], kernel_size=1, name="final")(y, train=train)


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C) → (B, H · factor, W · factor, C) by repeating every pixel."""
    return x.repeat(factor, axis=1).repeat(factor, axis=2)
