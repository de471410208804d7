"""Attention over channels, and among positions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv, he_fan_out
from crossres_jax.modules.residual import batch_norm


class ChannelAttention(nn.Module):
    """Squeeze to the channels' means, excite, and scale the channels.

    Eqs. (2)–(4) of PS-HRNet; Zhang et al., RCAN, arXiv:1807.02758, sec. 3.3.

    Attributes:
      squeeze: number of channels between the two 1×1 convolutions.
      gate_bias: initial bias of the gate. 0 is the papers' value and starts every gate
        at 1/2; a large one starts with all gates open.
      dtype: type of the computation.
      kernel_init: initialiser of both kernels.
    """

    squeeze: int
    gate_bias: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: Callable = he_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C), every channel times its gate in (0, 1)."""
        channels = x.shape[-1]
        z = x.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, C), Eq. (4)
        conv = partial(
            Conv,
            kernel_size=1,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
        )
        z = nn.relu(conv(self.squeeze, name="down")(z))
        z = conv(channels, name="up")(z)
        return x * nn.sigmoid(z + self.gate_bias)  # Eqs. (3), (2)


class NonLocal(nn.Module):
    """x + BN(W y) with y = (θ φᵀ / N) g: every position looks at all N of them.

    Wang et al., arXiv:1711.07971, Eqs. (1), (4) and (6), as AGW uses it (Ye et al.,
    arXiv:2001.04193, sec. 4): the affinities are divided by N and see no softmax, and
    the normalisation starts at zero, so that the block starts as the identity.

    Attributes:
      inner: channels of θ, φ and g; None takes half of the input's. AGW's released
        code has 1, which its authors call an oversight.
      dtype: type of the computation.
    """

    inner: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        batch, height, width, channels = x.shape
        inner = self.inner or channels // 2
        conv = partial(Conv, kernel_size=1, use_bias=True, dtype=self.dtype)
        theta, phi, g = (
            conv(inner, name=name)(x).reshape(batch, height * width, inner)
            for name in ("theta", "phi", "g")
        )
        # Without a softmax the product is associative: einsum takes the cheaper order.
        y = jnp.einsum("bnc,bmc,bmd->bnd", theta, phi / (height * width), g)
        y = conv(channels, name="out")(y.reshape(batch, height, width, inner))
        zeros = nn.initializers.zeros
        norm = batch_norm(train=train, dtype=self.dtype)
        return x + norm(scale_init=zeros, bias_init=zeros, name="bn")(y)
