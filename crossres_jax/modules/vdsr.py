"""VDSR (Kim et al., arXiv:1511.04587) and its form with channel attention, VDSR-CA."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.attention import ChannelAttention
from crossres_jax.modules.conv import Conv, he_fan_out

OPEN_GATE = 4.0  # sigmoid(4) = 0.98


class VDSRLayer(nn.Module):
    """3×3 convolution, channel attention if `squeeze` is not 0, and ReLU.

    Attributes:
      channels: number of output channels.
      squeeze, gate_bias: see `ChannelAttention`; with `squeeze` 0 there is none.
      dtype: type of the computation.
    """

    channels: int
    squeeze: int = 0
    gate_bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, channels)."""
        x = Conv(self.channels, dtype=self.dtype, name="conv")(x)
        if self.squeeze:
            x = ChannelAttention(
                self.squeeze, self.gate_bias, dtype=self.dtype, name="attention"
            )(x)
        return nn.relu(x)


class VDSR(nn.Module):
    """A same-size restorer: a deep stack of 3×3 convolutions predicts the residual.

    With `squeeze` it is VDSR-CA of PS-HRNet (sec. III-B): channel attention between
    the convolution and the ReLU of every middle layer. The released code gives the
    attention 4 squeeze channels (677,448 parameters, the default); read literally as a
    ratio of 4, "r is set to 4" would be 16 (705,312).

    Attributes:
      channels: width of the middle layers.
      depth: number of convolutions, the first and the last included.
      squeeze: squeeze channels of the channel attention, 0 for plain VDSR.
      start_as_identity: start with open gates and a zero last convolution, so that the
        untrained network returns its input. The paper starts every gate at 1/2, which
        scales 18 layers' signal and gradient by 2⁻¹⁸ (docs/methods.md).
      dtype: type of the computation.
      remat: recompute each middle layer in the backward pass instead of storing it.
    """

    channels: int = 64
    depth: int = 20
    squeeze: int = 4
    start_as_identity: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C): the images plus the predicted detail."""
        layer = partial(
            nn.remat(VDSRLayer) if self.remat else VDSRLayer,
            self.channels,
            dtype=self.dtype,
        )
        gate_bias = OPEN_GATE if self.start_as_identity else 0.0
        x = layer(name="layer0")(images)
        for n in range(1, self.depth - 1):
            x = layer(self.squeeze, gate_bias, name=f"layer{n}")(x)
        residual = Conv(
            images.shape[-1],
            kernel_init=nn.initializers.zeros if self.start_as_identity else he_fan_out,
            dtype=self.dtype,
            name=f"conv{self.depth - 1}",
        )(x)
        return images + residual
