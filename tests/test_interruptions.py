"""The real command, killed, asked to stop, started twice, on a full disk."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import interruptions

ROOT = Path(__file__).parent.parent
TWO_PHASES = '''
import dataclasses
from sixth import pixel_net

def build(num_classes, **options):
    """The documented example, trained in two phases."""
    method = pixel_net.build(num_classes, **options)
    (phase,) = method.phases
    phases = tuple(dataclasses.replace(phase, name=name) for name in ("one", "two"))
    return dataclasses.replace(method, phases=phases)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sixth_method):
    """docs/sixth_method.md's method and config, with two phases."""
    folder = tmp_path_factory.mktemp("interrupted")
    method, config = sixth_method
    (folder / "sixth").mkdir()
    (folder / "sixth" / "__init__.py").touch()
    (folder / "sixth" / "pixel_net.py").write_text(method)
    (folder / "sixth" / "two_phases.py").write_text(TWO_PHASES)
    config = config.replace('"pixel_net"', '"sixth.two_phases"')
    (folder / "two_phases.py").write_text(config)
    return folder


@pytest.fixture(scope="module")
def flags(folder):
    """Flags of a run of 2 × 16 steps that takes a second or two."""
    return (
        f"--config={folder / 'two_phases.py'}:mlr_pedestrians_tiny",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.data.image_size=(32, 16)",
        "--config.data.num_ids=4",
        "--config.data.num_instances=2",
        "--config.data.eval_batch_size=8",
        "--config.method.epochs=4",
        "--config.data.val_ids=2",
        "--config.train.checkpoint_every_steps=7",
    )


@pytest.fixture(scope="module")
def popen(folder):
    """Options of the processes."""
    return {"cwd": folder, "env": {"PYTHONPATH": str(folder)}}


@pytest.fixture(scope="module")
def unbroken(folder, flags, popen):
    """The folder of a run that nothing disturbed."""
    interruptions.finish(flags, folder / "unbroken", **popen)
    return folder / "unbroken"


def test_a_run_killed_in_five_moments_ends_like_an_unbroken_one(
    folder, flags, popen, unbroken
):
    rng = np.random.default_rng(0)
    steps = interruptions.logged(unbroken)
    for moment in interruptions.MOMENTS:
        interruptions.kill(flags, folder / "killed", moment, steps, rng, **popen)
    assert not (folder / "killed" / "results.json").exists()
    latest = folder / "killed" / "checkpoints" / str(len(steps))
    file = max(latest.rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])  # and damaged on top
    interruptions.finish(flags, folder / "killed", **popen)
    log = (folder / "killed.log").read_text()
    assert f"{latest} is damaged and is not used: " in log
    assert list(interruptions.differences(unbroken, folder / "killed")) == []


def test_splits_that_are_killed_go_on_where_they_were(folder, flags, popen, unbroken):
    splits = folder / "splits"
    process = interruptions.start((*flags, "--num_splits=2"), splits, **popen)
    while not interruptions.logged(splits / "split-1"):
        assert process.poll() is None, splits.with_suffix(".log").read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()
    metrics = (splits / "split-0" / "metrics.jsonl").read_bytes()
    interruptions.finish((*flags, "--num_splits=2"), splits, **popen)
    assert (splits / "split-0" / "metrics.jsonl").read_bytes() == metrics
    assert list(interruptions.differences(unbroken, splits / "split-0")) == []
    results = json.loads((splits / "results.json").read_text())
    assert results["runs"] == ["split-0", "split-1"]


def test_a_data_build_that_is_killed_is_done_again(folder, flags, popen):
    cache = folder / "cache_of_killed"
    changes = {"data.protocol": "mlr_pedestrians", "data.cache_dir": cache}
    changes["method.epochs"] = 0
    flags = (*flags, *(f"--config.{name}={value}" for name, value in changes.items()))
    process = interruptions.start(flags, folder / "killed_in_build", **popen)
    while not list(cache.glob("*/*/*incomplete*")):
        assert process.poll() is None, "the data set was built unseen"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not list(cache.glob("*/*/[0-9]*"))
    interruptions.finish(flags, folder / "killed_in_build", **popen)


@pytest.fixture
def long_run(folder, flags, popen):
    """A process that has begun to train and will not end by itself, and its folder."""
    workdir = folder / "long"
    process = interruptions.start(
        (*flags, "--config.method.epochs=100000"), workdir, **popen
    )
    while not interruptions.logged(workdir):
        assert process.poll() is None, workdir.with_suffix(".log").read_text()
        time.sleep(0.05)
    yield process, workdir
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_sigterm_saves_the_first(
    long_run, folder, flags, popen
):
    process, workdir = long_run
    same = folder / "same"
    same.symlink_to(workdir)
    flags = (*flags, "--config.method.epochs=100000")
    process.send_signal(signal.SIGSTOP)  # not ended, but both cores are the second's
    assert interruptions.start(flags, same, **popen).wait() == 1
    process.send_signal(signal.SIGCONT)
    log = same.with_suffix(".log").read_text()
    assert f"same is in use by process {process.pid} on" in log

    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    log = workdir.with_suffix(".log").read_text()
    assert re.search(r"stopped in phase one, step \d+ of 400000; the same command", log)
    last = interruptions.logged(workdir)[-1]["step"]
    assert interruptions.checkpoints(workdir)[-1] == last


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a tmpfs; skips where this process may not."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a tmpfs")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


def test_a_run_ends_clearly_on_a_full_disk_and_goes_on_when_there_is_room(
    mount, folder, flags, popen, unbroken
):
    workdir = mount("size=900k") / "run"  # room for two checkpoints
    workdir.mkdir()
    (folder / "full").symlink_to(workdir)
    assert interruptions.start(flags, folder / "full", **popen).wait() == 1
    log = (folder / "full.log").read_text()
    assert "No space left on device" in log
    assert "Traceback" not in log
    assert interruptions.checkpoints(workdir) == [7, 14]

    mount("remount,size=9m")
    interruptions.finish(flags, folder / "full", **popen)
    assert list(interruptions.differences(unbroken, workdir)) == []


def test_a_read_only_workdir_is_refused(mount, folder, flags, popen):
    (folder / "read_only").symlink_to(mount("ro"))
    assert interruptions.start(flags, folder / "read_only", **popen).wait() == 1
    log = (folder / "read_only.log").read_text()
    assert "cannot be written to (Read-only file system); make it writable" in log
    assert "Traceback" not in log
