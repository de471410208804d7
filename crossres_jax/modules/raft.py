"""RAFT, which makes HR features of LR features (FTWA, arXiv:2101.04544, sec. 2.2)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv

SLOPE = 0.05  # of the leaky ReLU; Hui et al., arXiv:1909.11856 (IMDN)
REDUCTION = 16  # of the attention


class RAFTBlock(nn.Module):
    """RAFTB: split three times into what is kept and what goes on; gated, and added.

    Fig. 2 names its operators and not their sizes; docs/methods.md has the reading.

    Attributes:
      channels: of input and output, even.
      dtype: type of the computation.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, channels) → (B, H, W, channels)."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        rest, kept = x, []
        for n in range(3):
            y = _leaky_relu(conv(self.channels, name=f"conv{n + 1}")(rest))
            part, rest = jnp.split(y, 2, axis=-1)  # CP
            kept.append(part)
        kept.append(_leaky_relu(conv(self.channels // 2, name="conv4")(rest)))
        y = jnp.concatenate(kept, axis=-1)  # CAT, (B, H, W, 2 · channels)

        one = partial(conv, kernel_size=1)
        gate = y.mean(axis=(1, 2), keepdims=True)  # GAP
        gate = _leaky_relu(one(2 * self.channels // REDUCTION, name="down")(gate))
        gate = nn.sigmoid(one(2 * self.channels, name="up")(gate))
        return x + one(self.channels, name="fuse")(y * gate)


class RAFT(nn.Module):
    """T: features of an LR image → those that its HR image would have, Eq. (3).

    The input is added to the output and the last convolution starts at zero, so that T
    starts as the identity.

    Attributes:
      channels: of the blocks.
      num_blocks: how many blocks there are.
      dtype: type of the computation.
    """

    channels: int = 256
    num_blocks: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        first = _leaky_relu(conv(self.channels, name="first")(features))
        x, outputs = first, []
        for n in range(self.num_blocks):
            x = RAFTBlock(self.channels, self.dtype, name=f"block{n}")(x)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        x = _leaky_relu(conv(self.channels, kernel_size=1, name="fuse")(x))
        x = _leaky_relu(conv(self.channels, name="after")(x)) + first
        last = conv(features.shape[-1], kernel_init=nn.initializers.zeros, name="last")
        return features + last(x)


def _leaky_relu(x):
    return nn.leaky_relu(x, SLOPE)
