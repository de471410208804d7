"""Why `modules/conv.py` treats three kinds of convolution differently on the CPU.

    python -m benchmarks.convolution

Times the forward pass, and the forward and backward pass, of a 1×1 convolution, of a
depthwise 3×3 one, and of a 3×3 one on maps of a few pixels, as XLA's convolution and as
`Conv` lowers them; GFLOP/s, best of 5.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp

from crossres_jax.modules import conv

LARGE, SMALL = (16, 32, 16, 256), (64, 4, 2, 256)  # B, H, W, C
CASES = {  # images, kernel, groups, how `Conv` lowers it
    "1×1": (LARGE, (1, 1, 256, 256), 1, partial(conv._as_dot, strides=1)),
    "depthwise 3×3": (LARGE, (3, 3, 1, 256), 256, conv._as_shifts),
    "3×3 on 4×2 pixels": (
        SMALL,
        (3, 3, 256, 256),
        1,
        partial(conv._as_windows, strides=1),
    ),
}


def gflops(function, x, kernel, backward):
    """GFLOP/s of the function, or of it and its gradient."""
    if backward:
        function = jax.grad(lambda x, k, f=function: (f(x, k) ** 2).sum(), (0, 1))
    function = jax.jit(function)
    jax.block_until_ready(function(x, kernel))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(function(x, kernel))
        seconds.append(time.perf_counter() - began)
    products = x.size * kernel.size // x.shape[-1]
    return 2 * products * (3 if backward else 1) / min(seconds) / 1e9


def main():
    """Prints one line per kind of convolution and way of computing it."""
    for name, (images, shape, groups, special) in CASES.items():
        x = jax.random.normal(jax.random.key(0), images, jnp.float32)
        kernel = jax.random.normal(jax.random.key(1), shape, jnp.float32)
        plain = partial(conv._as_convolution, strides=1, groups=groups)
        for way, function in (("convolution", plain), ("Conv", special)):
            forward, both = (gflops(function, x, kernel, b) for b in (False, True))
            print(
                f"{name:17} {way:12} forward {forward:6.1f}  with backward {both:6.1f}"
            )


if __name__ == "__main__":
    main()
