"""Named cross-resolution protocols: who trains, who is searched, and what is LR.

A protocol is data. Together with the index of its data set it gives a `Plan`, the exact
list of images on each side, whose fingerprint (`manifest`) goes with every result.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from typing import Any, Literal, NamedTuple

import numpy as np

from crossres_jax import sampling
from input_pipeline.datasets import records

KERNELS = ("area", "bilinear", "bicubic", "lanczos")
SEARCHED = (("query", "gallery"), ("val_query", "val_gallery"))  # in each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Who trains, who is searched for, and which of their images are low-resolution.

    With `num_train` and `num_test`, identities are put in random order by (seed,
    split); the first `num_train` of them train and the next `num_test` are searched
    for. Without, they are those of the official split, to which the makers of the data
    set gave roles.

    With `lr_camera`, a multiple-low-resolution (MLR) set is made. On either side the
    images of `lr_camera` are low-resolution: the identities, in that order, are cut
    into as many equal parts as there are scales, and part i is down-sampled by
    `scales[i]`, as SING does (Jiao et al., AAAI 2018). Query are the test images of
    `lr_camera`, gallery those of all other cameras. Without, all images stay as they
    are, and query and gallery are the official ones, junk left out.

    With `val_ids`, so many of the training identities are held out, the same share of
    every scale. Their images become a query and a gallery on which a checkpoint can be
    chosen without a look at the test identities, which stay the same. Without an
    `lr_camera`, their query is the first image of each in each camera.
    """

    name: str
    dataset: str  # file in input_pipeline/datasets, perhaps "/" a TFDS config
    num_train: int | None = None  # identities
    num_test: int | None = None  # identities
    lr_camera: int | None = None
    scales: tuple[int, ...] = (2, 3, 4)
    kernel: str = "bicubic"  # of down-sampling, one of KERNELS
    seed: int = 0
    split: int = 0  # the number of the random split
    val_ids: int = 0  # training identities that are held out
    evaluation: Literal["single_shot", "multi_shot"] = "single_shot"  # of main scores


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
        # The official split, and the official evaluation with single queries.
        Protocol(
            name="market1501",
            dataset="market1501",
            scales=(1,),
            evaluation="multi_shot",
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
    val_query: Images  # of the held-out training identities; empty without any
    val_gallery: Images
    num_classes: int  # training identities


def make_plan(protocol: Protocol, index: records.Index) -> Plan:
    """Applies a protocol to the index of its data set.

    Args:
      protocol: a `Protocol`.
      index: `name`, `pid`, `camid`, `height`, `width`, `role` of every record, as in
        `input_pipeline.datasets.records.Index`.

    Returns:
      A `Plan`; the images of each side are in the order of the records.

    Raises:
      ValueError: if the data set has too few identities or no official split, if under
        an `lr_camera` a test or held-out identity has no image on either side, or if
        the kernel is unknown.
    """
    if protocol.kernel not in KERNELS:
        raise ValueError(
            f"Unknown kernel {protocol.kernel!r}: choose one of {', '.join(KERNELS)}."
        )
    official = protocol.num_train is None
    train_pids, test_pids = (_official if official else _draw)(protocol, index)
    scale_of = _cut_into_scales(train_pids, protocol.scales)
    scale_of |= _cut_into_scales(test_pids, protocol.scales)
    train_pids, val_pids = _hold_out(train_pids, protocol)
    label_of = {pid: label for label, pid in enumerate(sorted(train_pids.tolist()))}

    if protocol.lr_camera is None:
        is_query, degraded = _official_queries(index), np.full(len(index.pid), False)
    else:
        is_query = degraded = index.camid == protocol.lr_camera
    in_train, in_val, in_test = (
        np.isin(index.pid, pids) for pids in (train_pids, val_pids, test_pids)
    )

    def images(chosen):
        record = np.flatnonzero(chosen)
        pid = index.pid[record]
        scale = np.where(degraded[record], [scale_of[p] for p in pid.tolist()], 1)
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
        query=images(in_test & is_query),
        gallery=images(in_test & ~is_query),
        val_query=images(in_val & is_query),
        val_gallery=images(in_val & ~is_query),
        num_classes=len(train_pids),
    )
    if protocol.lr_camera is not None:
        _check_every_identity(plan, test_pids, ("query", "gallery"))
        _check_every_identity(plan, val_pids, ("val_query", "val_gallery"))
    return plan


def _draw(protocol, index):
    """(identities that train, that are tested), in the split's random order."""
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
    return train_pids, test_pids


