"""Residual blocks of ResNet and HRNet (He et al., arXiv:1512.03385) and their parts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.conv import Conv


def batch_norm(*, train: bool, dtype: Any = jnp.float32) -> Callable:
    """Batch normalisation with PyTorch's momentum and ε: a `partial` without a name.

    PyTorch's momentum 0.1 is Flax's 0.9. Statistics are computed in float32 over the
    whole (global) batch, whatever `dtype` is. Flax's running variance is the biased
    one, PyTorch's the unbiased one: a factor of 1 − 1/n for n values per channel.

    Args:
      train: whether to use, and to record, the batch's statistics.
      dtype: type of the result.

    Returns:
      `nn.BatchNorm` with these settings, to be called with a `name`.
    """
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
    )


class ConvNormRelu(nn.Module):
    """Convolution, batch normalisation and, unless `relu` is False, ReLU.

    Attributes:
      features, kernel_size, strides, use_bias: see `Conv`.
      relu: whether the ReLU is applied.
      dtype: type of the computation.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    use_bias: bool = False
    relu: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H / strides, W / strides, features)."""
        x = Conv(
            self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = batch_norm(train=train, dtype=self.dtype)(name="bn")(x)
        return nn.relu(x) if self.relu else x


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut; keeps the number of channels.

    Attributes:
      features: number of input and output channels.
      dtype: type of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, features) → (B, H, W, features)."""
        conv = partial(Conv, self.features, dtype=self.dtype)
        norm = batch_norm(train=train, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(conv(name="conv1")(x)))
        y = norm(name="bn2")(conv(name="conv2")(y))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with four times `planes` output channels.

    The stride sits on the 3×3 convolution. The shortcut is a 1×1 convolution where
    the shape changes.

    Attributes:
      planes: channels of the 3×3 convolution.
      strides: stride of the 3×3 convolution and of the shortcut.
      dtype: type of the computation.
    """

    planes: int
    strides: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) → (B, H / strides, W / strides, 4 · planes)."""
        conv = partial(Conv, dtype=self.dtype)
        norm = batch_norm(train=train, dtype=self.dtype)
        features = 4 * self.planes

        y = conv(self.planes, kernel_size=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.planes, strides=self.strides, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(features, kernel_size=1, name="conv3")(y)
        y = norm(name="bn3")(y)

        if x.shape != y.shape:
            x = conv(
                features, kernel_size=1, strides=self.strides, name="shortcut_conv"
            )(x)
            x = norm(name="shortcut_bn")(x)
        return nn.relu(x + y)
