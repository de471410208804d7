"""Trains and evaluates one config: flags → config → data → run.

python launch.py --config=configs/ps_hrnet.py [--workdir=DIR] [--config.a.b=value]
"""

import dataclasses
import errno
import functools
import json
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from absl import app, flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from configs import common
from crossres_jax import methods
from crossres_jax.export import read_export, write_export
from crossres_jax.methods.contract import Ensemble, Method
from crossres_jax.report import write_report
from crossres_jax.training.checkpoint import Checkpoints
from crossres_jax.training.evaluate import (
    Embedded,
    Evaluation,
    compare,
    embed_images,
    mean_and_std,
)
from crossres_jax.training.loop import NonFiniteLossError, Settings, Stopped, train
from crossres_jax.training.sharding import check_divisible, make_mesh
from crossres_jax.training.start import import_backbone, read_weights
from crossres_jax.training.workdir import begin, locked, resolve
from crossres_jax.training.writer import MetricsWriter, Progress, write_json
from input_pipeline import pipeline
from input_pipeline.protocols import Protocol
from input_pipeline.restored import check_restorable, check_restored, write_restored

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/METHOD.py[:PROTOCOL[,OPTION…]]", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where the run is written; runs/METHOD[-PROTOCOL…] if not given."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "'evaluate' never trains."
)
SPLITS = flags.DEFINE_integer(
    "num_splits",
    0,
    "Runs the splits 0 … N−1, each in a folder of its own in the workdir.",
    lower_bound=0,
)
SOURCE = Path(__file__).parent
AT_LEAST = {
    "seed": 0,
    "data.seed": 0,
    "data.split": 0,
    "data.val_ids": 0,
    "data.num_ids": 1,
    "data.num_instances": 1,
    "data.pad": 0,
    "data.max_quarantined": 0,
    "data.num_draws": 0,
    "data.eval_batch_size": 1,
    "train.log_every_steps": 1,
    "train.checkpoint_every_steps": 1,
    "train.keep_checkpoints": 1,
    "train.max_skipped_in_a_row": 0,
    "train.max_rollbacks": 0,
}


class Start(NamedTuple):
    """What a model's run begins with."""

    example: dict  # any batch
    variables: Callable  # initial variables → those to start from
    weights: str | None  # SHA-256 of the file that they are from


class Tested(NamedTuple):
    """A model's results, and the features that an ensemble compares."""

    results: dict
    query: Embedded
    gallery: Embedded


