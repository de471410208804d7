"""The training loop: phases in their order, from wherever the last run stopped.

The loop sees a method's contract, iterators of NumPy batches and a folder for
checkpoints. It knows no paper, no data set and no TensorFlow.
"""

import bisect
import itertools
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from crossres_jax.methods.contract import Method, Phase, Variables
from crossres_jax.training.checkpoint import Checkpoints
from crossres_jax.training.optimizer import make_optimizer
from crossres_jax.training.sharding import prefetch, replicated
from crossres_jax.training.state import TrainState
from crossres_jax.training.step import init_state, make_train_step
from crossres_jax.training.writer import MetricsWriter, Progress

_log = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""

    def __init__(self, message: str, rollbacks: int):
        super().__init__(message)
        self.rollbacks = rollbacks  # there had been so many


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop; starting it again goes on from where it was."""


@dataclass(frozen=True)
class Settings:
    """How a run is watched and saved.

    Attributes:
      log_every_steps: distance of the lines in `metrics.jsonl`.
      checkpoint_every_steps: distance of the checkpoints; a phase's end is one too.
      max_skipped_in_a_row: so many non-finite steps in a row are skipped; one more
        sends the run back to its last checkpoint.
      max_rollbacks: how often that may happen in a run; the next time, the run ends.
    """

    log_every_steps: int
    checkpoint_every_steps: int
    max_skipped_in_a_row: int
    max_rollbacks: int


def train(
    method: Method,
    *,
    batches: Callable[[int, int, int, int], Iterator[Mapping]],
    steps_per_epoch: int,
    example: Mapping,
    names: Callable[[Sequence[int]], Sequence[str]],
    seed: int,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    settings: Settings,
    start: Callable[[Variables], Variables] = lambda variables: variables,
    stop: Callable[[], bool] = lambda: False,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
):
    """Trains all phases of a method and returns its variables.

    Starts from the latest checkpoint and ends as a run that was never interrupted. A
    rollback is such a start too, but with other batches and dropout.

    Args:
      method: what to train.
      batches: `(phase_index, start_step, num_steps, rollbacks) → iterator of batches`;
        a batch is a dict of NumPy arrays (B, ...) and a function of the seed, the
        phase, the step and the number of rollbacks alone.
      steps_per_epoch: number of batches that make an epoch.
      example: any batch, for its shapes.
      names: image names of the values of a batch's `index`, for error messages.
      seed: of the initial weights and of dropout.
      mesh: the devices.
      checkpoints: where to resume from and to save to.
      writer: receives the logged scalars.
      settings: see `Settings`.
      start: initial variables → those that the run starts from. Called only where
        there is no checkpoint.
      stop: asked after every step; on True the run saves its state and ends.
      validate: `variables → {"mAP": …, …}`, scores on validation identities, logged at
        every checkpoint of the last phase. The checkpoint with the highest mAP counts.

    Returns:
      `(variables, step)`: `{"params", "batch_stats"}` on the devices and the number of
      steps, over all phases, that made them: all, or with `validate` the best ones.

    Raises:
      NonFiniteLossError: after more than `max_skipped_in_a_row` skipped steps, if there
        were `max_rollbacks` rollbacks before.
      Stopped: if `stop` said so.
      ValueError: if the checkpoint belongs to another network.
      OSError: if a checkpoint cannot be written.
    """
    # The initial weights' generator compiles in half the time (and gives other numbers
    # on a GPU than on a CPU); dropout needs the default one, whose numbers do not
    # depend on how the batch is sharded.
    rng_init, rng_train = jax.random.key(seed, impl="rbg"), jax.random.key(seed)
    init = _jitted_init(method, example)
    lengths = [phase.epochs * steps_per_epoch for phase in method.phases]
    bounds = list(itertools.accumulate(lengths, initial=0))  # of the phases, in steps

    def load(step, phase, optimizer):
        like = jax.eval_shape(
            lambda variables: init_state(**variables, phase=phase, optimizer=optimizer),
            jax.eval_shape(init, rng_init),
        )
        return checkpoints.load(step, _placed(like, mesh))

    def train_from_latest(rollbacks):
        done = checkpoints.latest_step() or 0  # steps, over all phases
        current = bisect.bisect_left(bounds[1:], done)  # the phase that saved it
        state = variables = None
        for index, phase in enumerate(method.phases):
            if index < current:
                continue
            begin, end = bounds[index : index + 2]
            optimizer = make_optimizer(phase.optimizer, steps_per_epoch)

            # --- Where the phase starts.
            if done > begin:
                state = load(done, phase, optimizer)
                rollbacks = max(rollbacks, int(state.rollbacks))
                state = state.replace(rollbacks=jnp.int32(rollbacks))
            else:
                variables = _copied(variables or start(init(rng_init)), phase)
                state = init_state(
                    **variables, phase=phase, optimizer=optimizer, rollbacks=rollbacks
                )
            state = jax.device_put(state, replicated(mesh))

            # --- Its steps.
            again = phase.name + " again" * rollbacks
            first = max(done, begin)
            state = _run_phase(
                phase,
                state,
                make_train_step(phase, optimizer, mesh),
                rng=jax.random.fold_in(rng_train, zlib.crc32(again.encode())),
                batches=prefetch(
                    batches(index, first - begin, end - first, rollbacks), mesh
                ),
                num_steps=end - begin,
                offset=begin,
                steps_per_epoch=steps_per_epoch,
                names=names,
                checkpoints=checkpoints,
                writer=writer,
                settings=settings,
                stop=stop,
                validate=validate if phase is method.phases[-1] else None,
            )
            variables = _variables(state)

        # --- What counts.
        best = checkpoints.best_step() if validate else None
        if best not in (None, bounds[-1]):
            variables = _variables(load(best, phase, optimizer))
        return variables or start(init(rng_init)), best or bounds[-1]

    rollbacks = 0
    while True:
        try:
            return train_from_latest(rollbacks)
        except NonFiniteLossError as error:
            if error.rollbacks >= settings.max_rollbacks:
                raise
            rollbacks = error.rollbacks + 1
            _log.warning(
                "%s Going back to step %d, and on with other batches (rollback %d of "
                "%d).",
                *(error, checkpoints.latest_step() or 0),
                *(rollbacks, settings.max_rollbacks),
            )


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
    stop,
    validate,
) -> TrainState:
    """Steps from the state's own to `num_steps`; `offset` are the earlier phases'."""
    start = int(state.step)
    progress = pending = None
    began = time.monotonic()

    def where(step):
        return {
            "phase": phase.name,
            "step": step,
            "epoch": (step - 1) // steps_per_epoch,
        }

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
                + ".",
                rollbacks=int(state.rollbacks),
            )
        progress.update(step, f"loss {scalars['loss']:.3f}")
        if step % settings.log_every_steps == 0 or step == num_steps:
            seconds = round(time.monotonic() - began, 2)
            writer.write({**where(step), **scalars, "seconds": seconds})
        return scalars

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
        last, stopping = step == num_steps, stop()
        due = last or step % settings.checkpoint_every_steps == 0
        if due or stopping:
            skipped = settle(*pending)["skipped_in_a_row"]
            pending = None
            # While steps are skipped the state may be on its way out: nothing to go
            # back to.
            if last or not skipped:
                score = None
                if validate and due:
                    scores = validate(_variables(state))
                    writer.write({**where(step), "validation": scores})
                    score = scores["mAP"]
                checkpoints.save(offset + step, state, score)
        if stopping:
            checkpoints.wait()
            raise Stopped(f"in phase {phase.name}, step {step} of {num_steps}")
    return state


def _variables(state: TrainState):
    return {"params": state.params, "batch_stats": state.batch_stats}


def _copied(variables, phase: Phase):
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
