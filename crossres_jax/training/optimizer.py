"""From a phase's `contract.Optimizer` to Optax."""

import jax
import jax.numpy as jnp
import optax

from crossres_jax.methods.contract import Optimizer
from crossres_jax.training.state import matches


def learning_rate_schedule(
    spec: Optimizer, base_rate: float, steps_per_epoch: int
) -> optax.Schedule:
    """Step → learning rate of a component with the given base rate.

    The rate is multiplied by `decay_factor` at every milestone. During the first
    `warmup_epochs` it is at most `warmup_learning_rate`, or rises from there to what it
    would be, step by step.

    Args:
      spec: decay and warm-up, in epochs.
      base_rate: the rate without decay and warm-up.
      steps_per_epoch: number of batches that make an epoch.

    Returns:
      A function of the step, () int counted from 0, that gives () float32.
    """

    def schedule(step):
        epoch = step // steps_per_epoch
        passed = sum(epoch >= milestone for milestone in spec.milestones)
        rate = base_rate * spec.decay_factor ** jnp.asarray(passed)
        start = spec.warmup_learning_rate
        if spec.warmup == "linear":
            done = step / max(1, spec.warmup_epochs * steps_per_epoch)
            warm = start + done * (rate - start)
        else:
            warm = jnp.minimum(rate, start)
        return jnp.where(epoch < spec.warmup_epochs, warm, rate)

    return schedule


def make_optimizer(
    spec: Optimizer, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The algorithm with coupled weight decay, one schedule per component.

    As PyTorch's: the decay is added to the gradient of every parameter before the
    momentum or the moments, and the learning rate multiplies the result.

    Args:
      spec: algorithm, rates, weight decay, and the schedule in epochs.
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
    algorithm = {
        "sgd": optax.trace(spec.momentum, nesterov=spec.nesterov),
        "adam": optax.scale_by_adam(),
        "amsgrad": _scale_by_amsgrad(),
    }[spec.algorithm]
    return optax.chain(
        optax.add_decayed_weights(spec.weight_decay),
        algorithm,
        optax.partition(
            rates, lambda params: jax.tree_util.tree_map_with_path(pattern_of, params)
        ),
    )


def _scale_by_amsgrad() -> optax.GradientTransformation:
    """As PyTorch: the largest second moment, whose bias is corrected afterwards.

    With the bias corrected before, the first steps' gradients would count in full for
    the rest of the training.
    """
    return optax.chain(
        optax.scale_by_amsgrad(b2=0.999, bias_correction_nu=False),
        optax.scale_by_schedule(lambda step: jnp.sqrt(1 - 0.999 ** (step + 1))),
    )
