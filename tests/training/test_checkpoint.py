"""Checkpoints: what is kept, which damage is noticed, what a failed save leaves."""

import errno
import json
import logging
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.training import checkpoint
from crossres_jax.training.checkpoint import Checkpoints


def make_state(value):
    return {"params": {"w": jnp.full((64, 64), value), "b": jnp.arange(3.0) + value}}


LIKE = make_state(0.0)


def load(checkpoints, step):
    return jax.device_get(checkpoints.load(step, LIKE))


@pytest.fixture
def directory(tmp_path):
    """Checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(float(step)))
    return tmp_path / "checkpoints"


def files_of(directory, step):
    """The files that have content."""
    files = (path for path in (directory / str(step)).rglob("*") if path.is_file())
    return sorted(path for path in files if path.stat().st_size)


def test_what_was_saved_is_loaded(directory):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 2
        jax.tree.map(np.testing.assert_array_equal, load(checkpoints, 2), make_state(2))


def test_sha256sum_agrees_with_the_digests(directory):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    process = subprocess.run(
        command, cwd=directory / "2", capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(": OK") >= len(files_of(directory, 2)) - 1 > 3


def test_the_state_may_be_donated_while_it_is_being_saved(tmp_path):
    overwrite = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        state = {"w": jnp.ones((512, 512))}
        checkpoints.save(1, state)
        jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        assert (checkpoints.load(1, {"w": jnp.zeros((512, 512))})["w"] == 1).all()


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    position = rng.integers(len(content))
    content[position] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path, rng):
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_damage_to_any_file_is_named_and_the_one_before_is_used(
    directory, damage, caplog
):
    rng = np.random.default_rng(0)
    for number in range(len(files_of(directory, 2))):
        intact = directory.with_name("intact")
        shutil.copytree(directory / "2", intact)
        path = files_of(directory, 2)[number]
        damage(path, rng)
        caplog.clear()
        with Checkpoints(directory) as checkpoints:
            assert checkpoints.latest_step() == 1, path
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"{directory / '2'} is damaged and is not used" in record.message
        if path.name != "SHA256SUMS":
            assert path.relative_to(directory / "2").as_posix() in record.message
        shutil.rmtree(directory / "2")
        intact.rename(directory / "2")


def test_without_its_commit_mark_a_checkpoint_does_not_count(directory, caplog):
    (directory / "2" / "SHA256SUMS").unlink()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert "it has no SHA256SUMS, so its writing was not finished" in caplog.text


def test_with_every_checkpoint_damaged_there_is_none(directory):
    for step in (1, 2):
        truncate(files_of(directory, step)[0], None)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() is None


def test_a_damaged_checkpoint_makes_way_and_is_kept_aside(directory):
    truncate(files_of(directory, 2)[0], None)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(2, make_state(7.0))
        checkpoints.wait()
        assert checkpoints.latest_step() == 2
        assert (load(checkpoints, 2)["params"]["w"] == 7).all()
    assert {path.name for path in directory.iterdir()} == {"1", "2", "2.damaged"}


def test_what_a_killed_save_left_is_removed_and_never_counts(directory):
    (directory / "3.unfinished.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(directory / "2", directory / "4.unfinished")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, make_state(3.0))
    assert {path.name for path in directory.iterdir()} == {"2", "3"}


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 10.0, 2: 30.0, 3: 30.0, 4: 20.0, 5: 5.0, 6: None}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(float(step)), score)
        assert checkpoints.latest_step() == 6
        assert checkpoints.best_step() == 2  # of equals the first
    assert {path.name for path in tmp_path.iterdir()} == {"2", "5", "6"}


@pytest.mark.parametrize("content", ["", "99.0\n"])
def test_a_checkpoint_with_a_damaged_score_is_not_the_best(tmp_path, content):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, score in ((1, 30.0), (2, 20.0), (3, 10.0)):
            checkpoints.save(step, make_state(float(step)), score)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}
    (tmp_path / "1" / "score.json").write_text(content)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.best_step() == 3
        checkpoints.save(4, make_state(4.0), 5.0)
        assert checkpoints.best_step() == 3
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}


def test_a_checkpoint_that_cannot_be_read_is_damaged(directory, monkeypatch, caplog):
    digests = checkpoint._digests

    def read(folder):
        if folder.name == "2":
            raise OSError(errno.EIO, "Input/output error")
        return digests(folder)

    monkeypatch.setattr(checkpoint, "_digests", read)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert "it cannot be read ([Errno 5] Input/output error)" in caplog.text


def test_without_scores_there_is_no_best(directory):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.best_step() is None


def test_leaves_that_differ_are_listed_with_their_shapes(directory):
    like = {"params": {"w": jnp.zeros((64, 32)), "c": jnp.zeros(3)}}
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.load(2, like)
    assert str(error.value).splitlines()[1:] == [
        "  params/b: expected nothing, found (3,)",
        "  params/c: expected (3,), found nothing",
        "  params/w: expected (64, 32), found (64, 64)",
    ]


@pytest.fixture(params=["that says so", "that fills while Orbax writes"])
def small_disk(request, tmp_path, monkeypatch):
    """A disk with one MiB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "that says so":
        free = types.SimpleNamespace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
        yield folder
        return
    monkeypatch.setattr(Checkpoints, "_check_room", lambda *_: None)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_in_one_message_and_leaves_the_one_before(small_disk):
    noise = np.random.default_rng(0).normal(size=400_000)  # 3 MB
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(1.0))
        checkpoints.save(2, {"params": {"w": noise}})
        message = "of step 2 could not be written .* No space .* before is intact"
        with pytest.raises(OSError, match=message):
            checkpoints.wait()
        assert checkpoints.latest_step() == 1
        assert [path.name for path in checkpoints._directory.iterdir()] == ["1"]
        checkpoints.save(3, make_state(3.0))
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 3


def test_a_score_survives_a_restart(tmp_path):
    for step, score in ((1, 50.0), (2, 40.0)):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, make_state(1.0), score)
    assert json.loads((tmp_path / "1" / "score.json").read_text()) == 50.0
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1
