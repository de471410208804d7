"""The auto-encoder that restores images in FFSR + RIFE (Mao et al., IJCAI 2019)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv, TransposedConv


class AutoEncoder(nn.Module):
    """A same-size restorer of 12 layers with symmetric skips (sec. 4.1, 5.2).

    Two convolutions with stride 2, eight with stride 1, two transposed ones, ReLU and
    a bias in all of them. The paper gives the number of layers and 3.71 GMAC for an
    image of 384×128; these widths and skips fit both (docs/methods.md). The image
    itself is the outermost skip and the last layer starts at zero, so that the
    untrained network returns its input.

    Attributes:
      stem_channels: of the first layer, which works at half the resolution.
      channels: of the layers at a quarter of the resolution.
      dtype: type of the computation.
    """

    stem_channels: int = 16
    channels: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C).

        Raises:
          ValueError: if H or W is no multiple of 4.
        """
        if images.shape[1] % 4 or images.shape[2] % 4:
            raise ValueError(
                "the auto-encoder halves an image twice: expected sides that are "
                f"multiples of 4, found {images.shape[1]}×{images.shape[2]}."
            )
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        half = nn.relu(conv(self.stem_channels, strides=2, name="conv1")(images))
        outputs = {2: nn.relu(conv(self.channels, strides=2, name="conv2")(half))}
        skips = {8: 4, 10: 2}  # to the output of a layer from that of an earlier one
        for n in range(3, 11):
            x = conv(self.channels, name=f"conv{n}")(outputs[n - 1])
            outputs[n] = nn.relu(x + outputs[skips[n]] if n in skips else x)
        x = TransposedConv(self.stem_channels, dtype=self.dtype, name="conv11")
        x = nn.relu(x(outputs[10]) + half)
        residual = TransposedConv(
            images.shape[-1],
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv12",
        )
        return images + residual(x)