def _official(protocol, index):
    """(identities that train, that are tested) by their roles, in random order.

    The gallery's distractors are among the tested ones, junk is not.
    """
    for role in ("train", "query", "gallery"):
        if role not in index.role:
            raise ValueError(
                f"Protocol {protocol.name} needs the official split of its data set, "
                f"found no image with the role {role} in {protocol.dataset}."
            )
    if protocol.split != 0:
        raise ValueError(
            f"Protocol {protocol.name} has one split, the official one: split must be "
            f"0, found {protocol.split}."
        )
    trains = index.role == "train"
    parts = (
        np.unique(index.pid[part & (index.pid >= 0)]) for part in (trains, ~trains)
    )
    return tuple(
        pids[sampling.permutation(len(pids), seed=protocol.seed)] for pids in parts
    )


def _official_queries(index):
    """(N,) bool: official queries; of who trains, one image in each camera, too."""
    seen = np.stack([index.pid, index.camid])
    _, first = np.unique(seen, axis=1, return_index=True)
    is_first = np.isin(np.arange(len(index.pid)), first)
    return np.where(index.role == "train", is_first, index.role == "query")


def _hold_out(train_pids, protocol):
    """(identities that train, identities held out), both in the split's order."""
    num_train, num_held_out = len(train_pids), protocol.val_ids
    if num_held_out == 1:
        raise ValueError(
            "val_ids must be 0 or at least 2, found 1: a single identity is always "
            "found among itself."
        )
    if num_held_out > num_train - 2:
        raise ValueError(
            f"val_ids holds out {num_held_out} of {num_train} training identities, and "
            "at least two must be left to train on."
        )
    # The order is random, and equally long stretches of it have the same scale.
    chosen = np.arange(num_held_out) * num_train // max(num_held_out, 1)
    held_out = np.isin(np.arange(num_train), chosen)
    return train_pids[~held_out], train_pids[held_out]


def _check_every_identity(plan, pids, sides):
    for side in sides:
        missing = np.setdiff1d(pids, getattr(plan, side).pid)
        if len(missing):
            raise ValueError(
                f"Protocol {plan.protocol.name} needs an image of every identity that "
                f"is searched for in {side}, found none of the identities "
                f"{_some(missing.tolist())}."
            )


def check_disjoint(plan: Plan, sha256: np.ndarray) -> None:
    """Checks that nothing of one side is seen on another where it must not be.

    Args:
      plan: a `Plan`.
      sha256: (N,) str digest of the encoded bytes of every record.

    Raises:
      ValueError: if two of the three groups of identities (training, held out, test)
        share one, or if two sides share an image: the same record, or another record
        of the same bytes.
    """
    for one, other in itertools.combinations(_sides(plan), 2):
        a, b = getattr(plan, one), getattr(plan, other)
        shared = np.intersect1d(a.pid, b.pid)
        if len(shared) and (one, other) not in SEARCHED:
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the identities "
                f"{_some(shared.tolist())} are both in {one} and in {other}."
            )
        in_both = np.isin(sha256[a.record], sha256[b.record])
        if in_both.any():
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the images "
                f"{_some(a.name[in_both].tolist())} of {one} are also in {other}, "
                "as the same file or under another name with the same bytes."
            )


def _sides(plan):
    """Names of the sides that have images."""
    return [
        name
        for name, side in plan._asdict().items()
        if isinstance(side, Images) and len(side.pid)
    ]


def manifest(plan: Plan) -> dict[str, Any]:
    """What exactly was trained and tested on, as a JSON-able dict.

    Its `sha256` covers the protocol's fields except `val_ids` (the sides of the images
    tell who is held out) and, for every image, side, name, pid, camid, scale and size,
    but no pixels: equal hashes mean equal protocols. How the ranking is scored is not
    part of it; the results say that.

    Args:
      plan: a `Plan`.

    Returns:
      `protocol`, its fields; `counts`, by side, of identities and images and of images
      by camera and by scale; `sha256`, in hexadecimal digits.
    """
    fields = dataclasses.asdict(plan.protocol)
    del fields["evaluation"]
    sides = {side: getattr(plan, side) for side in _sides(plan)}
    lines = [
        f"{side} {name} {pid} {camid} x{scale} {width}x{height}"
        for side, images in sides.items()
        for name, pid, camid, scale, width, height in zip(
            *(images.name, images.pid, images.camid, images.scale),
            *(images.width, images.height),
            strict=True,
        )
    ]
    # The lines tell who is held out, and the hash stays the same where nobody is.
    head = {name: value for name, value in fields.items() if name != "val_ids"}
    text = "\n".join([json.dumps(head, sort_keys=True), *sorted(lines)])
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
