"""Imported weights compute what they computed in PyTorch, or none are merged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.modules.conv import Conv
from crossres_jax.pretrained import merge

TABLE = (
    (r"fc\.weight", "params/dense/kernel"),
    (r"fc\.bias", "params/dense/bias"),
    (r"bn(\d)\.running_mean", r"batch_stats/norm\1/mean"),
    (r"bn\d\.num_batches_tracked", ""),
)


def _variables():
    return {
        "params": {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}},
        "batch_stats": {"norm1": {"mean": jnp.zeros(4)}},
    }


def _weights():
    return {
        "fc.weight": np.arange(6.0, dtype=np.float32).reshape(3, 2),
        "fc.bias": np.float32([1, 2, 3]),
        "bn1.running_mean": np.float32([4, 5, 6, 7]),
        "bn1.num_batches_tracked": np.array(8),
    }


def _shapes(module, x):
    return jax.eval_shape(module.init, jax.random.key(0), x)


def test_a_dense_layer_computes_what_pytorchs_does():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 2)), rng.normal(size=3)
    x = rng.normal(size=(5, 2)).astype(np.float32)
    table = (("weight", "params/kernel"), ("bias", "params/bias"))
    module = nn.Dense(3)
    variables = merge(_shapes(module, x), {"weight": weight, "bias": bias}, table)
    # Sums of two products in float32.
    np.testing.assert_allclose(module.apply(variables, x), x @ weight.T + bias, 1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_computes_what_pytorchs_does(groups):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 4 // groups, 3, 3))  # PyTorch's (out, in, k, k)
    x = rng.normal(size=(1, 5, 6, 4)).astype(np.float32)
    module = Conv(8, groups=groups)
    variables = merge(_shapes(module, x), {"w": weight}, (("w", "params/kernel"),))

    expected = np.zeros((5, 6, 8))
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    for row, column, out in np.ndindex(expected.shape):
        first = out // (8 // groups) * (4 // groups)  # input channel of the group
        window = padded[row : row + 3, column : column + 3, first:]
        kernel = weight[out].transpose(1, 2, 0)
        expected[row, column, out] = (window[..., : 4 // groups] * kernel).sum()
    # Sums of 36 products in float32.
    found = module.apply(variables, x)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vectors_are_taken_as_they_are_and_nothing_given_is_changed():
    variables, weights = _variables(), _weights()
    merged = merge(variables, weights, TABLE)
    np.testing.assert_array_equal(merged["params"]["dense"]["bias"], [1, 2, 3])
    np.testing.assert_array_equal(merged["batch_stats"]["norm1"]["mean"], [4, 5, 6, 7])
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, _variables())
    for x in weights.values():
        x += 1  # the merged ones are copies
    np.testing.assert_array_equal(merged["params"]["dense"]["bias"], [1, 2, 3])


def test_variables_keep_their_types():
    variables = _variables()
    variables["params"]["dense"]["bias"] = jnp.zeros(3, jnp.bfloat16)
    bias = merge(variables, _weights(), TABLE)["params"]["dense"]["bias"]
    assert bias.dtype == jnp.bfloat16


def test_every_row_that_matches_all_of_a_name_counts():
    variables = {"params": {name: jnp.zeros(1) for name in "abc"}}
    weights = {"x": np.ones(1), "xy": np.full(1, 2.0)}
    table = (("x", "params/a"), ("xy", "params/b"), ("x.?", ""), ("xy", "params/c"))
    merged = merge(variables, weights, table)["params"]
    assert (merged["a"], merged["b"], merged["c"]) == (1, 2, 2)


def test_everything_that_does_not_fit_is_listed_at_once():
    weights = _weights() | {
        "extra": np.ones(1),
        "bn2.running_mean": np.ones(4),
        "fc.weight": np.ones((5, 2)),
    }
    del weights["bn1.running_mean"]
    with pytest.raises(ValueError) as error:
        merge(_variables(), weights, TABLE)
    assert str(error.value).split("\n")[1:] == [
        "  fc.weight: params/dense/kernel has shape (2, 3), found (2, 5)",
        "  extra (1,): not in the table",
        "  bn2.running_mean (4,): the network has no batch_stats/norm2/mean",
        "  batch_stats/norm1/mean (4,): not in the weights",
    ]


def test_two_weights_for_one_variable_are_refused():
    table = (("fc2.bias", "params/dense/bias"), *TABLE)
    weights = _weights() | {"fc2.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"fc2\.bias: fills .*, which fc\.bias fills"):
        merge(_variables(), weights, table)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_what_is_skipped_keeps_its_values_and_its_weights_are_dropped(num_classes):
    weights = _weights() | {
        "fc.weight": np.ones((num_classes, 2)),
        "fc.bias": np.ones(num_classes),
    }
    merged = merge(_variables(), weights, TABLE, skip="params/dense/.*")
    np.testing.assert_array_equal(merged["params"]["dense"]["kernel"], np.zeros((2, 3)))
    np.testing.assert_array_equal(merged["params"]["dense"]["bias"], np.zeros(3))
    np.testing.assert_array_equal(merged["batch_stats"]["norm1"]["mean"], [4, 5, 6, 7])

    with pytest.raises(ValueError, match=r"norm1/mean \(4,\): not in the weights"):
        merge(_variables(), {}, TABLE, skip="params/dense/.*")


def test_what_is_skipped_may_be_missing_on_either_side():
    head = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    without = {name: x for name, x in _weights().items() if name not in head}
    merge(_variables(), without, TABLE, skip="params/dense/.*")
    body = {"batch_stats": _variables()["batch_stats"]}
    merged = merge(body, _weights(), TABLE, skip="params/dense/.*")
    assert list(merged) == ["batch_stats"]
