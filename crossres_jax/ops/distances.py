"""Distances between rows of features, always in float32."""

import jax
import jax.numpy as jnp
import numpy as np


def squared_euclidean_distances(
    x: jax.Array | np.ndarray, y: jax.Array | np.ndarray
) -> jax.Array:
    """‖x_i − y_j‖² for all pairs.

    Args:
      x: (M, D) float.
      y: (N, D) float.

    Returns:
      (M, N) float32, not negative.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :]
    return jnp.maximum(squares - 2 * products, 0.0)


def euclidean_distances(
    x: jax.Array | np.ndarray, y: jax.Array | np.ndarray, *, epsilon: float = 1e-12
) -> jax.Array:
    """‖x_i − y_j‖ for all pairs, with a finite gradient where two rows are equal.

    Args:
      x: (M, D) float.
      y: (N, D) float.
      epsilon: squared distances below it are clamped to it, before the root.

    Returns:
      (M, N) float32, at least `sqrt(epsilon)`.
    """
    return jnp.sqrt(jnp.maximum(squared_euclidean_distances(x, y), epsilon))


def l2_normalize(x: jax.Array | np.ndarray, *, epsilon: float = 1e-12) -> jax.Array:
    """x / ‖x‖ over the last axis; a zero row stays zero.

    Args:
      x: (..., D) float.
      epsilon: squared lengths below it are clamped to it, before the root.

    Returns:
      (..., D) float32.
    """
    x = x.astype(jnp.float32)
    squares = (x**2).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, epsilon))


def cosine_distances(x: jax.Array | np.ndarray, y: jax.Array | np.ndarray) -> jax.Array:
    """1 − cos(x_i, y_j) for all pairs: (M, D), (N, D) → (M, N) float32 in [0, 2]."""
    x, y = l2_normalize(x), l2_normalize(y)
    return 1.0 - jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
