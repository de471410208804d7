"""The loop: resume, devices, frozen parts, non-finite losses, what it writes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.methods.contract import LossOutput
from crossres_jax.training.loop import NonFiniteLossError, Stopped


def _metrics(run):
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def unbroken(train_in, tmp_path_factory):
    """A run that nothing disturbed."""
    return train_in(tmp_path_factory.mktemp("unbroken"))


def test_loss_falls_and_every_step_is_logged(unbroken):
    metrics = _metrics(unbroken)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in metrics] == [0, 0, 1, 1, 2, 2]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert {"phase", "loss", "accuracy", "gradient_norm", "skipped"} <= set(metrics[0])


def test_the_same_seed_gives_the_same_parameters(run, unbroken):
    _assert_equal(run().variables, unbroken.variables)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_a_stopped_run_ends_like_an_unbroken_one(run, unbroken, stop_at):
    with pytest.raises(KeyboardInterrupt):
        run(folder="stopped", stop_at=stop_at)
    resumed = run(folder="stopped")
    assert resumed.seen[0] == (0, (stop_at - 1) // 2 * 2)  # the latest checkpoint
    _assert_equal(unbroken.variables, resumed.variables)


def test_a_finished_run_is_not_trained_again(run):
    first = run()
    again = run()
    assert again.seen == []
    _assert_equal(first.variables, again.variables)


def test_four_devices_train_like_one(run, unbroken):
    # Batch normalisation and triplet mining see the global batch, so only the order of
    # float32 sums differs; six steps of momentum amplify that to at most 1e-3.
    one, four = run(devices=jax.devices()[:1]), unbroken
    for trained, count in ((one, 1), (four, 4)):
        assert {len(x.devices()) for x in jax.tree.leaves(trained.variables)} == {count}
    for a, b in zip(_metrics(one), _metrics(four), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        one.variables,
        four.variables,
    )


def _two_phases(build):
    """Two copies of the example: `a` is trained first, then frozen beside `b`."""
    single = build(4, width=4, epochs=1)

    def loss_of(name):
        def loss(params, batch_stats, batch, rng):
            output = single.phases[0].loss(
                {"net": params[name]}, {"net": batch_stats[name]}, batch, rng
            )
            statistics = {**batch_stats, name: output.batch_stats["net"]}
            return LossOutput(output.loss, statistics, output.scalars)

        return loss

    def init(rng, batch):
        copies = zip("ab", jax.random.split(rng), strict=True)
        nets = {name: single.init(key, batch) for name, key in copies}
        return {
            kind: {name: net[kind]["net"] for name, net in nets.items()}
            for kind in ("params", "batch_stats")
        }

    def phase(name, **options):
        return dataclasses.replace(
            single.phases[0],
            name=name,
            trains=name,
            loss=loss_of(name),
            optimizer=dataclasses.replace(
                single.phases[0].optimizer, learning_rates={name: 0.05}
            ),
            **options,
        )

    return dataclasses.replace(
        single, init=init, phases=(phase("a"), phase("b", starts_from={"b": "a"}))
    )


@pytest.fixture(scope="module")
def after_a(train_in, build, tmp_path_factory):
    """Variables of a run that has phase `a` alone."""
    method = _two_phases(build)
    only_a = dataclasses.replace(method, phases=method.phases[:1])
    return train_in(tmp_path_factory.mktemp("after_a"), only_a).variables


def test_a_later_phase_leaves_frozen_components_alone(run, build, after_a):
    after_b = run(_two_phases(build)).variables
    for kind in ("params", "batch_stats"):
        _assert_equal(after_a[kind]["a"], after_b[kind]["a"])
        changed = jax.tree.map(
            lambda x, y: bool((x != y).any()), after_a[kind]["b"], after_b[kind]["b"]
        )
        assert all(jax.tree.leaves(changed))


def test_a_component_starts_from_another(run, build):
    method = _two_phases(build)
    idle = dataclasses.replace(
        method.phases[1].optimizer, learning_rates={"b": 0.0}, weight_decay=0.0
    )
    still = dataclasses.replace(method.phases[1], optimizer=idle)
    method = dataclasses.replace(method, phases=(method.phases[0], still))
    variables = run(method).variables
    _assert_equal(variables["params"]["a"], variables["params"]["b"])


def test_a_component_copies_the_statistics_too(run, build, after_a):
    method = _two_phases(build)
    copied = dataclasses.replace(method.phases[1], epochs=0)
    both = (method.phases[0], copied)
    variables = run(dataclasses.replace(method, phases=both)).variables
    _assert_equal(after_a["batch_stats"]["a"], variables["batch_stats"]["b"])


@pytest.fixture(scope="module")
def unbroken_in_two_phases(train_in, build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken_in_two_phases")
    return train_in(folder, _two_phases(build), checkpoint_every_steps=1)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_run_of_two_phases_resumes_in_the_right_one(
    run, build, unbroken_in_two_phases, stop_at
):
    with pytest.raises(KeyboardInterrupt):
        run(
            _two_phases(build),
            folder="stopped",
            checkpoint_every_steps=1,
            stop_at=stop_at,
        )
    resumed = run(_two_phases(build), folder="stopped", checkpoint_every_steps=1)
    assert resumed.seen == [(0, 0), (0, 1), (1, 0), (1, 1)][stop_at - 1 :]
    _assert_equal(unbroken_in_two_phases.variables, resumed.variables)


@pytest.fixture
def spoiled(batch_of):
    """A function that gives batches with a NaN at the given steps."""

    def spoiled(*steps):
        def batch(seed, step):
            batch = batch_of(seed, step)
            if step in steps:
                batch["lr"][0, 0, 0, 0] = np.nan
            return batch

        return batch

    return spoiled


def test_a_non_finite_loss_skips_the_update_and_counts(run, spoiled):
    result = run(batch=spoiled(2, 4))
    metrics = _metrics(result)
    assert [line["skipped"] for line in metrics] == [0, 0, 1, 1, 2, 2]
    assert [line["skipped_in_a_row"] for line in metrics] == [0, 0, 1, 0, 1, 0]
    assert metrics[2]["loss"] is None  # JSON has no NaN
    finite = jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), result.variables)
    assert all(jax.tree.leaves(finite))


def test_a_skipped_step_changes_nothing(run, build, spoiled):
    two_steps = run(build(4, width=4, epochs=1), folder="two")
    four_skipped = run(
        build(4, width=4, epochs=3),
        folder="six",
        batch=spoiled(2, 3, 4, 5),
        max_skipped_in_a_row=4,
    )
    _assert_equal(two_steps.variables, four_skipped.variables)


def test_too_many_in_a_row_stop_the_run_with_the_images_names(run, spoiled):
    with pytest.raises(NonFiniteLossError, match=r"step 5: 3 steps.*image32, image33"):
        run(batch=spoiled(2, 3, 4))


@pytest.fixture(scope="module")
def spoiled_at_first(batch_of):
    """Batches with a NaN at steps 2 to 5, until the run has gone back once."""

    def batch(seed, step):
        batch = batch_of(seed, step)
        if step in (2, 3, 4, 5) and seed < 100:
            batch["lr"][0, 0, 0, 0] = np.nan
        return batch

    return batch


def test_a_rollback_goes_on_from_the_checkpoint_with_other_batches(
    run, spoiled_at_first, caplog
):
    result = run(batch=spoiled_at_first, max_rollbacks=1)
    # Steps 3 to 5 are seen twice: three are skipped, then the run goes back to step 2.
    steps = [step for _, step in result.seen]
    assert steps[-4:] == [2, 3, 4, 5] and steps.count(2) == 2
    metrics = _metrics(result)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert metrics[-1]["skipped"] == 0 and metrics[-1]["loss"] is not None
    assert "Going back to step 2, and on with other batches (rollback 1 of 1)" in (
        caplog.text
    )


def test_a_rollback_goes_on_with_other_dropout(run, build, spoiled_at_first):
    method = build(4, width=4, epochs=3)
    (phase,) = method.phases

    def loss(*arguments):
        *_, rng = arguments
        return phase.loss(*arguments)._replace(
            scalars={"draw": jax.random.uniform(rng)}
        )

    drawing = dataclasses.replace(phase, loss=loss)
    method = dataclasses.replace(method, phases=(drawing,))
    result = run(method, batch=spoiled_at_first, max_rollbacks=1)
    draws = [line["draw"] for line in _metrics(result)]  # steps 1 2 3 4, 3 4 5 6
    assert len(draws) == len(set(draws)) == 8


def test_no_checkpoint_is_made_while_steps_are_skipped(run, spoiled, tmp_path):
    with pytest.raises(NonFiniteLossError):
        run(batch=spoiled(1, 2, 3, 4), max_skipped_in_a_row=3)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def unbroken_after_rollback(train_in, spoiled_at_first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken_after_rollback")
    return train_in(folder, batch=spoiled_at_first, max_rollbacks=1)


@pytest.mark.parametrize("stop_at", [4, 6, 8])
def test_a_run_that_was_stopped_after_a_rollback_ends_like_an_unbroken_one(
    run, spoiled_at_first, unbroken_after_rollback, stop_at
):
    options = {"batch": spoiled_at_first, "max_rollbacks": 1}
    with pytest.raises(KeyboardInterrupt):
        run(folder="stopped", stop_at=stop_at, **options)
    resumed = run(folder="stopped", **options)
    _assert_equal(unbroken_after_rollback.variables, resumed.variables)


def test_after_the_last_rollback_the_run_ends(run, spoiled_at_first, caplog):
    def always(seed, step):
        return spoiled_at_first(0, step)

    with pytest.raises(NonFiniteLossError, match=r"step 5: 3 steps in a row"):
        run(batch=always, max_rollbacks=2)
    assert caplog.text.count("Going back to step") == 2


@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_a_run_that_is_asked_to_stop_saves_and_ends_like_an_unbroken_one(
    run, unbroken, after
):
    answers = iter([False] * (after - 1) + [True])
    with pytest.raises(Stopped, match=f"in phase all, step {after} of 6"):
        run(folder="stopped", stop=lambda: next(answers))
    resumed = run(folder="stopped")
    assert resumed.seen == [(0, step) for step in range(after, 6)]
    _assert_equal(unbroken.variables, resumed.variables)


def _scores(*values, seen=None):
    """A `validate` that gives these mAPs, one after the other."""
    values = iter(values)

    def validate(variables):
        if seen is not None:
            seen.append(jax.tree.map(np.array, variables))
        return {"rank1": 0.0, "mAP": next(values)}

    return validate


def test_the_best_checkpoint_counts_where_there_is_validation(run):
    seen = []
    best = run(validate=_scores(20.0, 40.0, 30.0, seen=seen))
    assert best.step == 4
    _assert_equal(seen[1], best.variables)
    logged = [x["validation"]["mAP"] for x in _metrics(best) if "validation" in x]
    assert logged == [20.0, 40.0, 30.0]
    again = run(validate=_scores())
    assert again.step == 4 and again.seen == []
    _assert_equal(seen[1], again.variables)


def test_a_stop_between_two_checkpoints_does_not_change_which_is_best(run):
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        run(stop=lambda: next(answers), validate=_scores(20.0, 99.0))
    assert run(validate=_scores(10.0, 30.0)).step == 6


def test_only_the_last_phase_is_validated(run, build):
    result = run(_two_phases(build), validate=_scores(50.0))
    assert result.step == 4


def test_a_checkpoint_of_another_network_is_refused_with_the_differences(run, build):
    run()
    with pytest.raises(ValueError, match=r"conv0/kernel: expected .* found") as error:
        run(build(4, width=8, epochs=3))
    assert "params/net/classifier/kernel: expected (32, 4), found (16, 4)" in str(
        error.value
    )
