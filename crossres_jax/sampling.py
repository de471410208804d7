"""Which images make up a batch: P×K and LR-scale plans as functions of (seed, step).

Nothing here keeps state, so that a run that starts again at step n sees exactly the
batches that an uninterrupted run sees. The only source of randomness is the raw output
of the Philox generator, whose bits are the same for every NumPy version and machine
(those of `Generator` methods are not guaranteed to be), ranked by a stable sort.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# Streams that keep different purposes apart under one seed; 0 is left to the caller.
_GROUPS, _REPEATS, _TIES, _BATCHES, _SCALES, _DRAWS, _PARTNERS = range(1, 8)


def random_bits(
    num: int, *, seed: int, position: int = 0, stream: int = 0
) -> np.ndarray:
    """Random 64-bit integers that depend on the arguments alone.

    Args:
      num: how many.
      seed: int, at least 0.
      position: int, at least 0: a step, an epoch or a split.
      stream: int, at least 0, which tells one purpose from another.

    Returns:
      (num,) uint64.
    """
    key = np.array([seed, position], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(num)


def permutation(
    num: int, *, seed: int, position: int = 0, stream: int = 0
) -> np.ndarray:
    """A random order of `range(num)`; arguments as for `random_bits`.

    Returns:
      (num,) int64.
    """
    bits = random_bits(num, seed=seed, position=position, stream=stream)
    return np.argsort(bits, kind="stable")


def num_repeating(pids: ArrayLike, *, num_instances: int) -> int:
    """Number of identities with fewer than K images, which a batch shows repeatedly.

    Args:
      pids: (N,) int identity labels.
      num_instances: K, images per identity in a batch.

    Returns:
      The number, at least 0.
    """
    _, counts = np.unique(np.asarray(pids), return_counts=True)
    return int((counts < num_instances).sum())


def steps_per_epoch(pids: ArrayLike, *, num_ids: int, num_instances: int) -> int:
    """Number of batches in one epoch; depends on the label counts alone.

    An identity with n images fills max(1, ⌊n/K⌋) groups, and a batch takes one group of
    each of P identities, so the answer is the largest T with Σ min(groups, T) ≥ P·T.

    Args:
      pids: (N,) int identity labels.
      num_ids: P, identities per batch.
      num_instances: K, images per identity in a batch.

    Returns:
      T, at least 1.

    Raises:
      ValueError: if there are fewer identities than P, or P or K is below 1.
    """
    pids = _checked(pids, num_ids, num_instances)
    _, counts = np.unique(pids, return_counts=True)
    groups = np.maximum(1, counts // num_instances)
    steps = np.arange(1, groups.sum() // num_ids + 1)
    enough = [np.minimum(groups, step).sum() >= num_ids * step for step in steps]
    return int(np.sum(enough))


def plan_batch(
    seed: int, step: int, pids: ArrayLike, *, num_ids: int, num_instances: int
) -> np.ndarray:
    """The images of one training batch: P distinct identities with K images each.

    The PK sampler of the field. In every epoch each identity's images are shuffled and
    cut into groups of K; what is left over rests until the next epoch. An identity with
    fewer than K images has one group: all of them, then repeats drawn at random. Each
    batch takes one group of the P identities that have the most groups left, ties
    broken at random, and the batches of the epoch are then shuffled. (The usual code
    draws the P identities at random until fewer than P are left, so that the length of
    an epoch varies; taking the fullest first makes it a constant, and the longest.)

    Args:
      seed: int, at least 0.
      step: int, at least 0, counted from the start of training;
        epoch = step // steps_per_epoch.
      pids: (N,) int identity labels of the training images.
      num_ids: P, identities per batch.
      num_instances: K, images per identity in a batch.

    Returns:
      (P·K,) int32 indices into `pids`; K consecutive entries share an identity.

    Raises:
      ValueError: if there are fewer identities than P, or P or K is below 1.
    """
    pids = _checked(pids, num_ids, num_instances)
    steps = _steps_per_epoch(pids.tobytes(), num_ids, num_instances)
    epoch, step = divmod(int(step), steps)
    return _plan_epoch(seed, epoch, pids.tobytes(), num_ids, num_instances)[step]


def plan_scales(seed: int, step: int, num: int, scales: Sequence[int]) -> np.ndarray:
    """A random down-sampling rate for each slot of a batch.

    Args:
      seed: int, at least 0.
      step: int, at least 0.
      num: number of slots.
      scales: the rates to draw from, such as (2, 3, 4).

    Returns:
      (num,) int32.
    """
    bits = random_bits(num, seed=seed, position=step, stream=_SCALES)
    return np.asarray(scales, np.int32)[bits % np.uint64(len(scales))]


def plan_draws(seed: int, step: int, num: int, num_draws: int) -> np.ndarray:
    """Uniform random numbers for the augmentation of each slot of a batch.

    Args:
      seed: int, at least 0.
      step: int, at least 0.
      num: number of slots.
      num_draws: how many numbers each of them needs.

    Returns:
      (num, num_draws) float64 in [0, 1).
    """
    bits = random_bits(num * num_draws, seed=seed, position=step, stream=_DRAWS)
    return (bits >> np.uint64(11)).reshape(num, num_draws) * 2.0**-53


def plan_partners(
    seed: int, step: int, pids: ArrayLike, partner_pids: ArrayLike
) -> np.ndarray:
    """For each slot of a batch another image of the same identity, from another list.

    The slots of an identity get different images as long as there are any, in an order
    that is drawn anew in every step; then the same ones again.

    Args:
      seed: int, at least 0.
      step: int, at least 0.
      pids: (B,) int identity labels of the slots.
      partner_pids: (N,) int identity labels of the images to choose from.

    Returns:
      (B,) int32 indices into `partner_pids`; −1 where it has none of the identity.
    """
    pids, partner_pids = np.asarray(pids), np.asarray(partner_pids)
    bits = random_bits(len(partner_pids), seed=seed, position=step, stream=_PARTNERS)
    partners = np.full(len(pids), -1, np.int32)
    for pid in np.unique(pids):
        slots, images = np.flatnonzero(pids == pid), np.flatnonzero(partner_pids == pid)
        if len(images):
            shuffled = images[np.argsort(bits[images], kind="stable")]
            partners[slots] = np.resize(shuffled, len(slots))
    return partners


def _checked(pids, num_ids, num_instances):
    pids = np.asarray(pids, np.int64)
    if num_ids < 1 or num_instances < 1:
        raise ValueError(
            "num_ids (P) and num_instances (K) must be at least 1, found "
            f"P={num_ids} and K={num_instances}."
        )
    if (found := len(np.unique(pids))) < num_ids:
        raise ValueError(
            f"A batch of P={num_ids} identities needs at least that many in training, "
            f"found {found}: lower num_ids or train on more identities."
        )
    return pids


@functools.lru_cache(maxsize=4)
def _steps_per_epoch(pids, num_ids, num_instances):
    pids = np.frombuffer(pids, np.int64)
    return steps_per_epoch(pids, num_ids=num_ids, num_instances=num_instances)


# The last epoch and the next may be wanted at the same time, in training and in tests.
@functools.lru_cache(maxsize=4)
def _plan_epoch(seed, epoch, pids, num_ids, num_instances):
    """(steps, P·K) int32: all batches of one epoch, from the bytes of int64 `pids`."""
    pids = np.frombuffer(pids, np.int64)
    groups = _cut_groups(seed, epoch, pids, num_instances)
    steps = steps_per_epoch(pids, num_ids=num_ids, num_instances=num_instances)

    left = np.array([len(group) for group in groups])
    ties = random_bits(
        steps * len(groups), seed=seed, position=epoch, stream=_TIES
    ).reshape(steps, len(groups))
    batches = []
    for step in range(steps):
        fullest = np.lexsort((ties[step], -left))[:num_ids]
        left[fullest] -= 1
        batches.append(np.concatenate([groups[i][left[i]] for i in fullest]))
    order = permutation(steps, seed=seed, position=epoch, stream=_BATCHES)
    plan = np.stack(batches)[order].astype(np.int32)
    plan.setflags(write=False)
    return plan


def _cut_groups(seed, epoch, pids, num_instances):
    """One (groups, K) array of indices into `pids` per identity, in random order."""
    bits = random_bits(len(pids), seed=seed, position=epoch, stream=_GROUPS)
    repeats = random_bits(
        len(pids) * num_instances, seed=seed, position=epoch, stream=_REPEATS
    ).reshape(len(pids), num_instances)
    order = np.lexsort((bits, pids))  # identity by identity, each one shuffled
    starts = np.flatnonzero(np.diff(pids[order])) + 1
    groups = []
    for images in np.split(order, starts):
        missing = num_instances - len(images)
        if missing > 0:
            again = repeats[images[0], :missing] % np.uint64(len(images))
            images = np.concatenate([images, images[again]])
        whole = len(images) // num_instances * num_instances
        groups.append(images[:whole].reshape(-1, num_instances))
    return groups
