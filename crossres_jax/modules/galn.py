"""The group-aware learning network of DGRL, after GroupFace."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossres_jax.modules.residual import batch_norm

SLOPE = 0.25  # PyTorch's first slope of a PReLU


class GALN(nn.Module):
    """F = F_x + Σ_k p_k F_x^{G_k}: an instance, and groups by their probabilities.

    DGRL sec. III-C and Fig. 4; Kim et al., GroupFace, arXiv:2005.10497, sec. 3.2. The
    layers of the K groups are one dense layer. In float32.

    Attributes:
      features: size d of all representations, 512 in GroupFace; DGRL gives none.
      num_groups: K, 32 (DGRL sec. IV-C).
      hidden: of the network that predicts the groups, 256 as in GroupFace.
    """

    features: int = 512
    num_groups: int = 32
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, D) → (B, features) float32."""

        def layer(x, size, name):
            # The normalisation would undo a bias.
            x = nn.Dense(size, use_bias=False, name=name)(x)
            x = batch_norm(train=train)(name=f"{name}_bn")(x)
            return nn.PReLU(negative_slope_init=SLOPE, name=f"{name}_prelu")(x)

        x = x.astype(jnp.float32)
        instance = layer(x, self.features, "instance")  # F_x
        groups = layer(x, self.num_groups * self.features, "groups")  # F_x^{G_k}
        groups = groups.reshape(len(x), self.num_groups, self.features)
        logits = nn.Dense(self.num_groups, name="probabilities")(
            layer(instance, self.hidden, "hidden")
        )
        return instance + jnp.einsum("bk,bkd->bd", nn.softmax(logits), groups)
