"""Optimiser, splitting of parameters, sharding, progress: the loop's small parts."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.methods.contract import Optimizer
from crossres_jax.training import sharding, state, writer
from crossres_jax.training.optimizer import learning_rate_schedule, make_optimizer


def _optimizer(**options):
    defaults = {
        "learning_rates": {"l": 0.1, "restorer": 0.01},
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "milestones": (30, 60),
        "decay_factor": 0.1,
    }
    return Optimizer(**(defaults | options))


def test_schedule_decays_at_its_milestones_and_warms_up():
    spec = _optimizer(warmup_epochs=5, warmup_learning_rate=3e-4)
    schedule = learning_rate_schedule(spec, 8.5e-3, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 49, 50, 299, 300, 599, 600)]
    expected = [3e-4, 3e-4, 8.5e-3, 8.5e-3, 8.5e-4, 8.5e-4, 8.5e-5]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_warm_up_never_raises_a_rate():
    spec = _optimizer(warmup_epochs=5, warmup_learning_rate=3e-4)
    assert float(learning_rate_schedule(spec, 1e-5, 10)(0)) == pytest.approx(1e-5)


def test_a_linear_warm_up_rises_from_its_rate_step_by_step():
    spec = _optimizer(
        milestones=(2,), warmup_epochs=4, warmup_learning_rate=0.1, warmup="linear"
    )
    schedule = learning_rate_schedule(spec, 0.9, steps_per_epoch=2)
    rates = [float(schedule(step)) for step in range(9)]
    # An eighth of the way a step; from the milestone on towards a tenth of the rate.
    expected = [0.1, 0.2, 0.3, 0.4, 0.095, 0.09375, 0.0925, 0.09125, 0.09]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_without_milestones_or_warm_up_the_rate_stays():
    schedule = learning_rate_schedule(_optimizer(milestones=()), 0.5, 10)
    assert [float(schedule(step)) for step in (0, 10_000)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("field", "value"), [("algorithm", "adamw"), ("warmup", "cosine")]
)
def test_an_unknown_algorithm_or_warm_up_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"expected {field} to be one of .*{value}"):
        _optimizer(**{field: value})


@pytest.mark.parametrize("algorithm", ["adam", "amsgrad"])
def test_adam_equals_pytorchs_rule(algorithm):
    spec = _optimizer(algorithm=algorithm, weight_decay=0.1, milestones=())
    optimizer = make_optimizer(spec, steps_per_epoch=1)
    params = {"l": {"w": jnp.array([1.0, -2.0])}, "restorer": {"w": jnp.array([3.0])}}
    opt_state = optimizer.init(params)

    # torch.optim.Adam: g += wd · p; moments of g; p −= lr · m̂ / (√v̂ + ε); AMSGrad
    # takes the largest v so far, before its bias is corrected.
    expected = jax.tree.map(np.array, params)
    m, v, top = (jax.tree.map(np.zeros_like, expected) for _ in range(3))
    for step in range(1, 9):
        # The gradient soon vanishes, and the largest second moment is not the last one.
        gradients = jax.tree.map(lambda p, s=step: jnp.cos(p) * (s < 4) * 9, params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        for name, rate in (("l", 0.1), ("restorer", 0.01)):
            p = expected[name]["w"]
            g = np.cos(p) * (step < 4) * 9 + 0.1 * p
            m[name]["w"] = 0.9 * m[name]["w"] + 0.1 * g
            v[name]["w"] = 0.999 * v[name]["w"] + 0.001 * g**2
            top[name]["w"] = np.maximum(top[name]["w"], v[name]["w"])
            second = (top if algorithm == "amsgrad" else v)[name]["w"]
            second = second / (1 - 0.999**step)
            p -= rate * m[name]["w"] / (1 - 0.9**step) / (np.sqrt(second) + 1e-8)
    # Float32 over eight steps.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, expected
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_pytorchs_rule(nesterov):
    spec = _optimizer(nesterov=nesterov, weight_decay=0.1)
    optimizer = make_optimizer(spec, steps_per_epoch=1)
    params = {"l": {"w": jnp.array([1.0, -2.0])}, "restorer": {"w": jnp.array([3.0])}}
    opt_state = optimizer.init(params)

    # torch.optim.SGD: g += wd · p; v = m · v + g; p −= lr · (g + m · v | v)
    expected = jax.tree.map(np.array, params)
    velocity = jax.tree.map(np.zeros_like, expected)
    for step in range(3):
        gradients = jax.tree.map(lambda p, s=step: jnp.cos(p) + s, params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        for name, rate in (("l", 0.1), ("restorer", 0.01)):
            p, v = expected[name]["w"], velocity[name]["w"]
            g = np.cos(p) + step + 0.1 * p
            v[:] = 0.9 * v + g
            p -= rate * (g + 0.9 * v if nesterov else v)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected
    )


def test_a_parameter_without_a_learning_rate_is_named():
    optimizer = make_optimizer(_optimizer(), steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"no learning rate for the parameter h/w"):
        optimizer.init({"h": {"w": jnp.zeros(1)}})


def test_split_takes_whole_names_and_merge_undoes_it():
    params = {"l": {"a": 1, "b": {"c": 2}}, "lr": {"a": 3}, "h": {"a": 4}}
    trained, frozen = state.split(params, "l")
    assert trained == {"l": {"a": 1, "b": {"c": 2}}}
    assert frozen == {"lr": {"a": 3}, "h": {"a": 4}}
    assert state.merge(trained, frozen) == params
    assert state.split(params, "l/b|h")[0] == {"l": {"b": {"c": 2}}, "h": {"a": 4}}


def test_a_phase_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'x', which matches no parameter"):
        state.split({"l": {"a": 1}}, "x")


def test_batches_are_cut_along_the_first_axis_and_keep_their_order():
    mesh = sharding.make_mesh()
    batches = [{"x": np.full((8, 2), n)} for n in range(5)]
    seen = list(sharding.prefetch(iter(batches), mesh))
    assert [int(batch["x"][0, 0]) for batch in seen] == [0, 1, 2, 3, 4]
    assert {s.data.shape for s in seen[0]["x"].addressable_shards} == {(2, 2)}


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"data.num_ids is 6, which 4 devices"):
        sharding.check_divisible(6, sharding.make_mesh(), "data.num_ids")


def test_metrics_are_one_json_object_per_line(tmp_path):
    metrics = writer.MetricsWriter(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1, "loss": 0.5, "phase": "h"})
    metrics.write({"step": 2, "loss": float("nan"), "phase": "h"})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, None]


def test_a_line_that_was_not_finished_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    writer.MetricsWriter(path).write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_json_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    writer.write_json(path, {"rank1": 1.0})
    with pytest.raises(ValueError, match="Out of range float"):
        writer.write_json(path, {"rank1": float("nan")})
    assert json.loads(path.read_text()) == {"rank1": 1.0}


def test_progress_counts_its_rate_from_the_first_step(monkeypatch):
    now, out = iter([0.0, 100.0, 120.0]), io.StringIO()
    monkeypatch.setattr(writer.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(writer.sys, "stderr", out)
    progress = writer.Progress("phase h", 11, unit="pairs", per_step=24)
    progress.update(1)  # after 100 s of compilation
    progress.update(6, "loss 1.0")
    assert "6/11  6 pairs/s, 0:20 left" in out.getvalue()
