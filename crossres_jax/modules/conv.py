"""The convolutions of the project: PyTorch's geometry, quick on every back end.

XLA compiles three kinds of convolution badly for the CPU (measured on 2 cores, the
figures are in docs/results.md): a 1×1 convolution runs at half the speed of the same
dot product, a depthwise convolution many times slower than shifted multiply-adds, and
one whose result has but a few pixels many times slower than the dot product of its
windows. `Conv` therefore lowers these as such on the CPU, where a depthwise one has
stride 1 and one of few pixels a single group. On GPUs every convolution stays a
convolution and goes to cuDNN. The parameters are the same in either case, so a
checkpoint moves freely between the two.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He initialisation over the fan out, as HRNet's and VDSR's authors use it:
# N(0, sqrt(2 / (k² · C_out))).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's own, for networks whose authors leave it at that: uniform within
# ±1 / sqrt(k² · C_in / groups).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

FEW_PIXELS = 8  # above, XLA's convolution is as quick as the dot product


class Conv(nn.Module):
    """2-D convolution with symmetric zero padding (k − 1) / 2, as PyTorch pads.

    Flax's `'SAME'` pads a strided convolution on one side only, which shifts the
    features of imported weights; here the padding is always explicit.

    Attributes:
      features: number of output channels.
      kernel_size: odd side k of the square kernel.
      strides: step of the window in both directions.
      groups: number of channel groups; `groups == C_in == features` is depthwise.
      use_bias: whether a bias is added.
      dtype: type of the computation; parameters are float32.
      kernel_init: initialiser of the kernel (k, k, C_in / groups, features).
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable = he_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C_in) → (B, ⌈H / strides⌉, ⌈W / strides⌉, features)."""
        k, channels = self.kernel_size, x.shape[-1]
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (k, k, channels // self.groups, self.features),
            jnp.float32,
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu and k == 1 and self.groups == 1:
            y = _as_dot(x, kernel, self.strides)
        elif on_cpu and self.groups == channels == self.features and self.strides == 1:
            y = _as_shifts(x, kernel)
        elif on_cpu and self.groups == 1 and _pixels(x, self.strides) <= FEW_PIXELS:
            y = _as_windows(x, kernel, self.strides)
        else:
            y = _as_convolution(x, kernel, self.strides, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class TransposedConv(nn.Module):
    """Transposed convolution with a 2×2 kernel, stride 2 and a bias: doubles a map.

    Its windows do not overlap, so that it is a dot product for each input pixel.

    Attributes:
      features: number of output channels.
      dtype: type of the computation; parameters are float32.
      kernel_init: initialiser of the kernel (2, 2, C_in, features).
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C_in) → (B, 2H, 2W, features)."""
        batch, height, width, channels = x.shape
        shape = (2, 2, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum(
            "bhwc,ijcd->bhiwjd", x.astype(self.dtype), kernel.astype(self.dtype)
        )
        y = y.reshape(batch, 2 * height, 2 * width, self.features)
        return y + bias.astype(self.dtype)


def _as_convolution(x, kernel, strides, groups):
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _as_dot(x, kernel, strides):
    return x[:, ::strides, ::strides] @ kernel[0, 0]


def _pixels(x, strides):
    """⌈H / strides⌉ · ⌈W / strides⌉."""
    _, height, width, _ = x.shape
    return -(-height // strides) * -(-width // strides)


def _as_windows(x, kernel, strides):
    k, (height, width) = kernel.shape[0], x.shape[1:3]
    x = _pad(x, k)
    taps = [
        x[:, i : i + height : strides, j : j + width : strides]
        for i in range(k)
        for j in range(k)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@jax.custom_vjp
def _as_shifts(x, kernel):
    k, (height, width) = kernel.shape[0], x.shape[1:3]
    x = _pad(x, k)
    return sum(
        x[:, i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(k)
        for j in range(k)
    )


def _as_shifts_forward(x, kernel):
    return _as_shifts(x, kernel), (x, kernel)


def _as_shifts_backward(residuals, gradient):
    x, kernel = residuals
    k, padded = kernel.shape[0], _pad(x, kernel.shape[0])

    def of_tap(corner):
        shifted = jax.lax.dynamic_slice(padded, (0, *corner, 0), x.shape)
        return (shifted * gradient).sum(axis=(0, 1, 2))

    # One after the other: XLA fuses k² sums into one loop, five times as slow.
    taps = jax.lax.map(of_tap, tuple(jnp.indices((k, k)).reshape(2, -1)))
    return _as_shifts(gradient, kernel[::-1, ::-1]), taps.reshape(kernel.shape)


_as_shifts.defvjp(_as_shifts_forward, _as_shifts_backward)


def _pad(x, k):
    pad = (k - 1) // 2
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
