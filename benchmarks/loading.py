"""How fast training pairs are loaded, beside PyTorch's `DataLoader` and a step.

    python -m benchmarks.loading --data_dir=DIR --into=docs/results.md:loading \
        --with_step

From the data set on disc to the ready NumPy batch: Market-1501 under `mlr_market1501`,
256×128 pixels, 16 identities × 4, flip, padding and crop the same for both images of a
pair. Where torch is installed, a plain `DataLoader` (`benchmarks/torch_loader.py`)
makes an LR copy of every image, as tuples "synthetic" are, from the same files,
extracted. Rounds of all loaders alternate, each after a warm-up. With `--with_step`
also the training step of OSNet x0.25, fed by the pipeline and by one batch that stays
in memory. Two minutes on two cores, four with the step.
"""

import argparse
import itertools
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.tables import Section, markdown
from configs import baseline

try:
    from benchmarks import torch_loader
except ImportError:
    torch_loader = None

ARCHIVE, FOLDER = "Market-1501-v15.09.15", "bounding_box_train"
ROUNDS, WARM_UP, BATCHES = 5, 5, 25
STEP_ROUNDS, STEP_WARM_UP, STEPS = 3, 2, 6
TUPLES = {
    "an LR copy of every image (`synthetic`)": "synthetic",
    "those of the LR camera (`image`)": "image",
    "HR, its LR copy and an LR image (`cross`)": "cross",
}
THEIRS = "PyTorch, an LR copy of every image, {} workers"


def extracted(data_dir, folder):
    """The training pictures, extracted into a folder where they are not."""
    if not (data_dir / ARCHIVE).exists():
        with zipfile.ZipFile(data_dir / f"{ARCHIVE}.zip") as archive:
            names = archive.namelist()
            archive.extractall(folder, [name for name in names if FOLDER in name])
        data_dir = folder
    return sorted((data_dir / ARCHIVE / FOLDER).glob("*.jpg"))


def pairs_per_second(batches):
    """The speed of an iterator of batches, once it runs."""
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began = time.perf_counter()
    num_pairs = sum(len(batch["hr"]) for batch in itertools.islice(batches, BATCHES))
    return num_pairs / (time.perf_counter() - began)


def step_seconds(config, data, load):
    """{feed: seconds a step of each round}; the rounds of both feeds alternate."""
    import jax

    from crossres_jax import methods
    from crossres_jax.training.optimizer import make_optimizer
    from crossres_jax.training.sharding import make_mesh, prefetch
    from crossres_jax.training.step import init_state, make_train_step

    options = config.method.to_dict()
    method = methods.load(options.pop("name"))(data.plan.num_classes, **options)
    phase, mesh, batch = method.phases[-1], make_mesh(), next(load(data))
    optimizer = make_optimizer(phase.optimizer, data.steps_per_epoch)
    variables = jax.jit(method.init)(jax.random.key(0, impl="rbg"), batch)
    state = init_state(**variables, phase=phase, optimizer=optimizer)
    step = make_train_step(phase, optimizer, mesh)
    feeds = {
        "one batch in memory": prefetch(itertools.repeat(batch), mesh),
        "the pipeline": prefetch(load(data), mesh),
    }
    seconds = {name: [] for name in feeds}
    for _ in range(STEP_ROUNDS):
        for name, batches in feeds.items():
            for number, batch in enumerate(
                itertools.islice(batches, STEP_WARM_UP + STEPS)
            ):
                if number == STEP_WARM_UP:
                    began = time.perf_counter()
                state, scalars = step(state, batch, jax.random.key(1))
                jax.block_until_ready(scalars)
            seconds[name].append((time.perf_counter() - began) / STEPS)
    return seconds


def table(head, rows, digits):
    """{name: values} → minimum, median and maximum of each."""
    lines = [[head, "min", "median", "max"]]
    for name, values in rows.items():
        figures = min(values), statistics.median(values), max(values)
        lines.append([name, *(f"{figure:.{digits}f}" for figure in figures)])
    return markdown(lines)


def main():
    """Prints the tables, and writes them where `--into` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache_dir", default="")
    parser.add_argument("--into", help="FILE:SECTION that receives the tables")
    parser.add_argument("--with_step", action="store_true")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    config = baseline.get_config("mlr_market1501,osnet_x0_25")
    config.data.dir = str(arguments.data_dir)
    config.data.cache_dir = arguments.cache_dir
    config.data.erase = 0.0

    with tempfile.TemporaryDirectory() as folder:
        loaders = {}
        if torch_loader:  # its processes are forked before TensorFlow has threads
            paths = extracted(arguments.data_dir, Path(folder))
            for num_workers in (2, 1, 0):
                loaders[THEIRS.format(num_workers)] = torch_loader.load(
                    paths,
                    size=config.data.image_size,
                    scales=(2, 3, 4),
                    num_ids=config.data.num_ids,
                    num_instances=config.data.num_instances,
                    num_workers=num_workers,
                )
        else:
            print("PyTorch is not installed: nothing to compare with.")

        from input_pipeline import pipeline
        from input_pipeline.datasets import records

        records.KEPT_BYTES = 0  # every image is decoded, as in PyTorch's

        def load(data):
            return pipeline.train_batches(data, seed=0, start_step=0, num_steps=10**6)

        data = {}
        for name, config.data.tuples in TUPLES.items():
            data[name] = pipeline.open_data(config.data.copy_and_resolve_references())
        loaders = {name: load(opened) for name, opened in data.items()} | loaders
        speeds = {name: [] for name in loaders}
        for _ in range(ROUNDS):
            for name, batches in loaders.items():
                speeds[name].append(pairs_per_second(batches))

    text = table("pairs/s", speeds, digits=0)
    ours = statistics.median(speeds[next(iter(TUPLES))])
    if torch_loader:
        theirs = statistics.median(speeds[THEIRS.format(2)])
        text += f"\n\nOurs over PyTorch's with two workers: {ours / theirs:.2f}."
    if arguments.with_step:
        del loaders, batches
        seconds = step_seconds(config, next(iter(data.values())), load)
        memory, fed = map(statistics.median, seconds.values())
        text += f"\n\n{table('seconds a step, fed by', seconds, digits=3)}"
        text += f"\n\nFed by the pipeline: {fed / memory - 1:+.1%}."
    print(text)
    if section:
        section.write(text)


if __name__ == "__main__":
    main()
