"""Losses that classify identities."""

import jax
import jax.numpy as jnp
import numpy as np


def label_smoothed_cross_entropy(
    logits: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    *,
    epsilon: float = 0.1,
) -> jax.Array:
    """Cross-entropy against a target that keeps ε for all classes.

    Eqs. (8) and (9) of PS-HRNet; Szegedy et al., arXiv:1512.00567, sec. 7. The target
    is 1 − ε (M − 1) / M on the true class and ε / M on each other class.

    Args:
      logits: (B, M) float.
      labels: (B,) int in [0, M). A label outside gives the smoothing term alone.
      epsilon: mass ε that is spread over all M classes; 0 is plain cross-entropy.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "expected logits (B, M) and labels (B,), found "
            f"{logits.shape} and {labels.shape}"
        )
    num_classes = logits.shape[1]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    q = (1 - epsilon) * jax.nn.one_hot(labels, num_classes) + epsilon / num_classes
    return -(q * log_p).sum(axis=1)
