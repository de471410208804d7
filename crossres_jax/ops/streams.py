"""Several versions of the same samples as one batch."""

import jax
import jax.numpy as jnp


def together(*streams: jax.Array) -> jax.Array:
    """S streams of (B, ...) as one batch (S·B, ...), those of a sample side by side.

    So a batch that is cut over several devices stays on them.
    """
    return jnp.stack(streams, axis=1).reshape(-1, *streams[0].shape[1:])


def apart(x: jax.Array, num_streams: int) -> list[jax.Array]:
    """The inverse of `together`."""
    x = x.reshape(-1, num_streams, *x.shape[1:])
    return [x[:, stream] for stream in range(num_streams)]
