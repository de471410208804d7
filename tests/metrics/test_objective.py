"""O = D_sim / D_dif."""

import numpy as np
import pytest

from crossres_jax.metrics import reid_objective


def test_objective_is_eq_2_by_the_number_of_pairs():
    distances = np.array([[1.0, 4.0, 9.0], [16.0, 3.0, 8.0]])
    # Pairs of the same person: 1 and 9, 3; of two: 4, 16 and 8.
    found = reid_objective(distances, [0, 1], [0, 1, 0])
    np.testing.assert_allclose(found, (13 / 3) / (28 / 3))


def test_features_that_know_nothing_have_an_objective_of_1():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 100, 8))
    squared = ((query[:, None] - gallery) ** 2).sum(axis=-1)
    pids = np.arange(100) % 20
    assert abs(reid_objective(squared, pids, pids) - 1) < 0.1


@pytest.mark.parametrize(
    ("pids", "message"),
    [(([0], [0, 0]), "one kind alone"), (([0], [1, 2, 3]), r"shape \(1, 3\)")],
)
def test_what_has_no_objective_is_refused(pids, message):
    with pytest.raises(ValueError, match=message):
        reid_objective(np.ones((1, 2)), *pids)
