"""SRCNN (Dong et al., ECCV 2014): three convolutions sharpen an enlarged image."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv


class SRCNN(nn.Module):
    """A same-size restorer; the defaults are the "9-1-5" network, 20,099 parameters.

    Patch extraction, non-linear mapping and reconstruction (sec. 3.1), with zero
    padding in all of them.

    Attributes:
      kernel_sizes: sides of the three kernels; (9, 5, 5) is the larger network of the
        authors' later arXiv:1501.00092.
      channels: of the first two layers.
      residual: whether the images are added to the output, as VDSR adds them, and the
        reconstruction starts at zero. The paper's network has to learn them.
      dtype: type of the computation.
    """

    kernel_sizes: Sequence[int] = (9, 1, 5)
    channels: Sequence[int] = (64, 32)
    residual: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        x = images
        for n, channels in enumerate(self.channels):
            conv = Conv(
                channels,
                kernel_size=self.kernel_sizes[n],
                use_bias=True,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv{n + 1}",
            )
            x = nn.relu(conv(x))
        start = nn.initializers.zeros if self.residual else nn.initializers.he_normal()
        x = Conv(
            images.shape[-1],
            kernel_size=self.kernel_sizes[-1],
            use_bias=True,
            kernel_init=start,
            dtype=self.dtype,
            name="conv3",
        )(x)
        return images + x if self.residual else x
