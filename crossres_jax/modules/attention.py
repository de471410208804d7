"""Attention over channels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv


class ChannelAttention(nn.Module):
    """Squeeze to the channels' means, excite, and scale the channels.

    Eqs. (2)–(4) of PS-HRNet; Zhang et al., RCAN, arXiv:1807.02758, sec. 3.3.

    Attributes:
      squeeze: number of channels between the two 1×1 convolutions.
      gate_bias: initial bias of the gate. 0 is the papers' value and starts every gate
        at 1/2; a large one starts with all gates open.
      dtype: type of the computation.
    """

    squeeze: int
    gate_bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C), every channel times its gate in (0, 1)."""
        channels = x.shape[-1]
        z = x.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, C), Eq. (4)
        z = Conv(
            self.squeeze, kernel_size=1, use_bias=True, dtype=self.dtype, name="down"
        )(z)
        z = Conv(channels, kernel_size=1, use_bias=True, dtype=self.dtype, name="up")(
            nn.relu(z)
        )
        return x * nn.sigmoid(z + self.gate_bias)  # Eqs. (3), (2)
