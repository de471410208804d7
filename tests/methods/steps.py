"""One step of a phase as the loop takes it; for the tests of every method."""

import jax
import jax.numpy as jnp

from crossres_jax.training.state import merge, split


def _phase(method, name):
    (phase,) = [phase for phase in method.phases if phase.name == name]
    return phase


def loss_alone(method, phase):
    """A phase's jitted (variables, batch) → output; compiles sooner than a gradient.

    Args:
      method: Method.
      phase: the phase's name.
    """
    loss = _phase(method, phase).loss

    @jax.jit
    def run(variables, batch):
        arguments = variables["params"], variables["batch_stats"], batch
        return loss(*arguments, jax.random.key(1))

    return run


def loss_and_gradient(method, phase):
    """A phase's jitted (variables, batch) → (output, gradient by component).

    Args:
      method: Method.
      phase: the phase's name.
    """
    phase = _phase(method, phase)

    @jax.jit
    def run(variables, batch):
        trained, frozen = split(variables["params"], phase.trains)

        def loss(trained):
            params, rng = merge(trained, frozen), jax.random.key(1)
            output = phase.loss(params, variables["batch_stats"], batch, rng)
            return output.loss, output

        gradient, output = jax.grad(loss, has_aux=True)(trained)
        before, after = variables["batch_stats"], output.batch_stats
        assert jax.tree.structure(before) == jax.tree.structure(after)  # for the loop
        return output, gradient

    return run


def norms(gradient):
    """component → the sum of the absolute values of its gradient."""
    return {
        name: float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))
        for name, tree in gradient.items()
    }
