"""Heads: from a backbone's output to what the losses and the test compare."""

from typing import NamedTuple

import flax.linen as nn
import jax

from crossres_jax.modules.residual import batch_norm


class HeadOutputs(NamedTuple):
    """What a head returns.

    Attributes:
      features: (B, D) before a normalisation; for triplet and centre losses.
      bn_features: (B, D) after it, the same without one; compared at test time.
      logits: (B, num_classes) of `bn_features`; for the identity loss.
    """

    features: jax.Array
    bn_features: jax.Array
    logits: jax.Array


class BNNeck(nn.Module):
    """Batch normalisation between the feature and its classifier.

    Luo et al., arXiv:1903.07071, sec. 3.5. Neither the normalisation nor the classifier
    has a bias: the paper removes the classifier's, and the authors hold that of the
    normalisation at zero, so here the parameter does not exist.

    Attributes:
      num_classes: number of identities.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> HeadOutputs:
        """(B, D) float32 → HeadOutputs."""
        bn_features = batch_norm(train=train)(use_bias=False, name="bn")(features)
        logits = nn.Dense(
            self.num_classes,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.001),
            name="classifier",
        )(bn_features)
        return HeadOutputs(features, bn_features, logits)
