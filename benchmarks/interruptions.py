"""Kills runs of the main command again and again, and compares how they end.

    python -m benchmarks.interruptions --out=runs/kills --into=docs/results.md:kills

Every run is killed (SIGKILL) once in each of five moments and started again by the same
command. Then it has to end in the parameters, batch statistics, optimiser state, losses
and results of a run that nothing disturbed, bit for bit. When exactly in its moment the
signal comes is drawn from `--seed`. Prints a table of the kills, and ends with an error
if a run differs. Arguments after `--` replace the flags of the run, which is a narrow
PS-HRNet on the smallest generated data set.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks.tables import Section, markdown

ROOT = Path(__file__).parent.parent
FLAGS = (
    f"--config={ROOT / 'configs' / 'ps_hrnet.py'}:mlr_pedestrians_tiny,narrow",
    "--config.data.image_size=(64, 32)",
    "--config.method.epochs_h=12",  # of two steps each
    "--config.method.epochs_l=12",
    "--config.train.checkpoint_every_steps=7",
)
MOMENTS = {  # in the order of a run → seconds that the signal waits at most
    "compile": 2.0,
    "step": 0.05,
    "save": 0.05,
    "phase change": 1.0,
    "evaluation": 0.2,
}


def start(flags, workdir, **popen):
    """Starts launch.py; its output goes to `<workdir>.log`."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / "launch.py", *flags, f"--workdir={workdir}"]
    command.append("--config.train.log_every_steps=1")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **popen.pop("env", {})}
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            **popen,
        )


def logged(workdir):
    """The steps in the whole lines of `metrics.jsonl`."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [step for step in map(json.loads, lines) if "validation" not in step]


def checkpoints(workdir):
    """The numbers of the committed checkpoints."""
    paths = (workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdecimal())


def saving(workdir):
    """What is being written of a checkpoint, or was when the run was killed."""
    with contextlib.suppress(FileNotFoundError):  # it has been finished
        paths = (workdir / "checkpoints").glob("*.unfinished*")
        return {(path, path.stat().st_ctime_ns) for path in paths}
    return set()


def has_come(moment, workdir, unbroken, num_steps, leftovers):
    """Whether a running command is in a moment.

    Args:
      moment: one of `MOMENTS`.
      workdir: of the run.
      unbroken: the logged steps of the run that nothing disturbed.
      num_steps: the number of logged steps from which "step" has come.
      leftovers: `saving(workdir)` before the start.
    """
    if "writing to" not in workdir.with_suffix(".log").read_text():
        return False  # it has not begun
    steps = logged(workdir)
    if moment == "compile":
        return True
    if moment == "step":
        return len(steps) >= num_steps
    if moment == "save":
        return bool(saving(workdir) - leftovers)
    if moment == "phase change":
        lengths = {step["phase"]: step["step"] for step in unbroken}
        (first, length), *_ = lengths.items()
        return steps and (steps[-1]["phase"], steps[-1]["step"]) == (first, length)
    return len(unbroken) in checkpoints(workdir)


def kill(flags, workdir, moment, unbroken, rng, **popen):
    """Starts the command, kills it in a moment, and tells where it was."""
    num_steps = len(logged(workdir)) + rng.integers(1, 6)
    delay = rng.uniform(0, MOMENTS[moment])
    leftovers = saving(workdir)
    process = start(flags, workdir, **popen)
    while not has_come(moment, workdir, unbroken, num_steps, leftovers):
        if process.poll() is not None:
            log = workdir.with_suffix(".log").read_text()
            raise RuntimeError(f"the run ended before its {moment} came:\n{log}")
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    if process.wait() != -9:
        raise RuntimeError(f"the run ended before it was killed in {moment}")
    *_, last = [{"phase": "none", "step": ""}, *logged(workdir)]
    return {
        "moment": moment,
        "seconds": f"{delay:.2f}",
        "last step": f"{last['phase']} {last['step']}",
        "checkpoints": ", ".join(map(str, checkpoints(workdir))),
    }


def finish(flags, workdir, **popen):
    """Lets the command come to its end."""
    if start(flags, workdir, **popen).wait():
        raise RuntimeError(workdir.with_suffix(".log").read_text())


def differences(one, other):
    """What differs between the ends of two runs; nothing, if all is well."""
    if (one / "results.json").read_bytes() != (other / "results.json").read_bytes():
        yield "results.json"
    last_lines = [
        {(x["phase"], x["step"]): x | {"seconds": 0} for x in logged(run)}
        for run in (one, other)
    ]
    if last_lines[0] != last_lines[1]:
        yield "metrics.jsonl"
    if checkpoints(one)[-1] != checkpoints(other)[-1]:
        yield "number of steps"
    states = [
        ocp.load(run / "checkpoints" / str(checkpoints(run)[-1]))
        for run in (one, other)
    ]
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    for (path, x), (_, y) in zip(*leaves, strict=True):
        if not np.array_equal(x, y):
            yield jax.tree_util.keystr(path)


def main():
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=4, help="of five kills each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("flags", nargs="*", help="after --, for every run")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    flags = arguments.flags or FLAGS
    rng = np.random.default_rng(arguments.seed)
    finish(flags, arguments.out / "unbroken")
    unbroken = logged(arguments.out / "unbroken")

    rows = [
        ["run", "killed in", "after (s)", "last logged step", "checkpoints", "end"],
    ]
    for number in range(arguments.runs):
        workdir = arguments.out / f"killed-{number}"
        kills = [kill(flags, workdir, moment, unbroken, rng) for moment in MOMENTS]
        finish(flags, workdir)
        end = ", ".join(differences(arguments.out / "unbroken", workdir)) or "identical"
        rows += [[str(number), *one.values(), ""] for one in kills]
        rows[-1][-1] = end
        print(*rows[-len(kills) :], sep="\n", flush=True)
    table = markdown(rows)
    print(table)
    if section:
        section.write(table)
    if table.count("identical") < arguments.runs:
        sys.exit("a run that was killed ended differently")


if __name__ == "__main__":
    main()
