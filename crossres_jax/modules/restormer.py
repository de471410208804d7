"""The Transformer block of Restormer (Zamir et al., arXiv:2111.09881), used by DGRL.

Attention among channels instead of positions, so that its cost grows linearly with the
number of pixels. Equation numbers are DGRL's (Ye and Gao, sec. III-B).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv, uniform_fan_in
from crossres_jax.ops.distances import l2_normalize

EXPANSION = 2.66  # of the feed-forward network; Restormer sec. 4


def transposed_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Each channel of v becomes a mean of its head's channels, softmax(t q̂ k̂ᵀ) v.

    Eq. (2), where q̂ and k̂ are channels of length 1 over the positions, as in
    Restormer's code. The equation divides by α, the code multiplies by t.

    Args:
      q, k, v: (B, N, heads, c) float at N positions.
      temperature: (heads, 1, 1) float, t.

    Returns:
      (B, N, heads, c) of v's type; the attention map (B, heads, c, c) is float32.
    """
    q, k = (l2_normalize(jnp.moveaxis(x, 1, -1)) for x in (q, k))  # (B, heads, c, N)
    scores = temperature * jnp.einsum("bhcn,bhdn->bhcd", q, k)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhcd,bnhd->bnhc", weights, v)


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention, Eqs. (1) and (2).

    Attributes:
      num_heads: heads among which the channels are divided.
      dtype: type of the computation.
    """

    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        batch, height, width, channels = x.shape
        conv = partial(Conv, kernel_init=uniform_fan_in, dtype=self.dtype)
        ones = nn.initializers.ones
        temperature = self.param("temperature", ones, (self.num_heads, 1, 1))

        qkv = conv(3 * channels, kernel_size=1, name="qkv")(x)
        qkv = conv(3 * channels, groups=3 * channels, name="qkv_dwconv")(qkv)
        heads = batch, height * width, self.num_heads, channels // self.num_heads
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        y = transposed_attention(q, k, v, temperature).reshape(x.shape)
        return conv(channels, kernel_size=1, name="project_out")(y)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network, Eq. (3).

    Attributes:
      dtype: type of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        channels = x.shape[-1]
        both = 2 * int(EXPANSION * channels)
        conv = partial(Conv, kernel_init=uniform_fan_in, dtype=self.dtype)
        y = conv(both, kernel_size=1, name="project_in")(x)
        y = conv(both, groups=both, name="dwconv")(y)
        gate, y = jnp.split(y, 2, axis=-1)
        y = nn.gelu(gate, approximate=False) * y
        return conv(channels, kernel_size=1, name="project_out")(y)


class RestormerBlock(nn.Module):
    """Attention and feed-forward network, each behind a LayerNorm and added, Eq. (4).

    Attributes:
      num_heads: of the attention; they divide the channels. DGRL: 4 (sec. IV-C).
      dtype: type of the computation.
    """

    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        mdta = MDTA(self.num_heads, self.dtype, name="mdta")
        gdfn = GDFN(self.dtype, name="gdfn")
        x = mdta(norm(name="norm1")(x)) + x
        return gdfn(norm(name="norm2")(x)) + x
