"""From a phase's `contract.Optimizer` to Optax."""

import jax
import optax

from crossres_jax.methods.contract import Optimizer
from crossres_jax.training.state import matches


def learning_rate_schedule(
    spec: Optimizer, base_rate: float, steps_per_epoch: int
) -> optax.Schedule:
    """Step → learning rate of a component with the given base rate.

    The rate is multiplied by `decay_factor` after every `decay_epochs` epochs; during
    the first `warmup_epochs` it is at most `warmup_learning_rate`.

    Args:
      spec: decay and warm-up, in epochs.
      base_rate: the rate without decay and warm-up.
      steps_per_epoch: number of batches that make an epoch.

    Returns:
      A function of the step, () int counted from 0, that gives () float32.
    """

    def schedule(step):
        epoch = step // steps_per_epoch
        rate = base_rate * spec.decay_factor ** (epoch // spec.decay_epochs)
        warm = jax.numpy.minimum(rate, spec.warmup_learning_rate)
        return jax.numpy.where(epoch < spec.warmup_epochs, warm, rate)

    return schedule


def make_optimizer(
    spec: Optimizer, steps_per_epoch: int
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay, one schedule per component.

    As PyTorch's SGD: the decay is added to the gradient before the momentum, of every
    parameter, and the learning rate multiplies the momentum.

    Args:
      spec: rates, momentum, weight decay, and the schedule in epochs.
      steps_per_epoch: number of batches that make an epoch.

    Returns:
      The transformation of the trained part of the parameters.

    Raises:
      ValueError: on `init`, if a trained parameter has no learning rate.
    """

    def pattern_of(path, _):
        path = "/".join(key.key for key in path)
        for pattern in spec.learning_rates:
            if matches(pattern, path):
                return pattern
        raise ValueError(
            f"no learning rate for the parameter {path}; the optimiser names "
            f"{', '.join(spec.learning_rates)}."
        )

    rates = {
        pattern: optax.scale_by_learning_rate(
            learning_rate_schedule(spec, rate, steps_per_epoch)
        )
        for pattern, rate in spec.learning_rates.items()
    }
    return optax.chain(
        optax.add_decayed_weights(spec.weight_decay),
        optax.trace(spec.momentum, nesterov=spec.nesterov),
        optax.partition(
            rates, lambda params: jax.tree_util.tree_map_with_path(pattern_of, params)
        ),
    )
