"""Pooling: over windows, and of a whole map to one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C): the maximum of 3×3 windows, stride 2."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def generalized_mean(
    x: jax.Array, p: jax.Array | float, *, epsilon: float = 1e-6
) -> jax.Array:
    """Generalised mean over the positions, (mean xᵖ)^(1/p).

    Radenović et al., arXiv:1711.02512, Eq. (3). p = 1 is average pooling of what is
    not negative, p → ∞ maximum pooling. It is computed through log-sum-exp, so that
    no power overflows.

    Args:
      x: (B, H, W, C) float, usually after a ReLU.
      p: () float, positive.
      epsilon: smaller values count as this one and get no gradient.

    Returns:
      (B, C) float32.
    """
    log = jnp.log(jnp.maximum(x.astype(jnp.float32), epsilon))
    total = jax.nn.logsumexp(p * log, axis=(1, 2))  # (B, C)
    return jnp.exp((total - jnp.log(x.shape[1] * x.shape[2])) / p)


class GeM(nn.Module):
    """Generalised-mean pooling whose exponent is learned, one for all channels.

    Attributes:
      p: the exponent's initial value (3 in arXiv:1711.02512).
    """

    p: float = 3.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C) float32."""
        p = self.param("p", nn.initializers.constant(self.p), ())
        return generalized_mean(x, p)
