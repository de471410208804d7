"""The compiled phase-2 step of PS-HRNet at full size: what it costs.

    python -m benchmarks.full_size [--steps=1]

24 pairs of 256×128, VIPeR's 316 identities; float32 and bfloat16, with and without
recomputation of the blocks (`jax.checkpoint`). Prints parameters, what the forward
pass stores for the backward pass (JAX's own count, the same on every machine), compile
time, the memory and the FLOPs that XLA states for the compiled step, and the time of
`--steps` real steps in float32 without recomputation. Each variant compiles in its own
process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

BATCH, HEIGHT, WIDTH, NUM_CLASSES = 24, 256, 128, 316


def measure(dtype, remat, steps):
    """Compiles one variant and returns its figures."""
    import jax
    import numpy as np

    from crossres_jax import methods
    from crossres_jax.training.optimizer import make_optimizer
    from crossres_jax.training.sharding import make_mesh
    from crossres_jax.training.state import merge, split
    from crossres_jax.training.step import init_state, make_train_step

    rng = np.random.default_rng(0)
    images = rng.uniform(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
    batch = {
        "lr": images,
        "hr": images,
        "has_hr": np.ones(BATCH, bool),
        "label": np.repeat(np.arange(4), 6).astype(np.int32),
        "scale": np.full(BATCH, 2, np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
    }
    method = methods.load("ps_hrnet")(NUM_CLASSES, dtype=dtype, remat=remat)
    phase = method.phases[1]
    optimizer = make_optimizer(phase.optimizer, steps_per_epoch=79)

    def init(key):
        small = {name: value[:1] for name, value in batch.items()}
        return init_state(**method.init(key, small), phase=phase, optimizer=optimizer)

    key = jax.random.key(0, impl="rbg")
    state = jax.eval_shape(init, key)
    trained, frozen = split(state.params, phase.trains)

    def backward(trained, frozen, batch_stats, batch):
        def loss(trained):
            params = merge(trained, frozen)
            return phase.loss(params, batch_stats, batch, jax.random.key(1)).loss

        return jax.vjp(loss, trained)[1]  # a tree of what it needs

    stored = jax.eval_shape(backward, trained, frozen, state.batch_stats, batch)
    stored_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stored))

    step = make_train_step(phase, optimizer, make_mesh(jax.devices()[:1]))
    began = time.monotonic()
    compiled = step.lower(state, batch, jax.random.key(1)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    figures = {
        "dtype": dtype,
        "remat": remat,
        "parameters": {
            name: sum(x.size for x in jax.tree.leaves(part))
            for name, part in state.params.items()
        },
        "stored_GiB": round(stored_bytes / 2**30, 3),
        "compile_seconds": round(time.monotonic() - began, 1),
        "arguments_GiB": round(memory.argument_size_in_bytes / 2**30, 3),
        "temporaries_GiB": round(memory.temp_size_in_bytes / 2**30, 3),
        "GFLOP": round(cost["flops"] / 1e9, 1),
    }
    if steps:
        state = jax.jit(init)(key)
        seconds = []
        for _ in range(steps):
            began = time.monotonic()
            state, scalars = compiled(state, batch, jax.random.key(1))
            loss = float(scalars["loss"])
            seconds.append(round(time.monotonic() - began, 1))
        figures["step_seconds"], figures["loss"] = seconds, round(loss, 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures["peak_resident_GiB"] = round(peak / 2**20, 2)  # Linux: KiB
    return figures


def main():
    """Measures all variants, one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--variant", help="internal: dtype,remat,steps")
    arguments = parser.parse_args()
    if arguments.variant:
        dtype, remat, steps = arguments.variant.split(",")
        print(json.dumps(measure(dtype, remat == "True", int(steps))))
        return
    for dtype in ("float32", "bfloat16"):
        for remat in (False, True):
            steps = arguments.steps if dtype == "float32" and not remat else 0
            variant = f"--variant={dtype},{remat},{steps}"
            subprocess.run([sys.executable, __file__, variant], check=True)


if __name__ == "__main__":
    main()
