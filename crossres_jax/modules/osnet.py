"""OSNet: streams of different receptive fields, weighed by one shared gate.

Zhou et al., arXiv:1905.00953. `OSNet` with its defaults is OSNet x1.0 without its
classifier, 2,169,508 parameters (2,193,616 in the authors' list, which counts the gate
of a block once for each of its four streams). Submodules and shapes are those of the
published weights.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.attention import ChannelAttention
from crossres_jax.modules.conv import Conv
from crossres_jax.modules.pooling import max_pool
from crossres_jax.modules.residual import ConvNormRelu, batch_norm

CHANNELS = (64, 256, 384, 512)  # of the stem and of stages 2, 3 and 4, Table 1
STREAMS = "abcd"  # stream t stacks t Lite 3×3 layers: receptive fields of 3, 5, 7, 9


class LiteConv(nn.Module):
    """Lite 3×3: pointwise, then depthwise convolution, normalisation and ReLU (Fig. 3).

    Attributes:
      features: number of output channels.
      dtype: type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H, W, features)."""
        conv = partial(Conv, self.features, dtype=self.dtype)
        x = conv(kernel_size=1, name="conv1")(x)
        x = conv(groups=self.features, name="conv2")(x)
        return nn.relu(batch_norm(train=train, dtype=self.dtype)(name="bn")(x))


class OmniScaleBlock(nn.Module):
    """Residual bottleneck with four gated streams (Fig. 4b).

    Attributes:
      features: number of output channels; the streams work on a quarter of them.
      dtype: type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H, W, features)."""
        middle = self.features // 4
        unit = partial(ConvNormRelu, kernel_size=1, dtype=self.dtype)
        # One gate for all streams: "the unified aggregation gate", Eq. (3).
        gate = ChannelAttention(max(1, middle // 16), dtype=self.dtype, name="gate")

        reduced = unit(middle, name="conv1")(x, train=train)
        total = 0.0
        for depth, stream in enumerate(STREAMS, start=1):
            y = reduced
            for n in range(depth):
                layer = LiteConv(middle, dtype=self.dtype, name=f"conv2{stream}_{n}")
                y = layer(y, train=train)
            total = total + gate(y)
        y = unit(self.features, relu=False, name="conv3")(total, train=train)

        if x.shape != y.shape:
            x = unit(self.features, relu=False, name="downsample")(x, train=train)
        return nn.relu(x + y)


class OSNet(nn.Module):
    """OSNet up to its embedding (Table 1).

    Attributes:
      width: multiplier of `CHANNELS`: 1, 0.75, 0.5 and 0.25 are published.
      feature_size: length of the embedding.
      dtype: type of the computation; the embedding is computed in float32.
    """

    width: float = 1.0
    feature_size: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, 3) normalised images → (B, feature_size) float32, not negative."""
        unit = partial(ConvNormRelu, dtype=self.dtype)
        stem, *stages = (int(self.width * channels) for channels in CHANNELS)

        x = unit(stem, kernel_size=7, strides=2, name="conv1")(images, train=train)
        x = max_pool(x)  # (B, H/4, W/4, stem)
        for stage, features in enumerate(stages, start=2):
            for b in range(2):
                block = OmniScaleBlock(features, self.dtype, name=f"conv{stage}_{b}")
                x = block(x, train=train)
            if stage < 4:
                step = unit(features, kernel_size=1, name=f"transition{stage}")
                x = step(x, train=train)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = unit(features, kernel_size=1, name="conv5")(x, train=train)

        x = x.astype(jnp.float32).mean(axis=(1, 2))
        x = nn.Dense(self.feature_size, kernel_init=_fc_init, name="fc")(x)
        return nn.relu(batch_norm(train=train)(name="bn")(x))


_fc_init = nn.initializers.normal(0.01)
