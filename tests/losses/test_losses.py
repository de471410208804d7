"""Losses against hand-worked numbers, slow loops, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax import losses

# Float32 sums of a few hundred terms: relative error well below this.
TOLERANCE = 1e-5


def _random_features(seed, batch=12, size=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, size)).astype(np.float32), np.repeat(
        np.arange(batch // 3), 3
    )


# --- label_smoothed_cross_entropy


def test_smoothed_cross_entropy_of_hand_worked_numbers():
    # p = (3/4, 1/4); targets (0.95, 0.05) and (0.05, 0.95) for ε = 0.1, M = 2.
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    loss = losses.label_smoothed_cross_entropy(logits, jnp.array([0, 1]))
    expected = [
        -0.95 * np.log(0.75) - 0.05 * np.log(0.25),
        -0.05 * np.log(0.75) - 0.95 * np.log(0.25),
    ]
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_target_of_equation_9():
    # The gradient with respect to the logits is p − q; at p uniform, q is read off.
    num_classes, epsilon = 5, 0.1
    gradient = jax.grad(
        lambda x: losses.label_smoothed_cross_entropy(x, jnp.array([2])).sum()
    )(jnp.zeros((1, num_classes)))
    q = 1 / num_classes - gradient[0]
    expected = np.full(num_classes, epsilon / num_classes)
    expected[2] = 1 - (num_classes - 1) / num_classes * epsilon
    np.testing.assert_allclose(q, expected, atol=1e-6)


def test_cross_entropy_without_smoothing_is_minus_log_p():
    logits, labels = _random_features(0)
    loss = losses.label_smoothed_cross_entropy(logits, labels, epsilon=0.0)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        loss, -np.log(p[np.arange(len(labels)), labels]), rtol=TOLERANCE
    )


def test_cross_entropy_is_finite_for_huge_bfloat16_logits():
    logits = jnp.array([[3e4, -3e4], [-3e4, 3e4]], jnp.bfloat16)
    loss = losses.label_smoothed_cross_entropy(logits, jnp.array([0, 0]))
    assert loss.dtype == jnp.float32
    assert np.isfinite(loss).all()


# --- batch_hard_triplet


def test_batch_hard_triplet_of_hand_worked_numbers():
    # On a line: identity 0 at 0 and 3, identity 1 at 4 and 4.5.
    features = jnp.array([[0.0], [3.0], [4.0], [4.5]])
    loss = losses.batch_hard_triplet(features, jnp.array([0, 0, 1, 1]), margin=0.3)
    # anchor 0: 3 − 4 < −0.3; anchor 1: 3 − 1 + 0.3; anchors 2, 3: 0.5 − 1 (1.5) < −0.3
    np.testing.assert_allclose(loss, [0.0, 2.3, 0.0, 0.0], atol=1e-5)


@pytest.mark.parametrize("margin", [0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_batch_hard_triplet_equals_a_slow_loop(seed, margin):
    features, pids = _random_features(seed)
    expected = []
    for a, pid in enumerate(pids):
        distances = [float(np.linalg.norm(features[a] - f)) for f in features]
        positive = max(d for i, d in enumerate(distances) if pids[i] == pid and i != a)
        negative = min(d for i, d in enumerate(distances) if pids[i] != pid)
        expected.append(max(margin + positive - negative, 0.0))
    loss = jax.jit(losses.batch_hard_triplet, static_argnames="margin")(
        features, pids, margin=margin
    )
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_rows_that_are_not_valid_are_in_no_triplet():
    features, pids = _random_features(7)
    valid = np.array([1, 1, 0] * 4, bool)
    loss = losses.batch_hard_triplet(features, pids, valid=valid)
    expected = losses.batch_hard_triplet(features[valid], pids[valid])
    np.testing.assert_allclose(loss[valid], expected, rtol=TOLERANCE)
    np.testing.assert_array_equal(loss[~valid], 0.0)


def test_anchor_without_positive_or_negative_has_no_loss():
    features = jnp.array([[0.0], [1.0], [2.0]])
    loss = losses.batch_hard_triplet
    np.testing.assert_array_equal(loss(features, jnp.array([0, 1, 2])), 0.0)
    np.testing.assert_array_equal(loss(features, jnp.array([0, 0, 0])), 0.0)


@pytest.mark.parametrize("pids", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
def test_triplet_gradient_is_finite_where_all_features_are_equal(pids):
    gradient = jax.grad(lambda f: losses.batch_hard_triplet(f, jnp.array(pids)).sum())(
        jnp.ones((4, 3))
    )
    assert np.isfinite(gradient).all()


# --- weighted_regularized_triplet


def test_weighted_regularized_triplet_of_hand_worked_numbers():
    # On a line, in units of log 3: identity 0 at 0 and 1, identity 1 at 2 and 3.
    features = jnp.log(jnp.array([[1.0], [3.0], [9.0], [27.0]]))
    loss = losses.weighted_regularized_triplet(features, jnp.array([0, 0, 1, 1]))
    # Anchor 0: positives at distances 0 and 1 with weights 1/4 and 3/4, negatives at 2
    # and 3 with weights 3/4 and 1/4; anchor 1: negatives at 1 and 2.
    expected = np.log1p(3.0 ** np.array([3 / 4 - 9 / 4, 3 / 4 - 5 / 4]))
    np.testing.assert_allclose(loss, [*expected, *expected[::-1]], rtol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_regularized_triplet_equals_a_slow_loop(seed):
    features, pids = _random_features(seed)
    expected = []
    for a, pid in enumerate(pids):
        sums = {}
        for same in (True, False):
            members = [
                f for f, p in zip(features, pids, strict=True) if same == (p == pid)
            ]
            distances = np.array([np.linalg.norm(features[a] - f) for f in members])
            weights = np.exp(distances if same else -distances)
            sums[same] = (weights * distances).sum() / weights.sum()
        expected.append(np.log(1 + np.exp(sums[True] - sums[False])))
    loss = jax.jit(losses.weighted_regularized_triplet)(features, pids)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_rows_that_are_not_valid_are_in_no_weighted_triplet():
    features, pids = _random_features(7)
    valid = np.array([1, 1, 0] * 4, bool)
    loss = losses.weighted_regularized_triplet(features, pids, valid=valid)
    expected = losses.weighted_regularized_triplet(features[valid], pids[valid])
    np.testing.assert_allclose(loss[valid], expected, rtol=TOLERANCE)
    np.testing.assert_array_equal(loss[~valid], 0.0)


def test_an_anchor_is_its_own_positive_but_needs_a_negative():
    features = jnp.array([[0.0], [1.0], [2.0]])
    loss = losses.weighted_regularized_triplet(features, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(loss[1], np.log1p(np.exp(-1.0)), rtol=TOLERANCE)
    loss = losses.weighted_regularized_triplet(features, jnp.array([0, 0, 0]))
    np.testing.assert_array_equal(loss, 0.0)


@pytest.mark.parametrize("scale", [0.0, 1e6])
@pytest.mark.parametrize("pids", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
def test_weighted_triplet_gradient_is_finite_at_the_edges(pids, scale):
    features = scale * jnp.arange(12.0).reshape(4, 3)
    loss, gradient = jax.value_and_grad(
        lambda f: losses.weighted_regularized_triplet(f, jnp.array(pids)).sum()
    )(features)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


# --- center_loss and update_centers


def test_center_loss_of_hand_worked_numbers():
    features = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    centers = jnp.array([[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]])
    loss = losses.center_loss(features, jnp.array([1, 2]), centers)
    np.testing.assert_allclose(loss, [0.5, 8.0])  # half of 0² + 1², and of 0² + 4²
    gradient = jax.grad(
        lambda f, c: losses.center_loss(f, jnp.array([1, 2]), c).sum(), (0, 1)
    )(features, centers)
    np.testing.assert_allclose(gradient[0], [[0.0, 1.0], [0.0, -4.0]])
    np.testing.assert_array_equal(gradient[1], np.zeros((3, 2)))


def test_centers_move_by_equation_4_of_wen():
    features, pids = _random_features(3)
    centers = np.random.default_rng(4).normal(size=(9, 5)).astype(np.float32)
    moved = losses.update_centers(features, pids, centers, rate=0.5)
    expected = centers.copy()
    for pid in range(9):
        members = features[pids == pid]
        difference = (centers[pid] - members).sum(0) / (1 + len(members))
        expected[pid] -= 0.5 * difference
    np.testing.assert_allclose(moved, expected, rtol=TOLERANCE, atol=1e-6)
    np.testing.assert_array_equal(moved[4:], centers[4:])  # not in the batch


def test_centers_come_to_rest_in_the_middle_of_their_features():
    features, pids = _random_features(5)
    centers = jnp.zeros((4, 5))
    for _ in range(100):
        centers = losses.update_centers(features, pids, centers)
    means = features.reshape(4, 3, 5).mean(axis=1)
    np.testing.assert_allclose(centers, means, atol=1e-5)


# --- masked_mean


def test_masked_mean_counts_what_the_mask_shows():
    values = jnp.array([1.0, jnp.inf, 4.0])
    assert losses.masked_mean(values, jnp.array([True, False, True])) == 2.5
    assert losses.masked_mean(values, jnp.zeros(3, bool)) == 0
    gradient = jax.grad(losses.masked_mean)(values, jnp.array([True, False, True]))
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


# --- mean_absolute_error, smooth_l1, feature_alignment and mutual_kl


def test_mean_absolute_error_of_hand_worked_numbers():
    restored = jnp.zeros((2, 2, 2, 1))
    originals = restored.at[0, 0, 0, 0].set(4.0).at[1].set(-0.5)
    np.testing.assert_allclose(
        losses.mean_absolute_error(restored, originals), [1.0, 0.5]
    )


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(1.0, [(3.5 + 0.125) / 4, 0.125]), (2.0, [(3.0 + 0.0625) / 4, 0.0625])],
)
def test_smooth_l1_of_hand_worked_numbers(beta, expected):
    x = jnp.array([[4.0, -0.5, 0.0, 0.0], [0.5, -0.5, 0.5, -0.5]])
    loss, y = losses.smooth_l1, jnp.zeros((2, 4))
    np.testing.assert_allclose(loss(x, y, beta=beta), expected)
    gradient = jax.grad(lambda x, y: loss(x, y, beta=beta).sum(), (0, 1))(x, y)
    # d / β, at most 1, of 4 elements: the pieces meet at β with the same slope.
    np.testing.assert_allclose(gradient[0], np.clip(x / beta, -1, 1) / 4)
    np.testing.assert_allclose(gradient[1], -gradient[0])


def test_feature_alignment_adds_one_mean_per_feature():
    high = [jnp.zeros((2, 4)), jnp.zeros((2, 2))]
    low = [jnp.ones((2, 4)), jnp.array([[3.0, 1.0], [0.0, 0.0]])]
    np.testing.assert_allclose(losses.feature_alignment(high, low), [3.0, 1.0])


def test_mutual_kl_of_hand_worked_numbers():
    # p = (1/2, 1/2) and (3/4, 1/4).
    logits = [jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))]
    expected = 0.5 * np.log(2 / 3) + 0.5 * np.log(2)  # KL of the second from the first
    expected += 0.75 * np.log(3 / 2) + 0.25 * np.log(1 / 2)
    np.testing.assert_allclose(losses.mutual_kl(logits), [expected], rtol=TOLERANCE)


def test_mutual_kl_adds_all_six_ordered_pairs_of_three():
    logits = [_random_features(seed)[0] for seed in range(3)]
    p = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    expected = sum((p[j] * np.log(p[j] / p[i])).sum(1) for j, i in pairs)
    loss = jax.jit(losses.mutual_kl)(logits)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_targets_of_mutual_kl_get_no_gradient():
    logits = [jnp.asarray(_random_features(seed)[0]) for seed in range(3)]
    gradients = jax.grad(lambda x: losses.mutual_kl(x).sum())(logits)
    p = [jax.nn.softmax(x) for x in logits]
    for i in range(3):  # of KL(p_j ‖ p_i) for both j; a target's would have logarithms
        expected = sum(p[i] - p[j] for j in range(3) if j != i)
        np.testing.assert_allclose(gradients[i], expected, rtol=1e-4, atol=1e-6)


def test_mutual_kl_is_finite_where_a_probability_vanishes():
    logits = [jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]])]
    loss, gradients = jax.value_and_grad(lambda x: losses.mutual_kl(x).sum())(logits)
    assert np.isfinite(loss) and np.isfinite(gradients).all()
    assert losses.mutual_kl([logits[0], logits[0]]) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.label_smoothed_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(3)),
        lambda: losses.batch_hard_triplet(jnp.zeros((2, 3)), jnp.zeros(3)),
        lambda: losses.center_loss(jnp.zeros((2, 3)), jnp.zeros(2, int), jnp.eye(2)),
        lambda: losses.update_centers(jnp.zeros((2, 3)), jnp.zeros(1), jnp.eye(3)),
        lambda: losses.mean_absolute_error(jnp.zeros((2, 3)), jnp.zeros((2, 1))),
        lambda: losses.feature_alignment([jnp.zeros((2, 3))], []),
        lambda: losses.weighted_regularized_triplet(jnp.zeros((2, 3)), jnp.zeros(3)),
        lambda: losses.smooth_l1(jnp.zeros((2, 3)), jnp.zeros((2, 1))),
        lambda: losses.feature_alignment([], []),
        lambda: losses.mutual_kl([jnp.zeros((2, 3))]),
        lambda: losses.mutual_kl([jnp.zeros((2, 3)), jnp.zeros((2, 4))]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match=r"expected .* found"):
        call()
