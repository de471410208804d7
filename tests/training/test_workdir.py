"""The folder of a run: what `begin` writes, and what it refuses to go on with."""

import json

import pytest

from crossres_jax.training import workdir as workdirs
from crossres_jax.training.workdir import begin, locked, resolve

CONFIG = {"seed": 0, "data": {"dir": "", "split": 1}, "train": {"log_every_steps": 20}}
MANIFEST = {"sha256": "ab", "counts": {"query": {"images": 8}}}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has begun."""
    workdir = tmp_path / "run"
    with locked(workdir):
        begin(workdir, CONFIG, MANIFEST, tmp_path)
    return workdir


def stored(run):
    return json.loads((run / "config.json").read_text())


def test_a_run_says_what_it_is_made_of(run):
    assert stored(run)["config"] == CONFIG
    (versions,) = stored(run)["versions"]
    assert versions["packages"]["jax"] and versions["python"]
    assert json.loads((run / "manifest.json").read_text()) == MANIFEST


def test_every_version_that_worked_on_a_run_is_told_once(run, monkeypatch):
    before = stored(run)["versions"][0]
    for python in ("3.99", "3.99"):
        monkeypatch.setattr(workdirs.platform, "python_version", lambda v=python: v)
        begin(run, CONFIG, MANIFEST, run)
    assert stored(run)["versions"] == [before, before | {"python": "3.99"}]


def test_a_run_belongs_to_the_weights_that_it_started_from(tmp_path):
    run = tmp_path / "started"
    run.mkdir()
    config = CONFIG | {"init": {"backbone": "resnet50.pth"}}
    assert begin(run, config, MANIFEST, tmp_path, "aa") == "aa"
    assert begin(run, config, MANIFEST, tmp_path) == "aa"  # the file is gone
    message = r"other weights: resnet50\.pth had the SHA-256 aa, now it has bb"
    with pytest.raises(ValueError, match=message):
        begin(run, config, MANIFEST, tmp_path, "bb")
    assert stored(run)["weights"] == "aa"


def test_weights_alone_can_be_evaluated(tmp_path):
    config = CONFIG | {"init": {"backbone": "resnet50.pth"}}
    assert resolve(config, tmp_path / "nowhere", "evaluate") == config


def test_what_no_weight_depends_on_may_change_and_is_stored(run, tmp_path):
    changed = CONFIG | {"train": {"log_every_steps": 7}}
    assert resolve(changed, run, "train") == changed
    begin(run, changed, MANIFEST, tmp_path)
    assert resolve(None, run, "evaluate") == changed


def test_a_config_that_was_begun_meanwhile_is_respected(run, tmp_path):
    other = CONFIG | {"seed": 1}  # resolved before the run began
    with pytest.raises(ValueError, match=r"config\.seed: the run has 0, now it is 1"):
        begin(run, other, MANIFEST, tmp_path)
    assert stored(run)["config"] == CONFIG


def test_every_difference_is_listed(run):
    other = {"seed": 1, "data": {"dir": "elsewhere", "split": 2}, "train": {}}
    with pytest.raises(ValueError) as error:
        resolve(other, run, "train")
    assert str(error.value).splitlines()[1:3] == [
        "  config.data.split: the run has 1, now it is 2",
        "  config.seed: the run has 0, now it is 1",
    ]


def test_a_damaged_file_is_named(run, tmp_path):
    for name in ("manifest.json", "config.json"):
        (run / name).write_text("")
        with pytest.raises(ValueError, match=rf"{name} is damaged .* Restore it"):
            begin(run, CONFIG, MANIFEST, tmp_path)


def test_nothing_to_run_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json\)\. Give --config=configs/"):
        resolve(None, tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="needs a finished one \\(train it first"):
        resolve(CONFIG, tmp_path / "nowhere", "evaluate")
