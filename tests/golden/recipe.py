"""Weights and images that both sides of the parity tests compute for themselves.

Every value is a pure function of a name and a shape, in integer arithmetic up to its
last step, so that no generator's version and no file of weights is needed.
"""

import math
import zlib

import numpy as np


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that look random; element i mixes crc32(name) and i.

    With key = crc32(name) · 2³² + i in 64 bits, two rounds of "xor with the upper half,
    multiply by an odd constant" give 64 bits, of which the upper 24 are the number.

    Args:
      name: what the numbers are for.
      shape: of the result; i counts in row-major order.

    Returns:
      Float32 array; its values are exact.
    """
    key = np.arange(math.prod(shape), dtype=np.uint64)
    key += np.uint64(zlib.crc32(name.encode()) << 32)
    for odd in (0xD6E8FEB86659FD93, 0xA0761D6478BD642F):
        key ^= key >> np.uint64(32)
        key *= np.uint64(odd)  # modulo 2⁶⁴
    upper = (key >> np.uint64(40)).astype(np.float32)
    return (upper / 2**23 - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of a PyTorch name, scaled so that activations stay of order 1.

    With u = noise(name, shape): running variances 1 + u/2, scales of a normalisation
    0.7 + 0.2 u, biases and running means 0.1 u, kernels and matrices √(6 / fan_in) u,
    which is He's variance 2 / fan_in.

    Args:
      name: a name in a state dict; its last part and the shape decide the kind.
      shape: PyTorch's, (out, in, …) for kernels and matrices.

    Returns:
      Float32 array.
    """
    u = noise(name, shape)
    if name.endswith("running_var"):
        return 1 + u / 2
    if len(shape) > 1:
        return np.float32(math.sqrt(6 / math.prod(shape[1:]))) * u
    if name.endswith("weight"):
        return np.float32(0.7) + np.float32(0.2) * u
    return np.float32(0.1) * u


def images(shape: tuple[int, ...]) -> np.ndarray:
    """(B, H, W, C) images of variance 1: coarse noise of 8×8 cells plus fine noise.

    Without the coarse part all images would pool to nearly the same features.
    """
    batch, height, width, channels = shape
    coarse = noise("cells", (batch, height // 8, width // 8, channels))
    coarse = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return np.float32(math.sqrt(1.5)) * (coarse + noise("images", shape))
