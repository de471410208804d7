"""RCAN (Zhang et al., arXiv:1807.02758): residual groups with channel attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.attention import ChannelAttention
from crossres_jax.modules.conv import Conv, uniform_fan_in

UPSAMPLERS = {2: (2,), 3: (3,), 4: (2, 2)}  # scale → factors of the pixel shuffles

# He initialisation makes the signal 8,000 times as large in two groups of 20 blocks.
_conv = partial(Conv, use_bias=True, kernel_init=uniform_fan_in)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C · factor²) → (B, factor · H, factor · W, C).

    Shi et al., arXiv:1609.05158, Eq. (4), with the order of PyTorch's channels: those
    of an output channel lie side by side, row by row of its factor × factor pixels.
    """
    batch, height, width, channels = x.shape
    channels //= factor**2
    x = x.reshape(batch, height, width, channels, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # (B, H, factor, W, factor, C)
    return x.reshape(batch, factor * height, factor * width, channels)


class ResidualAttentionBlock(nn.Module):
    """RCAB: two convolutions, channel attention, and the input (sec. 3.4).

    Attributes:
      squeeze: see `ChannelAttention`.
      dtype: type of the computation.
    """

    squeeze: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        conv = partial(_conv, x.shape[-1], dtype=self.dtype)
        y = nn.relu(conv(name="conv1")(x))
        y = conv(name="conv2")(y)
        attention = ChannelAttention(
            self.squeeze,
            dtype=self.dtype,
            kernel_init=uniform_fan_in,
            name="attention",
        )
        return x + attention(y)


class ResidualGroup(nn.Module):
    """Blocks, a convolution, and the input (sec. 3.2).

    Attributes:
      num_blocks: how many blocks there are.
      squeeze, dtype: see `ResidualAttentionBlock`.
    """

    num_blocks: int
    squeeze: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        y = x
        for b in range(self.num_blocks):
            y = ResidualAttentionBlock(self.squeeze, self.dtype, name=f"block{b}")(y)
        return x + _conv(x.shape[-1], dtype=self.dtype, name="conv")(y)


class RCAN(nn.Module):
    """A residual of residuals enlarges an image (sec. 3.1).

    The defaults are the paper's (sec. 4.1). Its code takes pixels of 0 to 255 less a
    data set's mean; here the caller shifts them.

    Attributes:
      scale: 2, 3 or 4, factor of the enlargement.
      num_groups: residual groups.
      num_blocks: blocks of each group.
      channels: of all maps.
      squeeze: of the channel attention; the paper's reduction 16 of 64 channels.
      last_init: initialiser of the last kernel.
      dtype: type of the computation.
    """

    scale: int
    num_groups: int = 10
    num_blocks: int = 20
    channels: int = 64
    squeeze: int = 4
    last_init: Callable = uniform_fan_in
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, scale · h, scale · w, C)."""
        conv = partial(_conv, dtype=self.dtype)
        shallow = conv(self.channels, name="first")(images)
        x = shallow
        for g in range(self.num_groups):
            name = f"group{g}"
            x = ResidualGroup(self.num_blocks, self.squeeze, self.dtype, name=name)(x)
        x = shallow + conv(self.channels, name="conv")(x)
        for n, factor in enumerate(UPSAMPLERS[self.scale]):
            x = conv(self.channels * factor**2, name=f"up{n}")(x)
            x = pixel_shuffle(x, factor)
        last = conv(images.shape[-1], kernel_init=self.last_init, name="last")
        return last(x)


class SameSizeRCAN(nn.Module):
    """A same-size restorer: the images made smaller, and enlarged by RCAN.

    In this library low-resolution images come enlarged to the input size. Antialiased
    bicubic interpolation takes them to (H // scale, W // scale), and RCAN's result to
    (H, W) where the scale does not divide these.

    Attributes:
      scale, num_groups, num_blocks, channels, squeeze: see `RCAN`.
      residual: whether RCAN predicts what is added to the images, and starts at zero,
        so that the restorer starts as the identity. The paper's network predicts the
        images themselves and starts far from them.
      dtype: type of the computation.
    """

    scale: int
    num_groups: int = 10
    num_blocks: int = 20
    channels: int = 64
    squeeze: int = 4
    residual: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        height, width = images.shape[1:3]
        small = _resize(images, height // self.scale, width // self.scale)
        x = RCAN(
            self.scale,
            self.num_groups,
            self.num_blocks,
            self.channels,
            self.squeeze,
            nn.initializers.zeros if self.residual else uniform_fan_in,
            self.dtype,
            name="rcan",
        )(small)
        x = _resize(x, height, width)
        return images + x if self.residual else x


def _resize(images, height, width):
    """Antialiased bicubic; nothing where the size is right."""
    batch, *size, channels = images.shape
    if size == [height, width]:
        return images
    shape = batch, height, width, channels
    return jax.image.resize(images, shape, "cubic", antialias=True)