def run(config: ConfigDict, workdir: Path, mode: str, stop: Callable[[], bool]) -> dict:
    """Trains what is left to train, evaluates, and returns `results.json`."""
    check_fields(config, workdir)
    check_values(config)
    if "restorer" in config:
        return run_restored(config, workdir, mode, stop)
    mesh = make_mesh()
    if mode == "train":
        check_batch(config, mesh)
    per_device = -(-config.data.eval_batch_size // mesh.size)
    config.data.eval_batch_size = per_device * mesh.size

    data = pipeline.open_data(config.data)
    method = build_method(config, data)
    if isinstance(method, Ensemble):
        return run_members(config, data, method, workdir, mode, stop)
    start = prepare(config, data, method, workdir)
    return run_method(config, data, method, start, workdir, mode, stop).results


def build_method(config: ConfigDict, data: pipeline.Data) -> Method | Ensemble:
    """The config's method for the identities of the data."""
    options = config.method.to_dict()
    name = options.pop("name")
    try:
        return methods.load(name)(data.plan.num_classes, **options)
    except TypeError as error:
        raise ValueError(f"config.method does not fit {name}: {error}.") from error


def run_restored(
    config: ConfigDict, workdir: Path, mode: str, stop: Callable[[], bool]
) -> dict:
    """Trains `config.restorer`, restores the data set once, and runs the rest on that.

    The workdir gets `restorer`, a run; `restored`, a folder of pictures; and a run
    named after the method.
    """
    restorer, folder = workdir / "restorer", workdir / "restored"
    reid = workdir / config.method.name
    if mode == "evaluate" and not folder.exists():
        raise ValueError(
            f"--mode=evaluate needs a finished run, found no restored images in "
            f"{workdir}. Train it first, without --mode."
        )
    stored = json.loads(config.to_json())
    rest = {key: value for key, value in stored.items() if key != "restorer"}
    first = {
        **rest,
        "method": stored["restorer"]["method"],
        "data": {**rest["data"], **stored["restorer"]["data"]},
        "init": common.get_config().init.to_dict(),  # it has no backbone
    }
    first = ConfigDict(resolve(first, restorer, "train"))
    if (rest["data"]["tuples"], first.data.tuples) != ("image", "synthetic"):
        raise ValueError(
            "a restorer learns from synthetic tuples and what comes behind it from "
            f"image tuples, found config.restorer.data.tuples={first.data.tuples} and "
            f"config.data.tuples={rest['data']['tuples']}."
        )
    for part, of_part in ((ConfigDict(rest), reid), (first, restorer)):
        data = pipeline.open_data(part.data)
        check_batch(part, make_mesh())
        prepare(part, data, build_method(part, data), of_part)
    check_restorable(data)
    with locked(workdir):
        begin(workdir, stored, data.manifest, SOURCE)
        if not folder.exists():
            run(first, restorer, mode, stop)
            model = read_export(restorer / "export")
            variables = jax.device_put(model.variables)
            restore = functools.partial(jax.jit(model.method.restore), variables)
            write_restored(data, restore, folder, progress=restoring(data, stop))
            jax.clear_caches()  # the method compiles programs of its own
        digest = check_restored(folder)
        rest["data"] |= restored_data(folder, data.plan.protocol)
        results = run(ConfigDict(rest), reid, mode, stop)
        results |= {**identify(config, data), "restored_sha256": digest}
        write_json(workdir / "results.json", results)
    return results


def restored_data(folder: Path, protocol: Protocol) -> dict:
    """The fields of `config.data` in which a run on restored images differs."""
    plain = common.get_config().data
    dealt = ("lr_cameras", "rate", "scales", "kernel", "rounding", "blur")
    return {
        **{name: plain[name] for name in (*dealt, "jpeg_quality", "seed", "split")},
        **{name: plain[name] for name in ("table", "pattern")},
        "protocol": "paired_folder",
        "dir": str(folder),
        "evaluation": protocol.evaluation,
        "num_draws": protocol.num_draws,
    }


def restoring(data: pipeline.Data, stop: Callable[[], bool]) -> Callable[[int], None]:
    """Shows how many images are restored; raises `Stopped` when `stop` says so."""
    plan = data.plan
    sides = plan.train, plan.query, plan.gallery
    progress = Progress("restored", sum(len(side.pid) for side in sides))

    def update(done):
        if stop():
            raise Stopped("before all images were restored")
        progress.update(done)

    return update


def run_members(
    config: ConfigDict,
    data: pipeline.Data,
    ensemble: Ensemble,
    workdir: Path,
    mode: str,
    stop: Callable[[], bool],
) -> dict:
    """Runs each member in a folder of its own, and compares them together."""
    stored = json.loads(config.to_json())
    members = {}
    for name, options in ensemble.members.items():
        of_member = {**stored, "method": {**stored["method"], **options}}
        member = ConfigDict(resolve(of_member, workdir / name, mode))
        method = build_method(member, data)
        members[name] = member, method, prepare(member, data, method, workdir / name)
    missing = [name for name in members if not has_trained(workdir / name)]
    if mode == "evaluate" and 0 < len(missing) < len(members):
        raise ValueError(
            f"--mode=evaluate needs all members in {workdir}, found "
            f"{', '.join(missing)} not trained. Train them first, without --mode."
        )
    with locked(workdir):
        begin(workdir, stored, data.manifest, SOURCE, members[name][-1].weights)
        tested = {}
        for name, (member, method, start) in members.items():
            tested[name] = run_method(
                member, data, method, start, workdir / name, mode, stop
            )
            jax.clear_caches()  # the next member compiles programs of its own
        query, gallery = (
            joined({name: getattr(each, side) for name, each in tested.items()})
            for side in ("query", "gallery")
        )
        evaluation = compare_sides(ensemble, query, gallery, data, config)
        results = {
            **identify(config, data),
            "members": {
                name: {key: each.results[key] for key in ("step", "rank1", "mAP")}
                for name, each in tested.items()
            },
            **evaluation.results,
        }
        write_json(workdir / "results.json", results)
        write_report(
            workdir / "report",
            results,
            evaluation,
            restore=None,
            load=functools.partial(pipeline.load_images, data),
        )
    summarize(results, data.quarantined, workdir)
    return results


def joined(sides: dict[str, Embedded]) -> Embedded:
    """One side of the test set with the features of all members."""
    first = next(iter(sides.values()))
    features = {name: side.features for name, side in sides.items()}
    return first._replace(features=features, quality={})


def identify(config: ConfigDict, data: pipeline.Data) -> dict:
    """What `results.json` says a score belongs to."""
    return {
        "method": config.method.name,
        "dataset": data.plan.protocol.dataset,
        "protocol": data.plan.protocol.name,
        "manifest_sha256": data.manifest["sha256"],
    }


def compare_sides(
    method: Method | Ensemble,
    query: Embedded,
    gallery: Embedded,
    data: pipeline.Data,
    config: ConfigDict,
) -> Evaluation:
    """Scores by the rules of the protocol."""
    protocol = data.plan.protocol
    return compare(
        method,
        query,
        gallery,
        evaluation=protocol.evaluation,
        num_draws=protocol.num_draws,
        **config.evaluation,
    )


def run_method(
    config: ConfigDict,
    data: pipeline.Data,
    method: Method,
    start: Start,
    workdir: Path,
    mode: str,
    stop: Callable[[], bool],
) -> Tested:
    """Trains what is left to train of one model, and tests it."""
    mesh = make_mesh()
    batches = functools.partial(phase_batches, config, data, method)

    def embed(method, variables, sides, watch):
        for side, role in zip(sides, ("query", "gallery"), strict=True):
            copy_rate = method.gallery_rate if role == "gallery" else 0
            of_side = watch(pipeline.eval_batches(data, side, copy_rate), side)
            yield embed_images(method, variables, of_side, mesh, role=role)

    def watch(batches, side):
        return watched(batches, side, len(getattr(data.plan, side).pid), stop)

    def validate(variables):
        plain = dataclasses.replace(method, restore=None)  # its pictures do not count
        sides = "val_query", "val_gallery"
        embedded = embed(plain, variables, sides, lambda batches, _: batches)
        results = compare_sides(plain, *embedded, data, config).results
        return {name: results[name] for name in ("rank1", "mAP")}

    settings = config.train.to_dict()
    keep = settings.pop("keep_checkpoints")
    with (
        locked(workdir),
        Checkpoints(workdir / "checkpoints", keep=keep) as checkpoints,
    ):
        stored = json.loads(config.to_json())
        weights = begin(workdir, stored, data.manifest, SOURCE, start.weights)
        announce(config, data, mesh, workdir)
        phases = method.phases
        total = sum(phase.epochs for phase in phases) * data.steps_per_epoch
        if mode == "evaluate" and config.init.backbone and not has_trained(workdir):
            phases = ()  # the imported weights as they are
        elif mode == "evaluate" and (done := checkpoints.latest_step() or 0) != total:
            raise ValueError(
                f"--mode=evaluate needs a finished run of {total} steps in {workdir}, "
                f"found {done} steps. Train it first, without --mode."
            )
        variables, step = train(
            dataclasses.replace(method, phases=phases),
            batches=batches,
            steps_per_epoch=data.steps_per_epoch,
            example=start.example,
            names=lambda index: data.plan.train.name[index],
            seed=config.seed,
            mesh=mesh,
            checkpoints=checkpoints,
            writer=MetricsWriter(workdir / "metrics.jsonl"),
            settings=Settings(**settings),
            start=start.variables,
            stop=stop,
            validate=validate if config.data.val_ids else None,
        )
        query, gallery = embed(method, variables, ("query", "gallery"), watch)
        evaluation = compare_sides(method, query, gallery, data, config)
        results = {
            **identify(config, data),
            "phase": phases[-1].name if phases else "start",
            "step": step,
            **evaluation.results,
        }
        write_json(workdir / "results.json", results)
        write_export(
            workdir / "export",
            variables,
            config=stored,
            weights=weights,
            manifest=data.manifest,
            num_classes=data.plan.num_classes,
            results=results,
        )
        write_report(
            workdir / "report",
            results,
            evaluation,
            restore=method.restore
            and functools.partial(jax.jit(method.restore), variables),
            load=functools.partial(pipeline.load_images, data),
        )
    summarize(results, data.quarantined, workdir)
    return Tested(results, query, gallery)


def phase_batches(
    config: ConfigDict,
    data: pipeline.Data,
    method: Method,
    phase: int,
    start_step: int,
    num_steps: int,
    rollbacks: int,
) -> Iterator[dict]:
    """The batches of a phase, as `train` asks for them."""
    # By the phase's name: an ablation without phase h still sees l's batches.
    source = f"{config.seed} {method.phases[phase].name}" + " again" * rollbacks
    return pipeline.train_batches(
        data,
        seed=zlib.crc32(source.encode()),
        start_step=start_step,
        num_steps=num_steps,
        copy_rate=method.phases[phase].training_rate,
    )


def prepare(
    config: ConfigDict, data: pipeline.Data, method: Method, workdir: Path
) -> Start:
    """Says what does not fit before anything is kept."""
    if (config.data.tuples == "cross") != (method.tuples == "cross"):
        raise ValueError(
            f"{config.method.name} learns from {method.tuples} tuples, found "
            f"config.data.tuples={config.data.tuples}."
        )
    example = next(phase_batches(config, data, method, 0, 0, 1, 0))
    shapes = jax.eval_shape(method.init, jax.random.key(0), example)
    begun = (workdir / "config.json").exists()
    return Start(example, *read_start(config.init.backbone, method, shapes, begun))


def has_trained(workdir: Path) -> bool:
    """Whether training has begun in the folder, whatever has become of it."""
    checkpoints = (workdir / "checkpoints").glob("*")
    return (workdir / "metrics.jsonl").exists() or any(checkpoints)


def read_start(path: str, method, shapes, begun: bool):
    """(what turns initial variables into those to start from, the file's SHA-256)."""
    if not path:
        return lambda variables: variables, None
    if begun and not Path(path).exists():

        def refuse(variables):
            raise ValueError(
                f"config.init.backbone={path}: no such file, and no checkpoint to go "
                "on from."
            )

        return refuse, None
    weights, digest = read_weights(path)
    try:
        import_backbone(shapes, weights, method)
    except ValueError as error:
        raise ValueError(f"config.init.backbone={path}: {error}") from error
    return lambda variables: import_backbone(variables, weights, method), digest


def run_splits(wanted: dict, workdir: Path, mode: str, stop: Callable[[], bool]):
    """Runs the splits 0 … N − 1 in the folders `split-…`; means go to the workdir."""
    if not wanted:
        raise ValueError("--num_splits needs --config.")
    found = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    if others := [x for x in found if not re.match(r"split-\d+$|results\.json", x)]:
        raise ValueError(
            f"{workdir} should hold nothing but the folders of splits, found "
            f"{', '.join(sorted(others))}; choose another --workdir."
        )
    configs = {}
    for split in range(SPLITS.value):
        of_split = {**wanted, "data": {**wanted["data"], "split": split}}
        name = f"split-{split}"
        configs[name] = ConfigDict(resolve(of_split, workdir / name, mode))
    pipeline.open_data(configs[name].data)  # refused now, if there is no such split
    runs = []
    for name, config in configs.items():
        runs.append(run(config, workdir / name, mode, stop))
        jax.clear_caches()  # the next split compiles programs of its own
    same = {key: runs[0][key] for key in ("method", "dataset", "protocol")}
    manifests = [run["manifest_sha256"] for run in runs]
    results = {
        **same,
        "runs": list(configs),
        "manifests_sha256": manifests,
        **mean_and_std(runs),
    }
    write_json(workdir / "results.json", results)
    summarize_splits(results, workdir)


def main(argv):
    """Runs what the flags ask for; foreseen errors end in one message."""
    if len(argv) > 1:
        sys.exit(f"launch.py: unexpected {' '.join(argv[1:])}; did you mean --…?")
    debug = FLAGS.verbosity > 0
    if not debug:
        logging.set_verbosity(logging.WARNING)
        # Orbax's own log: whatever matters comes as an exception too.
        logging.get_absl_logger().setLevel("CRITICAL")
    jax.config.update("jax_compilation_cache_dir", compilation_cache())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    stop = catch_signals()
    try:
        if CONFIG.value is None and not WORKDIR.value:
            raise ValueError("give --config=configs/METHOD.py, or a run's --workdir.")
        workdir = Path(WORKDIR.value or default_workdir())
        wanted = CONFIG.value and json.loads(CONFIG.value.to_json())
        if SPLITS.value:
            run_splits(wanted, workdir, MODE.value, stop)
        else:
            config = ConfigDict(resolve(wanted, workdir, MODE.value))
            run(config, workdir, MODE.value, stop)
    except Stopped as error:
        print(f"launch.py: stopped {error}; the same command goes on.", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except (ValueError, OSError, NonFiniteLossError) as error:
        if debug:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        advice = f". Make room for {workdir}, and the same command goes on."
        sys.exit(f"launch.py: {error}{advice if full else ''}")


def catch_signals() -> Callable[[], bool]:
    """Whether SIGTERM or Ctrl-C has come; a second one ends the process at once."""
    received, both = [], (signal.SIGTERM, signal.SIGINT)

    def handle(number, _):
        received.append(number)
        for each in both:
            signal.signal(each, signal.SIG_DFL)

    for each in both:
        signal.signal(each, handle)
    return lambda: bool(received)


def watched(
    batches: Iterable[dict], title: str, num_images: int, stop: Callable[[], bool]
) -> Iterator[dict]:
    """The batches, with progress; raises `Stopped` when `stop` says so."""
    progress, done = Progress(title, num_images), 0
    for batch in batches:
        if stop():
            raise Stopped("before the evaluation was done")
        done += batch["valid"].sum()
        progress.update(done)
        yield batch


def check_batch(config, mesh):
    """Raises ValueError if a training batch cannot be cut over the devices."""
    batch_size = config.data.num_ids * config.data.num_instances
    check_divisible(batch_size, mesh, "data.num_ids × data.num_instances")


def check_fields(config, workdir):
    """Raises ValueError if a config lacks fields: that of a run of an older version."""
    expected = flatten_dict(common.get_config().to_dict(), sep=".")
    if missing := sorted({*expected} - {*flatten_dict(config.to_dict(), sep=".")}):
        raise ValueError(
            f"the config lacks {', '.join(missing)}. If {workdir} holds a run of an "
            "older version, go on with that one (its config.json names it), or choose "
            "another --workdir."
        )


def check_values(config):
    """Raises ValueError for numbers that would only fail, or mislead, much later."""
    for path, least in AT_LEAST.items():
        value = config
        for key in path.split("."):
            value = value[key]
        if value < least:
            raise ValueError(f"config.{path} must be at least {least}, found {value}.")
    for name in ("flip", "erase"):
        if not 0 <= config.data[name] <= 1:
            raise ValueError(
                f"config.data.{name} is a probability and must be from 0 to 1, found "
                f"{config.data[name]}."
            )
    if config.evaluation.ap not in ("step", "trapezoid"):
        raise ValueError(
            "config.evaluation.ap must be 'step' or 'trapezoid', found "
            f"{config.evaluation.ap!r}."
        )


def default_workdir() -> Path:
    """`configs/ps_hrnet.py:mlr_viper,narrow` → `runs/ps_hrnet-mlr_viper-narrow`."""
    path, _, arg = FLAGS["config"].config_filename.partition(":")
    return Path("runs", "-".join([Path(path).stem, *arg.replace(",", " ").split()]))


def compilation_cache() -> str:
    """Where compiled programs are kept, so that a second start is quick."""
    default = Path.home() / ".cache" / "crossres_jax" / "xla"
    return os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))


