"""Pixel arithmetic on batches of images."""

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet's RGB mean and standard deviation of pixels in [0, 1].
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(images: jax.Array) -> jax.Array:
    """Pixels in [0, 1] → ImageNet-normalised: (B, H, W, 3) → (B, H, W, 3)."""
    return (images - IMAGENET_MEAN) / IMAGENET_STD


def denormalize(images: jax.Array) -> jax.Array:
    """The inverse of `normalize`, clipped to [0, 1]: (B, H, W, 3) → (B, H, W, 3)."""
    return jnp.clip(images * IMAGENET_STD + IMAGENET_MEAN, 0.0, 1.0)


def mirror(images: jax.Array) -> jax.Array:
    """Images flipped left to right: (B, H, W, C) → (B, H, W, C)."""
    return images[:, :, ::-1]
