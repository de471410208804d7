"""A method that trains within milliseconds: the one of docs/sixth_method.md."""

from types import SimpleNamespace

import numpy as np
import pytest

from crossres_jax.training.checkpoint import Checkpoints
from crossres_jax.training.loop import Settings, train
from crossres_jax.training.sharding import make_mesh
from crossres_jax.training.writer import MetricsWriter

NUM_IDS, NUM_INSTANCES, STEPS_PER_EPOCH = 4, 2, 2


@pytest.fixture(scope="session")
def build(sixth_method):
    """`build` of the documented example."""
    method, _ = sixth_method
    namespace = {"__name__": "pixel_net"}
    exec(method, namespace)
    return namespace["build"]


def make_batch(seed, step):
    """Noise around one random picture per identity; a function of (seed, step)."""
    pictures = np.random.default_rng(99).uniform(size=(NUM_IDS, 16, 8, 3))
    rng = np.random.default_rng([seed, step])
    label = np.repeat(np.arange(NUM_IDS), NUM_INSTANCES)
    hr = pictures[label] + 0.1 * rng.normal(size=(len(label), 16, 8, 3))
    return {
        "lr": hr.astype(np.float32),
        "hr": hr.astype(np.float32),
        "has_hr": np.ones(len(label), bool),
        "label": label.astype(np.int32),
        "index": (step * len(label) + np.arange(len(label))).astype(np.int32),
    }


class StoppingWriter(MetricsWriter):
    """Stops the run where the `stop_at`-th line would be written."""

    def __init__(self, path, stop_at):
        super().__init__(path)
        self._left = stop_at

    def write(self, values):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
        super().write(values)


@pytest.fixture(scope="session")
def batch_of():
    """`make_batch`, for tests that change it."""
    return make_batch


@pytest.fixture(scope="session")
def train_in(build):
    """A function that trains in a folder and returns the variables."""

    def train_in(
        workdir,
        method=None,
        *,
        devices=None,
        batch=make_batch,
        stop_at=None,
        checkpoint_every_steps=2,
        max_skipped_in_a_row=2,
        max_rollbacks=0,
        stop=lambda: False,
        validate=None,
    ):
        workdir.mkdir(exist_ok=True)
        seen = []

        def batches(phase, start_step, num_steps, rollbacks):
            for step in range(start_step, start_step + num_steps):
                seen.append((phase, step))
                yield batch(phase + 100 * rollbacks, step)

        with Checkpoints(workdir / "checkpoints") as checkpoints:
            variables, step = train(
                method or build(NUM_IDS, width=4, epochs=3),
                batches=batches,
                steps_per_epoch=STEPS_PER_EPOCH,
                example=make_batch(0, 0),
                names=lambda index: [f"image{i}" for i in index],
                seed=0,
                mesh=make_mesh(devices),
                checkpoints=checkpoints,
                writer=StoppingWriter(workdir / "metrics.jsonl", stop_at),
                settings=Settings(
                    log_every_steps=1,
                    checkpoint_every_steps=checkpoint_every_steps,
                    max_skipped_in_a_row=max_skipped_in_a_row,
                    max_rollbacks=max_rollbacks,
                ),
                stop=stop,
                validate=validate,
            )
        return SimpleNamespace(
            variables=variables, step=step, seen=seen, workdir=workdir
        )

    return train_in


@pytest.fixture
def run(tmp_path, train_in):
    """`train_in`, in a folder of the test."""

    def run(method=None, *, folder="run", **options):
        return train_in(tmp_path / folder, method, **options)

    return run
