import hashlib

import numpy as np
import pytest

from crossres_jax import sampling

# Identity 0 has 9 images, 1 has 4, 2 has 2, 3 has 1, and so on; in mixed order.
COUNTS = {0: 9, 1: 4, 2: 2, 3: 1, 4: 6, 5: 5, 6: 12, 7: 3}
PIDS = np.random.default_rng(0).permutation(
    np.repeat(*zip(*COUNTS.items(), strict=True))
)
PK = {"num_ids": 3, "num_instances": 3}


def epoch_plan(seed, epoch, pids=PIDS, **pk):
    pk = pk or PK
    steps = sampling.steps_per_epoch(pids, **pk)
    first = epoch * steps
    return [
        sampling.plan_batch(seed, step, pids, **pk)
        for step in range(first, first + steps)
    ]


def test_batch_holds_p_distinct_identities_with_k_consecutive_images_each():
    for batch in epoch_plan(0, 0) + epoch_plan(0, 1):
        assert batch.shape == (9,) and batch.dtype == np.int32
        identities = PIDS[batch].reshape(3, 3)
        assert (identities == identities[:, :1]).all()
        assert len(set(identities[:, 0])) == 3


def test_image_of_a_large_identity_is_shown_at_most_once_per_epoch():
    shown = np.bincount(np.concatenate(epoch_plan(0, 0)), minlength=len(PIDS))
    large = np.isin(PIDS, [pid for pid, count in COUNTS.items() if count >= 3])
    assert shown[large].max() == 1


def test_identity_with_fewer_than_k_images_shows_each_of_them_then_repeats():
    groups = np.concatenate([epoch_plan(0, e) for e in range(4)]).reshape(-1, 3)
    for pid in (2, 3):
        mine = [set(group) for group in groups if PIDS[group[0]] == pid]
        assert mine and set.union(*mine) == set(np.flatnonzero(pid == PIDS))
        assert all(len(group) == COUNTS[pid] for group in mine)


def test_repeats_are_drawn_at_random():
    pids = np.array([5, 5, 6, 6])
    batches = [epoch_plan(0, e, pids, num_ids=2, num_instances=3)[0] for e in range(20)]
    assert {int(batch[2]) for batch in batches} == {0, 1, 2, 3}


def test_batch_depends_on_seed_and_step_alone():
    expected = epoch_plan(7, 1)
    sampling._plan_epoch.cache_clear()
    backwards = epoch_plan(7, 1)[::-1]
    np.testing.assert_array_equal(expected, backwards[::-1])
    assert not np.array_equal(expected, epoch_plan(8, 1))
    assert not np.array_equal(expected, epoch_plan(7, 2))
    assert len({batch.tobytes() for batch in expected}) == len(expected)


def test_batch_is_the_same_for_every_label_dtype():
    np.testing.assert_array_equal(
        sampling.plan_batch(0, 3, PIDS, **PK),
        sampling.plan_batch(0, 3, PIDS.astype(np.int32).tolist(), **PK),
    )


def test_steps_per_epoch_is_what_taking_the_fullest_identities_gives():
    rng = np.random.default_rng(1)
    for _ in range(50):
        counts = rng.integers(1, 20, size=rng.integers(4, 12))
        left = np.maximum(1, counts // 4)
        steps = 0
        while (left > 0).sum() >= 4:
            left[np.argsort(-left)[:4]] -= 1
            steps += 1
        pids = np.repeat(np.arange(len(counts)), counts)
        assert sampling.steps_per_epoch(pids, num_ids=4, num_instances=4) == steps


def test_every_seed_fills_every_batch_of_the_epoch():
    for seed in range(20):
        plan = epoch_plan(seed, 0, num_ids=4, num_instances=2)
        groups = np.stack(plan).reshape(-1, 2)
        assert (PIDS[groups[:, 0]] == PIDS[groups[:, 1]]).all()


def test_plan_is_the_same_on_every_machine():
    # Written in when the sampler was made: a change here breaks resumed runs.
    digest = hashlib.sha256(np.stack(epoch_plan(0, 0)).astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "abae00f3662ef670"
    assert sampling.plan_scales(0, 5, 8, (2, 3, 4)).tolist() == [3, 2, 3, 4, 4, 3, 3, 4]


def test_scales_are_drawn_evenly_and_anew_in_every_step():
    drawn = np.stack(
        [sampling.plan_scales(3, step, 24, (2, 3, 4)) for step in range(99)]
    )
    shares = [(drawn == scale).mean() for scale in (2, 3, 4)]
    # 2,376 draws: one standard deviation of a share is 0.0097.
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
    assert len({row.tobytes() for row in drawn}) == 99
    np.testing.assert_array_equal(drawn[5], sampling.plan_scales(3, 5, 24, (2, 3, 4)))


def test_random_bits_differ_by_seed_position_and_stream():
    bits = [
        sampling.random_bits(4, seed=seed, position=position, stream=stream).tobytes()
        for seed in (0, 1)
        for position in (0, 1)
        for stream in (0, 1)
    ]
    assert len(set(bits)) == 8


def test_num_repeating_counts_identities_with_fewer_than_k_images():
    assert sampling.num_repeating(PIDS, num_instances=3) == 2
    assert sampling.num_repeating(PIDS, num_instances=1) == 0


@pytest.mark.parametrize("pids", [[], [0, 0, 0], [0, 0, 1]])
def test_fewer_identities_than_p_is_refused(pids):
    with pytest.raises(ValueError, match=r"P=3 .* found \d"):
        sampling.plan_batch(0, 0, pids, **PK)
    with pytest.raises(ValueError, match="lower num_ids"):
        sampling.steps_per_epoch(pids, **PK)


def test_p_and_k_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        sampling.plan_batch(0, 0, PIDS, num_ids=0, num_instances=4)


def test_partners_are_different_images_of_the_same_identity():
    pids, partner_pids = np.repeat([4, 9, 2], 3), np.array([9, 4, 4, 4, 4, 9, 7])
    seen = set()
    for step in range(20):
        partners = sampling.plan_partners(0, step, pids, partner_pids)
        assert partners.dtype == np.int32
        assert (partners[pids == 2] == -1).all()
        assert len(set(partners[pids == 4])) == 3  # of four
        assert set(partners[pids == 9]) == {0, 5}  # both, and one again
        found = partners >= 0
        np.testing.assert_array_equal(partner_pids[partners[found]], pids[found])
        seen.add(tuple(partners))
        again = sampling.plan_partners(0, step, pids, partner_pids)
        np.testing.assert_array_equal(partners, again)
    assert len(seen) > 10


def test_draws_are_uniform_and_those_of_every_step_their_own():
    draws = sampling.plan_draws(3, 5, 500, 4)
    assert draws.shape == (500, 4) and draws.min() >= 0 and draws.max() < 1
    # 2,000 numbers: one standard deviation of the mean is 0.0065.
    np.testing.assert_allclose(draws.mean(), 0.5, atol=0.03)
    for other in (sampling.plan_draws(3, 6, 500, 4), sampling.plan_draws(4, 5, 500, 4)):
        assert (draws != other).all()
    # Not the numbers that order the partners.
    bits = sampling.random_bits(2000, seed=3, position=5, stream=7)
    assert (draws.ravel() != (bits >> np.uint64(11)) * 2.0**-53).all()
