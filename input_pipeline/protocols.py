"""Named cross-resolution protocols: who trains, who is searched, and what is LR.

A protocol is data. Together with the index of its data set it gives a `Plan`, the exact
list of images on each side, whose fingerprint (`manifest`) goes with every result.
"""

import collections
import dataclasses
import hashlib
import json
from typing import NamedTuple

import numpy as np

from crossres_jax import sampling

KERNELS = ("area", "bilinear", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a multiple-low-resolution (MLR) set is made of a data set.

    Identities are put in random order by (seed, split). The first `num_train` of them
    train and the next `num_test` are searched for. On either side the images of
    `lr_camera` are low-resolution: the identities, in that order, are cut into as many
    equal parts as there are scales, and part i is down-sampled by `scales[i]`, as SING
    does (Jiao et al., AAAI 2018). Query are the test images of `lr_camera`, gallery
    those of all other cameras.
    """

    name: str
    dataset: str  # file in input_pipeline/datasets, perhaps "/" a TFDS config
    num_train: int  # identities
    num_test: int  # identities
    lr_camera: int
    scales: tuple[int, ...] = (2, 3, 4)
    kernel: str = "bicubic"  # of down-sampling, one of KERNELS
    seed: int = 0
    split: int = 0  # the number of the random split


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="mlr_pedestrians",
            dataset="pedestrians",
            num_train=160,
            num_test=160,
            lr_camera=0,
        ),
        # For tests: drawn and stored within a second.
        Protocol(
            name="mlr_pedestrians_tiny",
            dataset="pedestrians/tiny",
            num_train=8,
            num_test=4,
            lr_camera=0,
        ),
        # Half of the identities, ten splits (0 to 9); cam_a is the LR side as in SING.
        Protocol(
            name="mlr_viper",
            dataset="viper",
            num_train=316,
            num_test=316,
            lr_camera=0,
        ),
    )
}


class Images(NamedTuple):
    """One side of a protocol, one row per image."""

    record: np.ndarray  # (N,) int64 position in the records of the data set
    name: np.ndarray  # (N,) str
    pid: np.ndarray  # (N,) int64 the data set's own identity numbers
    label: np.ndarray  # (N,) int32 0..M−1 on the training side, −1 on the others
    camid: np.ndarray  # (N,) int32
    scale: np.ndarray  # (N,) int32 down-sampling rate; 1 where not degraded
    height: np.ndarray  # (N,) int32 pixels of the image in the MLR set: ⌊h/scale⌋
    width: np.ndarray  # (N,) int32 ⌊w/scale⌋
    has_hr: np.ndarray  # (N,) bool whether an HR original of it exists


class Plan(NamedTuple):
    """A protocol applied to a data set."""

    protocol: Protocol
    train: Images
    query: Images
    gallery: Images
    num_classes: int  # training identities


def make_plan(protocol, index):
    """Applies a protocol to the index of its data set.

    Args:
      protocol: a `Protocol`.
      index: `name`, `pid`, `camid`, `height`, `width` of every record, as in
        `input_pipeline.datasets.records.Index`.

    Returns:
      A `Plan`; the images of each side are in the order of the records.

    Raises:
      ValueError: if the data set has too few identities, a test identity without an
        image on either side, or the kernel is unknown.
    """
    if protocol.kernel not in KERNELS:
        raise ValueError(
            f"Unknown kernel {protocol.kernel!r}: choose one of {', '.join(KERNELS)}."
        )
    identities = np.unique(index.pid)
    if len(identities) < protocol.num_train + protocol.num_test:
        raise ValueError(
            f"Protocol {protocol.name} needs {protocol.num_train} training and "
            f"{protocol.num_test} test identities, found {len(identities)} in the data "
            f"set {protocol.dataset}."
        )
    order = sampling.permutation(
        len(identities), seed=protocol.seed, position=protocol.split
    )
    train_pids, test_pids, _ = np.split(
        identities[order],
        [protocol.num_train, protocol.num_train + protocol.num_test],
    )
    in_lr_camera = index.camid == protocol.lr_camera
    in_train = np.isin(index.pid, train_pids)
    in_test = np.isin(index.pid, test_pids)

    scale_of = _cut_into_scales(train_pids, protocol.scales)
    scale_of |= _cut_into_scales(test_pids, protocol.scales)
    label_of = {pid: label for label, pid in enumerate(sorted(train_pids.tolist()))}

    def images(chosen):
        record = np.flatnonzero(chosen)
        pid = index.pid[record]
        degraded = in_lr_camera[record]
        scale = np.where(degraded, [scale_of[p] for p in pid.tolist()], 1)
        return Images(
            record=record,
            name=index.name[record],
            pid=pid,
            label=np.array([label_of.get(p, -1) for p in pid.tolist()], np.int32),
            camid=index.camid[record].astype(np.int32),
            scale=scale.astype(np.int32),
            height=(index.height[record] // scale).astype(np.int32),
            width=(index.width[record] // scale).astype(np.int32),
            has_hr=np.full(len(record), True),
        )

    plan = Plan(
        protocol=protocol,
        train=images(in_train),
        query=images(in_test & in_lr_camera),
        gallery=images(in_test & ~in_lr_camera),
        num_classes=len(train_pids),
    )
    _check_every_identity(plan, test_pids)
    return plan


def _check_every_identity(plan, test_pids):
    for side in ("query", "gallery"):
        missing = np.setdiff1d(test_pids, getattr(plan, side).pid)
        if len(missing):
            raise ValueError(
                f"Protocol {plan.protocol.name} needs an image of every test identity "
                f"in {side}, found none of the identities {_some(missing.tolist())}."
            )


def check_disjoint(plan, sha256):
    """Checks that nothing of the test sides is seen in training, nor twice in testing.

    Args:
      plan: a `Plan`.
      sha256: (N,) str digest of the encoded bytes of every record.

    Raises:
      ValueError: if an identity is on both the training and a test side, or if two
        sides share an image: the same record, or another record of the same bytes.
    """
    for side in ("query", "gallery"):
        shared = np.intersect1d(plan.train.pid, getattr(plan, side).pid)
        if len(shared):
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the identities "
                f"{_some(shared.tolist())} are both in train and in {side}."
            )
    for one, other in (("train", "query"), ("train", "gallery"), ("query", "gallery")):
        a, b = getattr(plan, one), getattr(plan, other)
        in_both = np.isin(sha256[a.record], sha256[b.record])
        if in_both.any():
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the images "
                f"{_some(a.name[in_both].tolist())} of {one} are also in {other}, "
                "as the same file or under another name with the same bytes."
            )


def manifest(plan):
    """What exactly was trained and tested on, as a JSON-able dict.

    Its `sha256` covers the protocol's fields and, for every image, side, name, pid,
    camid, scale and size, but no pixels: equal hashes mean equal protocols.
    """
    fields = dataclasses.asdict(plan.protocol)
    sides = {side: getattr(plan, side) for side in ("train", "query", "gallery")}
    lines = [
        f"{side} {name} {pid} {camid} x{scale} {width}x{height}"
        for side, images in sides.items()
        for name, pid, camid, scale, width, height in zip(
            *(images.name, images.pid, images.camid, images.scale),
            *(images.width, images.height),
            strict=True,
        )
    ]
    text = "\n".join([json.dumps(fields, sort_keys=True), *sorted(lines)])
    counts = {
        side: {
            "identities": len(np.unique(images.pid)),
            "images": len(images.pid),
            "cameras": _count(images.camid),
            "scales": _count(images.scale),
        }
        for side, images in sides.items()
    }
    return {
        "protocol": fields,
        "counts": counts,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _cut_into_scales(pids, scales):
    """{pid: scale}: equal parts of `pids`, in their order, one for each scale."""
    parts = np.array_split(pids, len(scales))
    return {
        pid: scale
        for part, scale in zip(parts, scales, strict=True)
        for pid in part.tolist()
    }


def _count(values):
    """{value: how often}, with text keys as JSON wants them, in ascending order."""
    counts = collections.Counter(values.tolist())
    return {str(value): counts[value] for value in sorted(counts)}


def _some(things):
    """The first few of a list, for an error message."""
    rest = f" and {len(things) - 5} more" if len(things) > 5 else ""
    return ", ".join(str(thing) for thing in things[:5]) + rest