def announce(config, data, mesh, workdir):
    """Says what is about to run."""
    train, query, gallery = data.plan.train, data.plan.query, data.plan.gallery
    print(
        f"{config.method.name} on {data.plan.protocol.name} "
        f"(manifest {data.manifest['sha256'][:12]}): {len(train.pid)} training images "
        f"of {data.plan.num_classes} identities, {len(query.pid)} queries, "
        f"{len(gallery.pid)} gallery images; {mesh.size} {jax.default_backend()} "
        f"device(s); writing to {workdir}"
    )
    if data.num_repeating:
        print(
            f"{data.num_repeating} identities have fewer than K = "
            f"{config.data.num_instances} images; their batches repeat images."
        )
    if data.quarantined:
        print(f"{left_out(data.quarantined)} The run goes on without them.")


def left_out(names):
    """Which training images a run does without."""
    return f"{len(names)} training images could not be read: {', '.join(names)}."


def summarize(results, quarantined, workdir):
    """The scores, what was left out, and where the results lie."""
    how, spread = "whole gallery", ""
    if trials := results.get("trials"):
        how, spread = (
            f"{trials['count']} gallery draws",
            f" ± {trials['rank1_std']:.1f}",
        )
    print(
        f"Rank-1 {results['rank1']:.1f}{spread}  Rank-5 {results['rank5']:.1f}  "
        f"Rank-10 {results['rank10']:.1f}  mAP {results['mAP']:.1f}  (%, {how})"
    )
    scales = (f"×{s} {v['rank1']:.1f}" for s, v in results["by_scale"].items())
    print("Rank-1 by scale: " + "  ".join(scales))
    if quarantined:
        print(left_out(quarantined))
    if "sr" in results:
        sr = results["sr"]
        print(f"PSNR {sr['psnr']:.2f} dB, bicubic {sr['psnr_bicubic']:.2f} dB")
    written = f"{workdir / 'results.json'}, {workdir / 'report' / 'index.html'}"
    export = "" if "members" in results else f", model: {workdir / 'export'}"
    print(f"Results: {written}{export}")


def summarize_splits(results, workdir):
    """The means over the splits, and where they lie."""
    mean, std = results["mean"], results["std"]
    scores = {"Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mAP": "mAP"}
    cells = (f"{n} {mean[key]:.1f} ± {std[key]:.1f}" for n, key in scores.items())
    print("  ".join(cells) + f"  (%, {len(results['runs'])} splits)")
    print(f"Results: {workdir / 'results.json'}")


def parse_flags(argv):
    """absl's parser, but a mistyped option ends in one line instead of a traceback."""
    try:
        arguments = FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.lock()  # a config that could not be loaded raises only here
        return arguments
    except (flags.Error, OSError) as error:
        # An error in or on the way to the config file comes with its traceback.
        message = str(error).strip().splitlines()[-1].strip()
        message = message.removeprefix("ValueError: ")
        if "No such file" in message:
            known = (path.name for path in Path(__file__).parent.glob("configs/*.py"))
            message += f"; configs/ has {', '.join(sorted(known))}."
    except (AttributeError, KeyError, TypeError) as error:
        name, *hint = re.findall(r"\w+", str(error.args[0]).replace("\\n", " "))
        message = f"unknown config option {name}. {' '.join(hint)}".strip()
    sys.exit(f"launch.py: {message}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
