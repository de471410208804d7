"""One generic train step for every phase of every paper."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from crossres_jax.methods.contract import Phase
from crossres_jax.training.sharding import replicated, sharded
from crossres_jax.training.state import TrainState, merge, split


def init_state(
    params: Mapping,
    batch_stats: Mapping,
    phase: Phase,
    optimizer: optax.GradientTransformation,
    rollbacks: int = 0,
) -> TrainState:
    """The state at the beginning of a phase, after some rollbacks in earlier ones.

    Args:
      params: component → parameters, of all components.
      batch_stats: component → running statistics, of all components.
      phase: what is trained.
      optimizer: an Optax transformation of the trained part.
      rollbacks: how often the run has gone back to a checkpoint.

    Returns:
      The state at step 0.

    Raises:
      ValueError: if the phase trains none of the parameters.
    """
    trained, _ = split(params, phase.trains)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained),
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
        rollbacks=jnp.int32(rollbacks),
    )


def make_train_step(
    phase: Phase, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
    """The jitted step of a phase.

    Args:
      phase: what is trained, and its loss.
      optimizer: an Optax transformation of the trained part.
      mesh: the devices; the state is replicated, the batch cut along its first axis.

    Returns:
      `(state, batch, rng) → (state, scalars)`. The old state is donated. A step whose
      loss or gradient is not finite changes neither parameters, batch statistics nor
      optimiser state (the learning rate's step count included), and counts itself in
      `skipped` and `skipped_in_a_row`.
    """

    def train_step(state: TrainState, batch, rng):
        rng = jax.random.fold_in(rng, state.step)
        trained, frozen = split(state.params, phase.trains)

        def loss(trained):
            params = merge(trained, frozen)
            output = phase.loss(params, state.batch_stats, batch, rng)
            return output.loss, output

        gradients, output = jax.grad(loss, has_aux=True)(trained)
        gradient_norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        updated = optax.apply_updates(trained, updates)

        finite = jnp.isfinite(output.loss) & jnp.isfinite(gradient_norm)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = state.replace(
            step=state.step + 1,
            params=merge(keep(updated, trained), frozen),
            batch_stats=keep(output.batch_stats, state.batch_stats),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        scalars = {
            "loss": output.loss,
            **output.scalars,
            "gradient_norm": gradient_norm,
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, scalars

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), sharded(mesh), replicated(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
