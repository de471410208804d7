"""The training loop: phases in their order, from wherever the last run stopped.

The loop sees a method's contract, iterators of NumPy batches and a folder for
checkpoints. It knows no paper, no data set and no TensorFlow.
"""

import bisect
import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from crossres_jax.methods.contract import Method, Phase
from crossres_jax.training.checkpoint import Checkpoints
from crossres_jax.training.optimizer import make_optimizer
from crossres_jax.training.sharding import prefetch, replicated
from crossres_jax.training.state import TrainState
from crossres_jax.training.step import init_state, make_train_step
from crossres_jax.training.writer import MetricsWriter, Progress


class NonFiniteLossError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


@dataclass(frozen=True)
class Settings:
    """How a run is watched and saved.

    Attributes:
      log_every_steps: distance of the lines in `metrics.jsonl`.
      checkpoint_every_steps: distance of the checkpoints; a phase's end is one too.
      max_skipped_in_a_row: so many non-finite steps in a row are skipped; one more
        stops the run.
    """

    log_every_steps: int
    checkpoint_every_steps: int
    max_skipped_in_a_row: int


def train(
    method: Method,
    *,
    batches: Callable[[int, int, int], Iterator[Mapping]],
    steps_per_epoch: int,
    example: Mapping,
    names: Callable[[Sequence[int]], Sequence[str]],
    seed: int,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    settings: Settings,
):
    """Trains all phases of a method and returns its variables.

    Args:
      method: what to train.
      batches: `(phase_index, start_step, num_steps) → iterator of batches`; a batch is
        a dict of NumPy arrays (B, ...) and a function of seed and step alone.
      steps_per_epoch: number of batches that make an epoch.
      example: any batch, for its shapes.
      names: image names of the values of a batch's `index`, for error messages.
      seed: of the initial weights and of dropout.
      mesh: the devices.
      checkpoints: where to resume from and to save to.
      writer: receives the logged scalars.
      settings: see `Settings`.

    Returns:
      `{"params", "batch_stats"}` after the last phase, on the devices.

    Raises:
      NonFiniteLossError: after more than `max_skipped_in_a_row` skipped steps.
      ValueError: if the checkpoint belongs to another network.
    """
    # The initial weights' generator compiles in half the time (and gives other numbers
    # on a GPU than on a CPU); dropout needs the default one, whose numbers do not
    # depend on how the batch is sharded.
    rng_init, rng_train = jax.random.key(seed, impl="rbg"), jax.random.key(seed)
    init = _jitted_init(method, example)
    ends = list(
        itertools.accumulate(phase.epochs * steps_per_epoch for phase in method.phases)
    )
    done = checkpoints.latest_step() or 0  # steps, over all phases
    current = bisect.bisect_left(ends, done)  # the phase that made the checkpoint

    state = variables = None
    for index, phase in enumerate(method.phases):
        if index < current:
            continue
        begin = ends[index] - phase.epochs * steps_per_epoch
        optimizer = make_optimizer(phase.optimizer, steps_per_epoch)

        # --- Where the phase starts.
        if done > begin:
            like = jax.eval_shape(
                lambda v, p=phase, o=optimizer: init_state(**v, phase=p, optimizer=o),
                jax.eval_shape(init, rng_init),
            )
            state = checkpoints.load(done, _placed(like, mesh))
        else:
            variables = _start(variables or init(rng_init), phase)
            state = init_state(**variables, phase=phase, optimizer=optimizer)
            state = jax.device_put(state, replicated(mesh))

        # --- Its steps.
        state = _run_phase(
            phase,
            state,
            make_train_step(phase, optimizer, mesh),
            rng=jax.random.fold_in(rng_train, zlib.crc32(phase.name.encode())),
            batches=prefetch(
                batches(index, max(done - begin, 0), ends[index] - max(done, begin)),
                mesh,
            ),
            num_steps=ends[index] - begin,
            offset=begin,
            steps_per_epoch=steps_per_epoch,
            names=names,
            checkpoints=checkpoints,
            writer=writer,
            settings=settings,
        )
        variables = {"params": state.params, "batch_stats": state.batch_stats}
    return variables or init(rng_init)


def _run_phase(
    phase: Phase,
    state: TrainState,
    train_step,
    *,
    rng,
    batches,
    num_steps,
    offset,
    steps_per_epoch,
    names,
    checkpoints,
    writer,
    settings,
) -> TrainState:
    """Steps from the state's own to `num_steps`; `offset` are the earlier phases'."""
    start = int(state.step)
    progress = pending = None
    began = time.monotonic()

    def settle(step, images, scalars):
        """Looks at the scalars of a step: while the device works on the next one."""
        scalars = {name: value.item() for name, value in scalars.items()}
        if scalars["skipped_in_a_row"] > settings.max_skipped_in_a_row:
            raise NonFiniteLossError(
                f"phase {phase.name}, step {step}: {scalars['skipped_in_a_row']} steps "
                "in a row had a loss or gradient that is not finite, more than the "
                f"allowed {settings.max_skipped_in_a_row}. Lower the learning rate, or "
                "look at the images of this batch: "
                + ", ".join(names(jax.device_get(images)))
            )
        progress.update(step, f"loss {scalars['loss']:.3f}")
        if step % settings.log_every_steps == 0 or step == num_steps:
            epoch = (step - 1) // steps_per_epoch
            seconds = round(time.monotonic() - began, 2)
            where = {"phase": phase.name, "step": step, "epoch": epoch}
            writer.write({**where, **scalars, "seconds": seconds})

    for step, batch in enumerate(batches, start=start + 1):
        progress = progress or Progress(
            f"phase {phase.name}",
            num_steps,
            unit="pairs",
            per_step=len(batch["index"]),
        )
        state, scalars = train_step(state, batch, rng)
        if pending:
            settle(*pending)
        pending = step, batch["index"], scalars
        if step % settings.checkpoint_every_steps == 0 or step == num_steps:
            settle(*pending)  # never save what a stop would throw away
            pending = None
            checkpoints.save(offset + step, state)
    return state


def _start(variables, phase: Phase):
    """Variables with the components replaced that start as copies of others."""
    return {
        kind: components
        | {
            to: jax.tree.map(jnp.copy, components[source])
            for to, source in phase.starts_from.items()
            if source in components
        }
        for kind, components in variables.items()
    }


def _jitted_init(method, example):
    def init(rng):
        # Shapes are all that counts; one image suffices.
        batch = {
            name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in example.items()
        }
        return method.init(rng, batch)

    return jax.jit(init)


def _placed(shapes, mesh):
    """Shapes → the same shapes, to be loaded onto every device."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        shapes,
    )
