"""The dual-stream block of RIFE (Mao et al., IJCAI 2019, sec. 4.2)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class DualStream(NamedTuple):
    """What a `DualStreamBlock` returns.

    Attributes:
      maps: m_t, (B, H, W, C), the fused maps.
      w_low: w_t^L, (B,) float32 in (0, 1).
      w_high: w_t^H, (B,) float32 in (0, 1).
    """

    maps: jax.Array
    w_low: jax.Array
    w_high: jax.Array


class WeightPredictor(nn.Module):
    """The weight of a stream from its own maps: mean, two dense layers, sigmoid.

    Attributes:
      hidden: output channels of the first dense layer (64, sec. 5.2).
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B,) float32 in (0, 1)."""
        x = maps.astype(jnp.float32).mean(axis=(1, 2))
        x = nn.relu(nn.Dense(self.hidden, name="fc1")(x))
        return nn.sigmoid(nn.Dense(1, name="fc2")(x))[:, 0]


class DualStreamBlock(nn.Module):
    """Two streams of one architecture, for low and for high resolution, and their sum.

    m_t = w_t^L m_t^L + w_t^H m_t^H, Eq. (6). The weights belong to an image;
    `losses.resolution_weighting` ties them to its resolution.

    Attributes:
      low, high: the streams, modules that map (x, train=...) to maps (B, H, W, C), for
        example two `ResNetStage`s.
      learned: whether the weights are predicted; else they are 1/2, and w_low and
        w_high say so.
    """

    low: nn.Module
    high: nn.Module
    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> DualStream:
        """What both streams take → DualStream."""
        low, high = self.low(x, train=train), self.high(x, train=train)
        if self.learned:
            w_low = WeightPredictor(name="weight_low")(low)
            w_high = WeightPredictor(name="weight_high")(high)
        else:
            w_low = w_high = jnp.full(len(low), 0.5)
        each = (slice(None), None, None, None)
        maps = (
            w_low.astype(low.dtype)[each] * low + w_high.astype(low.dtype)[each] * high
        )
        return DualStream(maps, w_low, w_high)
