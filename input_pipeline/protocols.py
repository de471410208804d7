"""Named cross-resolution protocols: who trains, who is searched, and what is LR.

A protocol is data. Together with the index of its data set it gives a `Plan`, the exact
list of images on each side, whose fingerprint (`manifest`) goes with every result.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from crossres_jax import sampling
from input_pipeline.datasets import records

LowResolution = Literal[
    "none", "camera", "half", "per_identity", "real", "stored", "all"
]
KERNELS = ("area", "bilinear", "bicubic", "lanczos")
SEARCHED = (("query", "gallery"), ("val_query", "val_gallery"))  # in each other
AS_THEY_ARE = ("real", "stored")  # low-resolution images that nothing degrades
_KNOWN = {
    "low_resolution": get_args(LowResolution),
    "rate": ("per_identity", "per_image"),
    "kernel": KERNELS,
    "rounding": ("floor", "nearest", "ceil"),
    "evaluation": ("single_shot", "multi_shot"),
}
# Streams of random numbers; the order of the identities has stream 0.
_LOW, _RATES, _SHOTS = range(1, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Who trains, who is searched for, and which of their images are low-resolution.

    *Identities.* With `num_train` and `num_test`, identities are put in random order by
    (seed, split); the first `num_train` of them train and the next `num_test` are
    searched for. Without, they are those of an official split, to which the makers of
    the data set gave roles; where there are several, `split` is its number, and where
    there is none, one half of the identities trains. Junk (identities below 0) is never
    used.

    *Low resolution.* `low_resolution` says which images are low-resolution:
      "none": none of them;
      "camera": those of `lr_cameras`;
      "half": half of the images of each identity, drawn (JBIM's MLR-Market-1501);
      "per_identity": those of one camera of each identity, drawn;
      "real": those of the camera whose images are the smaller ones in the mean, as they
        are; identities that it or the others do not see are set aside (CAVIAR);
      "stored": those that `records.Pairs` tells, as they are, perhaps restored, with
        originals that are stored beside them;
      "all": all of them.
    Query are then the low-resolution test images, gallery the others. Under "none",
    "stored" and "all", query and gallery are the official ones; where there are none,
    and all images are alike, the first of each identity in each camera is a query.

    *Degradation.* Low-resolution images that are neither real nor stored are
    down-sampled, at a rate of `scales`, which are dealt out in equal shares:
    "per_image", or "per_identity", where the identities, in their order, are cut into
    equal parts (SING; Jiao et al., AAAI 2018). One scale is everybody's. With `widths`,
    equal shares get these widths in pixels instead, but never more than their own.

    With `val_ids`, so many of the training identities are held out, the same share of
    every scale. Their images become a query and a gallery on which a checkpoint can be
    chosen without a look at the test identities, which stay the same.
    """

    name: str
    dataset: str  # file in input_pipeline/datasets, perhaps "/" a TFDS config
    num_train: int | None = None  # identities
    num_test: int | None = None  # identities
    tested: tuple[str, ...] = ("query", "gallery", "test", "distractor")  # roles
    num_shots: int = 0  # images of an identity in a camera, drawn; 0: all
    low_resolution: LowResolution = "camera"
    lr_cameras: tuple[int, ...] = ()
    rate: Literal["per_identity", "per_image"] = "per_image"
    scales: tuple[int, ...] = (2, 3, 4)
    widths: tuple[int, ...] = ()  # pixels
    kernel: str = "bicubic"  # of down-sampling, one of KERNELS
    rounding: Literal["floor", "nearest", "ceil"] = "floor"  # of the sizes
    blur: float = 0.0  # before it: standard deviation in pixels of the original
    jpeg_quality: int = 0  # 1 to 95, of the stored image; 0: lossless
    seed: int = 0
    split: int = 0  # the number of the split
    val_ids: int = 0  # training identities that are held out
    evaluation: Literal["single_shot", "multi_shot"] = "single_shot"  # of main scores
    num_draws: int = 100  # galleries of the single-shot scores; 0: no such scores

    def __post_init__(self):
        for field, known in _KNOWN.items():
            if (found := getattr(self, field)) not in known:
                raise ValueError(
                    f"Protocol {self.name}: {field} must be one of "
                    f"{', '.join(known)}, found {found!r}."
                )
        for field in ("lr_cameras", "scales", "widths"):
            found = getattr(self, field)
            if not all(isinstance(number, int) for number in found):
                raise ValueError(
                    f"Protocol {self.name}: {field} must be whole numbers, as in "
                    f"(2, 3), found {found}."
                )
        if self.low_resolution == "camera" and not self.lr_cameras:
            raise ValueError(
                f"Protocol {self.name} does not know which cameras are low-resolution: "
                'name them, as in lr_cameras="(1,)".'
            )
        if self.lr_cameras and self.low_resolution != "camera":
            raise ValueError(
                f"Protocol {self.name} does not look at lr_cameras, found "
                f"{self.lr_cameras}: its low_resolution is {self.low_resolution}."
            )
        for field, unused in self._unused().items():
            default = type(self).__dataclass_fields__[field].default
            if unused and getattr(self, field) != default:
                raise ValueError(
                    f"Protocol {self.name} does not look at {field}, found "
                    f"{getattr(self, field)!r}: {unused}."
                )
        if not self.scales or min(self.scales) < 1:
            raise ValueError(
                f"Protocol {self.name}: scales must be whole numbers from 1 on, found "
                f"{self.scales}."
            )
        if not (0 <= self.jpeg_quality <= 95 and self.blur >= 0):
            raise ValueError(
                f"Protocol {self.name}: jpeg_quality must be from 0 to 95 and blur not "
                f"negative, found {self.jpeg_quality} and {self.blur}."
            )
        if self.evaluation == "single_shot" and self.num_draws < 1:
            raise ValueError(
                f"Protocol {self.name}: single-shot scores need num_draws of at least "
                f"1, found {self.num_draws}."
            )

    def _unused(self):
        """{field: why it would change nothing, or ""}."""
        nothing = self.low_resolution == "none"
        plain = set(self.scales) == {1} and not (
            self.widths or self.blur or self.jpeg_quality
        )
        undealt = nothing or self.low_resolution in AS_THEY_ARE
        return {
            "rate": "no rates are dealt out" if undealt else "",
            "blur": "nothing is degraded" if nothing else "",
            "jpeg_quality": "nothing is degraded" if nothing else "",
            "kernel": "nothing is down-sampled" if plain else "",
            "rounding": "nothing is down-sampled" if plain else "",
        }


# Market-1501's official evaluation ranks every image of the gallery.
_OFFICIAL = Protocol(
    name="",
    dataset="",
    low_resolution="none",
    scales=(1,),
    evaluation="multi_shot",
    num_draws=0,
)
_VIPER = Protocol(
    name="mlr_viper",
    dataset="viper",
    num_train=316,
    num_test=316,
    lr_cameras=(0,),  # cam_a, as in SING
    rate="per_identity",  # as in SING
)
# Five pairs of cameras, of each of which the first view is low-resolution.
_CUHK03 = Protocol(
    name="mlr_cuhk03", dataset="cuhk03/detected", lr_cameras=(0, 2, 4, 6, 8)
)
# PS-HRNet prints 2,825 queries against 10,290 gallery images; camera 3 comes nearest,
# with 2,822 against 10,293, where the official queries and the distractors are left
# out. "The same rate" for all, as PS-HRNet and DGRL write, is scales=(2,), (3,) or
# (4,): they do not say which.
_MARKET = Protocol(
    name="mlr_market1501",
    dataset="market1501",
    tested=("gallery",),
    lr_cameras=(3,),
    evaluation="multi_shot",
)
# FFSR+RIFE, sec. 4.1: all images get a width from 12 to 32 pixels.
_VARYING = dataclasses.replace(
    _OFFICIAL,
    low_resolution="all",
    widths=tuple(range(12, 33)),
    scales=(2, 3, 4),  # of synthetic copies
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="mlr_pedestrians",
            dataset="pedestrians",
            num_train=160,
            num_test=160,
            lr_cameras=(0,),
            rate="per_identity",
        ),
        # For tests: drawn and stored within a second.
        Protocol(
            name="mlr_pedestrians_tiny",
            dataset="pedestrians/tiny",
            num_train=8,
            num_test=4,
            lr_cameras=(0,),
            rate="per_identity",
        ),
        _VIPER,
        dataclasses.replace(_VIPER, name="viper", scales=(1,)),
        Protocol(
            name="caviar",
            dataset="caviar",
            num_train=25,
            num_test=25,
            low_resolution="real",
            scales=(2, 3, 4),  # of synthetic copies
        ),
        _CUHK03,
        dataclasses.replace(
            _CUHK03, name="mlr_cuhk03_labelled", dataset="cuhk03/labelled"
        ),
        dataclasses.replace(_CUHK03, name="mlr_cuhk03_merged", dataset="cuhk03/merged"),
        dataclasses.replace(
            _OFFICIAL, name="cuhk03_labelled", dataset="cuhk03/labelled_767"
        ),
        dataclasses.replace(
            _OFFICIAL, name="cuhk03_detected", dataset="cuhk03/detected_767"
        ),
        _MARKET,
        # JBIM, sec. 4.1: half of the images of a person; single-shot.
        dataclasses.replace(
            _MARKET,
            name="mlr_market1501_half",
            tested=("query", "gallery"),
            low_resolution="half",
            lr_cameras=(),
            evaluation="single_shot",
        ),
        # VPFA's code: one random camera of each identity.
        dataclasses.replace(
            _MARKET,
            name="mlr_market1501_per_id",
            tested=("query", "gallery"),
            low_resolution="per_identity",
            lr_cameras=(),
            kernel="lanczos",
        ),
        # PRPR's code: camera 1, against everything else, distractors included.
        dataclasses.replace(
            _MARKET,
            name="mlr_market1501_c1",
            tested=("query", "gallery", "distractor"),
            lr_cameras=(1,),
            kernel="bilinear",
            jpeg_quality=95,  # OpenCV's
            num_draws=0,  # the distractors are no identity to draw one image of
        ),
        dataclasses.replace(_OFFICIAL, name="market1501", dataset="market1501"),
        dataclasses.replace(_VARYING, name="vr_market1501", dataset="market1501"),
        # PS-HRNet draws a camera and does not say which.
        dataclasses.replace(
            _MARKET, name="mlr_dukemtmc", dataset="dukemtmc", lr_cameras=(1,)
        ),
        dataclasses.replace(_OFFICIAL, name="dukemtmc", dataset="dukemtmc"),
        dataclasses.replace(_OFFICIAL, name="msmt17", dataset="msmt17/v1"),
        dataclasses.replace(_OFFICIAL, name="msmt17_v2", dataset="msmt17/v2"),
        dataclasses.replace(_VARYING, name="vr_msmt17", dataset="msmt17/v1"),
        # SYSU (Chen et al., TCSVT 2017) by way of a table.
        Protocol(
            name="mlr_sysu",
            dataset="folder",
            num_train=251,
            num_test=251,
            num_shots=3,
            lr_cameras=(1,),
        ),
        # Anyone's own data: the table's split, or half of the identities.
        dataclasses.replace(_OFFICIAL, name="folder", dataset="folder"),
        Protocol(name="mlr_folder", dataset="folder", lr_cameras=(1,)),
        # Pictures that were restored once, with their originals.
        Protocol(
            name="paired_folder",
            dataset="folder",
            low_resolution="stored",
            scales=(2, 3, 4),  # of synthetic copies
        ),
    )
}


class Images(NamedTuple):
    """One side of a protocol, one row per image."""

    record: np.ndarray  # (N,) int64 position in the records of the data set
    original: np.ndarray  # (N,) int64 position of its HR original; that of the image
    # itself where it is the original, is degraded from it or has none
    name: np.ndarray  # (N,) str
    pid: np.ndarray  # (N,) int64 the data set's own identity numbers
    label: np.ndarray  # (N,) int32 0..M−1 on the training side, −1 on the others
    camid: np.ndarray  # (N,) int32; −1 where cameras are not known
    low: np.ndarray  # (N,) bool whether it is low-resolution
    has_hr: np.ndarray  # (N,) bool whether an HR original of it exists
    scale: (
        np.ndarray
    )  # (N,) float32, at least 1: how much smaller than its HR original,
    # or, where there is none, than the training side's HR images in the mean; of a
    # stored image as its data set says
    height: np.ndarray  # (N,) int32 pixels of the image in the MLR set
    width: np.ndarray  # (N,) int32


class Plan(NamedTuple):
    """A protocol applied to a data set."""

    protocol: Protocol
    train: Images
    query: Images
    gallery: Images
    val_query: Images  # of the held-out training identities; empty without any
    val_gallery: Images
    num_classes: int  # training identities
    num_set_aside: int  # identities on no side


def make_plan(
    protocol: Protocol, index: records.Index, pairs: records.Pairs | None = None
) -> Plan:
    """Applies a protocol to the index of its data set.

    Args:
      protocol: a `Protocol`.
      index: `name`, `pid`, `camid`, `height`, `width`, `role` of every record, as in
        `input_pipeline.datasets.records.Index`.
      pairs: which images are stored as low-resolution ones, and their originals; only
        looked at by a protocol whose low_resolution is "stored".

    Returns:
      A `Plan`; the images of each side are in the order of the records.

    Raises:
      ValueError: if the data set has too few identities, no such official split, no
        camera numbers or no low-resolution images where they are needed, or if an
        identity that may be drawn has no image of high or none of low resolution.
    """
    official = (~np.isin(index.role, ("", "original"))).any()
    if official and protocol.num_train is not None:
        raise ValueError(
            f"Protocol {protocol.name} draws who trains, and {protocol.dataset} says "
            "so itself: take the split out of it, or choose another protocol."
        )
    role = _roles(protocol, index) if official else index.role
    used = index.pid >= 0
    if official:
        used &= np.isin(role, ("train", *protocol.tested))
    if protocol.num_shots:
        used &= _draw_shots(protocol, index)
    used = np.flatnonzero(used)
    identities = np.unique(index.pid[(index.pid >= 0) & (role != "distractor")])
    index, role = records.Index(*(column[used] for column in index)), role[used]

    original, scale = used, np.ones(len(used))
    if protocol.low_resolution == "stored" and pairs:
        original, scale = pairs.original[used], pairs.scale[used]
    low = _is_low(protocol, index, (original != used) | (scale > 1))
    distractor = role == "distractor"
    known = np.intersect1d(index.pid[distractor], index.pid[~distractor])
    if len(known):
        raise ValueError(
            f"Protocol {protocol.name} needs distractors to be nobody else, found the "
            f"identities {_some(known.tolist())} under other roles, too, in "
            f"{protocol.dataset}."
        )
    if protocol.low_resolution not in ("stored", "all"):
        low &= ~distractor  # they are in the gallery, whatever their camera
    if official:
        train_pids, test_pids = _official(protocol, index, role)
    else:
        train_pids, test_pids = _draw(protocol, _candidates(protocol, index, low))
    set_aside = np.setdiff1d(identities, np.append(train_pids, test_pids))
    in_train, in_test = (np.isin(index.pid, pids) for pids in (train_pids, test_pids))

    is_query = low
    if protocol.low_resolution in ("none", "all"):
        is_query = _first_of_each_camera(index)
    if protocol.low_resolution in ("none", "stored", "all"):
        told = np.isin(role, ("query", "gallery", "distractor"))
        is_query = np.where(told, role == "query", is_query)
    size = np.stack([index.height, index.width])
    if protocol.low_resolution == "real":
        scale[low] = _real_scale(size, low, in_train & ~low)
    elif protocol.low_resolution != "stored":
        for part, pids in (
            (in_train, train_pids),
            (in_test & is_query, test_pids),
            (in_test & ~is_query, test_pids),
        ):
            rows = np.flatnonzero(part & low)
            size[:, rows], scale[rows] = _down_sampled(protocol, index, rows, pids)
        if not (protocol.blur or protocol.jpeg_quality):
            low = low & (scale > 1)

    train_pids, val_pids = _hold_out(train_pids, protocol)
    in_val = np.isin(index.pid, val_pids)
    label_of = {pid: label for label, pid in enumerate(sorted(train_pids.tolist()))}
    has_hr = ~low | (original != used) | (protocol.low_resolution not in AS_THEY_ARE)

    def images(chosen):
        rows = np.flatnonzero(chosen)
        pid = index.pid[rows]
        return Images(
            record=used[rows],
            original=original[rows],
            name=index.name[rows],
            pid=pid,
            label=np.array([label_of.get(p, -1) for p in pid.tolist()], np.int32),
            camid=index.camid[rows].astype(np.int32),
            low=low[rows],
            has_hr=has_hr[rows],
            scale=scale[rows].astype(np.float32),
            height=size[0, rows].astype(np.int32),
            width=size[1, rows].astype(np.int32),
        )

    return Plan(
        protocol=protocol,
        train=images(in_train & ~in_val),
        query=images(in_test & is_query),
        gallery=images(in_test & ~is_query),
        val_query=images(in_val & is_query),
        val_gallery=images(in_val & ~is_query),
        num_classes=len(train_pids),
        num_set_aside=len(set_aside),
    )


def down_sample(size: np.ndarray, scale: np.ndarray | int, rounding: str) -> np.ndarray:
    """Sizes after down-sampling by whole rates; integer arithmetic alone.

    Args:
      size: (...) int, pixels.
      scale: (...) int, at least 1.
      rounding: "floor", "nearest" (halves up) or "ceil".

    Returns:
      (...) int, at least 1.
    """
    return _multiplied(size, 1, scale, rounding)


def at_resolution(images: Images, resolution: Fraction, rounding: str) -> Images:
    """Images that are all stored at a fraction of their originals' sides.

    The originals of low-resolution images are as large as size and rate tell, which is
    a pixel or two less than they are where the rate does not divide them.

    Args:
      images: with an original each.
      resolution: above 0, at most 1.
      rounding: of the sizes, see `down_sample`.

    Returns:
      Images; at 1 none is low-resolution.

    Raises:
      ValueError: if the resolution is out of range.
    """
    if not 0 < resolution <= 1:
        raise ValueError(
            f"expected a resolution above 0 and up to 1, found {resolution}."
        )
    numerator, denominator = resolution.as_integer_ratio()
    original = (
        np.rint(side * images.scale).astype(np.int32)
        for side in (images.height, images.width)
    )
    height, width = (
        _multiplied(side, numerator, denominator, rounding) for side in original
    )
    return images._replace(
        low=np.full_like(images.low, resolution < 1),
        scale=np.full_like(images.scale, 1 / resolution),
        height=height,
        width=width,
    )


def _multiplied(size, numerator, denominator, rounding):
    """`size` · numerator / denominator in whole pixels, at least 1."""
    extra = {"floor": 0, "nearest": denominator // 2, "ceil": denominator - 1}
    return np.maximum((size * numerator + extra[rounding]) // denominator, 1)


def _roles(protocol, index):
    """(N,) str: the roles in the official split of that number."""
    words = np.array([role.split(" ") for role in index.role])  # (N, splits)
    if protocol.split >= words.shape[1]:
        raise ValueError(
            f"Protocol {protocol.name} has {words.shape[1]} official split(s): split "
            f"must be below that, found {protocol.split}."
        )
    role = words[:, protocol.split]
    for expected in (("train",), protocol.tested):
        if not np.isin(role, expected).any():
            raise ValueError(
                f"Protocol {protocol.name} needs the official split of its data set, "
                f"found no image with the role {' or '.join(expected)} in "
                f"{protocol.dataset}."
            )
    return role


def _random_bits(protocol, index, stream):
    """(N,) uint64, one for each image, which do not depend on the images' order."""
    bits = np.empty(len(index.name), np.uint64)
    bits[np.argsort(index.name)] = sampling.random_bits(
        len(bits), seed=protocol.seed, position=protocol.split, stream=stream
    )
    return bits


def _rank_within(groups, bits):
    """(N,) int: the place of each row in its group, in the order of `bits`."""
    rank, seen = np.empty(len(bits), int), collections.Counter()
    for row in np.argsort(bits, kind="stable"):
        group = tuple(column[row] for column in groups)
        rank[row] = seen[group]
        seen[group] += 1
    return rank


def _draw_shots(protocol, index):
    """(N,) bool: `num_shots` images of each identity in each camera."""
    bits = _random_bits(protocol, index, _SHOTS)
    return _rank_within((index.pid, index.camid), bits) < protocol.num_shots


def _is_low(protocol, index, stored):
    """(N,) bool: which images are low-resolution, given which are stored as such."""
    which, num_images = protocol.low_resolution, len(index.pid)
    if which in ("camera", "per_identity", "real") and (index.camid < 0).any():
        raise ValueError(
            f"Protocol {protocol.name} needs to know the camera of every image, found "
            f"{index.name[index.camid < 0][0]} without one. Tell the cameras in the "
            "table's column camid or in the pattern, or choose a protocol whose "
            "low_resolution is none, half, stored or all."
        )
    if which == "stored":
        if not stored.any():
            raise ValueError(
                f"Protocol {protocol.name} found no low-resolution picture in "
                f"{protocol.dataset}: tell them in the table's columns scale and "
                "original, or choose another protocol, such as folder or mlr_folder."
            )
        return stored
    if which == "none":
        return np.full(num_images, False)
    if which == "all":
        return np.full(num_images, True)
    if which == "camera":
        if unseen := sorted({*protocol.lr_cameras} - {*index.camid.tolist()}):
            raise ValueError(
                f"Protocol {protocol.name} found no image of the lr_cameras "
                f"{_some(unseen)} in {protocol.dataset}; choose among "
                f"{_some(np.unique(index.camid).tolist())}."
            )
        return np.isin(index.camid, protocol.lr_cameras)
    if which == "real":
        return index.camid == _camera_of_the_smaller(protocol, index)
    if which == "half":
        rank = _rank_within((index.pid,), _random_bits(protocol, index, _LOW))
        counts = collections.Counter(index.pid.tolist())
        return rank < [counts[pid] // 2 for pid in index.pid.tolist()]
    cameras = np.unique(np.stack([index.pid, index.camid]), axis=1)  # (2, pairs)
    bits = sampling.random_bits(
        cameras.shape[1], seed=protocol.seed, position=protocol.split, stream=_LOW
    )
    first = _rank_within(cameras[:1], bits) == 0
    chosen = dict(cameras[:, first].T.tolist())
    return index.camid == [chosen[pid] for pid in index.pid.tolist()]


def _camera_of_the_smaller(protocol, index):
    """The camera with the smaller images, of identities that more than one sees."""
    cameras = np.unique(np.stack([index.pid, index.camid]), axis=1)
    pids, counts = np.unique(cameras[0], return_counts=True)
    seen_twice = np.isin(index.pid, pids[counts > 1])
    if not seen_twice.any():
        raise ValueError(
            f"Protocol {protocol.name} needs identities that are seen by two cameras, "
            f"found none in {protocol.dataset}."
        )
    area = index.height * index.width
    seen_twice &= area > 0  # 0 cannot be decoded
    camids = np.unique(index.camid[seen_twice])
    means = [area[seen_twice & (index.camid == camid)].mean() for camid in camids]
    return camids[np.argmin(means)]


def _real_scale(size, low, reference):
    """(images that are low,) float: by how much they are smaller than the others."""
    area = size[0] * size[1]
    reference = reference & (area > 0)  # 0 cannot be decoded
    mean = int(area[reference].sum()) / max(int(reference.sum()), 1)
    return np.maximum(np.sqrt(mean / np.maximum(area[low], 1)), 1.0)


def _down_sampled(protocol, index, rows, pids):
    """((2, rows) int sizes, (rows,) float scales) of one part's low-resolution images.

    `pids` are the identities of the part in the split's order.
    """
    choices = protocol.widths or protocol.scales
    dealt = np.empty(len(rows), int)
    if protocol.rate == "per_identity":
        shares = [
            np.isin(index.pid[rows], part)
            for part in np.array_split(pids, len(choices))
        ]
    else:
        bits = _random_bits(protocol, index, _RATES)[rows]
        shares = np.array_split(np.argsort(bits), len(choices))
    for share, choice in zip(shares, choices, strict=True):
        dealt[share] = choice
    height, width = index.height[rows], np.maximum(index.width[rows], 1)
    if not protocol.widths:
        size = down_sample(np.stack([height, width]), dealt, protocol.rounding)
        return size, dealt
    dealt = np.minimum(dealt, width)
    height = _multiplied(height, dealt, width, protocol.rounding)
    return np.stack([height, dealt]), width / dealt


def _candidates(protocol, index, low):
    """The identities that may be drawn: those with images of both resolutions."""
    identities = np.unique(index.pid)
    if protocol.low_resolution in ("none", "stored", "all"):
        return identities
    both = np.intersect1d(index.pid[low], index.pid[~low])
    missing = np.setdiff1d(identities, both)
    if len(missing) and protocol.low_resolution != "real":
        raise ValueError(
            f"Protocol {protocol.name} needs images of low and of high resolution of "
            f"every identity, found one kind alone of the identities "
            f"{_some(missing.tolist())} ({index.name[index.pid == missing[0]][0]} …), "
            "which may be seen by one camera only. Leave them out of the data set, or "
            "choose other lr_cameras."
        )
    return both


def _draw(protocol, identities):
    """(identities that train, that are tested), in the split's random order."""
    num_train, num_test = protocol.num_train, protocol.num_test
    if num_train is None:
        num_train, num_test = len(identities) // 2, (len(identities) + 1) // 2
    if len(identities) < num_train + num_test:
        raise ValueError(
            f"Protocol {protocol.name} needs {num_train} training and {num_test} test "
            f"identities, found {len(identities)} in the data set {protocol.dataset}."
        )
    order = sampling.permutation(
        len(identities), seed=protocol.seed, position=protocol.split
    )
    train_pids, test_pids, _ = np.split(
        identities[order], [num_train, num_train + num_test]
    )
    return train_pids, test_pids


def _official(protocol, index, role):
    """(identities that train, that are tested) by their roles, in random order."""
    trains = role == "train"
    return tuple(
        pids[
            sampling.permutation(len(pids), seed=protocol.seed, position=protocol.split)
        ]
        for pids in (np.unique(index.pid[part]) for part in (trains, ~trains))
    )


def _first_of_each_camera(index):
    """(N,) bool: one image of each identity in each camera."""
    order = np.argsort(index.name)
    seen = np.stack([index.pid, index.camid])[:, order]
    _, first = np.unique(seen, axis=1, return_index=True)
    return np.isin(np.arange(len(index.pid)), order[first])


def _hold_out(train_pids, protocol):
    """(identities that train, identities held out), both in the split's order."""
    num_train, num_held_out = len(train_pids), protocol.val_ids
    if num_train < 2:
        raise ValueError(
            f"Protocol {protocol.name} needs at least two training identities, found "
            f"{num_train} in {protocol.dataset}."
        )
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


def check_disjoint(plan: Plan, sha256: np.ndarray) -> None:
    """Checks that nothing of one side is seen on another where it must not be.

    Args:
      plan: a `Plan`.
      sha256: (N,) str digest of the decoded pixels of every record.

    Raises:
      ValueError: if two of the three groups of identities (training, held out, test)
        share one, or if two sides share an image, by itself or as an original: the
        same record, or another record of the same pixels.
    """
    for one, other in itertools.combinations(_sides(plan), 2):
        a, b = getattr(plan, one), getattr(plan, other)
        shared = np.intersect1d(a.pid, b.pid)
        if len(shared) and (one, other) not in SEARCHED:
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the identities "
                f"{_some(shared.tolist())} are both in {one} and in {other}."
            )
        seen = sha256[np.append(b.record, b.original)]
        in_both = np.isin(sha256[a.record], seen) | np.isin(sha256[a.original], seen)
        if in_both.any():
            raise ValueError(
                f"Protocol {plan.protocol.name} leaks: the images "
                f"{_some(a.name[in_both].tolist())} of {one} are also in {other}, "
                "as the same file or under another name with the same pixels, "
                "themselves or as originals."
            )


def check_matches(plan: Plan) -> None:
    """Checks that there is something to be found in what is searched.

    Args:
      plan: a `Plan`.

    Raises:
      ValueError: if no query has a match that the main scores count.
    """
    protocol = plan.protocol
    for sides in SEARCHED[: 2 if protocol.val_ids else 1]:
        query, gallery = (getattr(plan, side) for side in sides)
        if num_unmatched(protocol, query, gallery) == len(query.pid):
            raise ValueError(
                f"Protocol {protocol.name}: none of the {len(query.pid)} images of "
                f"{sides[0]} has a match among the {len(gallery.pid)} of {sides[1]} "
                f"in {protocol.dataset}, so that there is nothing to score. Searched "
                "identities need images on both sides, under multi-shot scores of "
                "different cameras; look at lr_cameras, at val_ids, and at the data."
            )


def num_unmatched(protocol: Protocol, query: Images, gallery: Images) -> int:
    """How many queries have no image in the gallery that would be right."""
    cameras = collections.defaultdict(set)
    for pid, camid in zip(gallery.pid.tolist(), gallery.camid.tolist(), strict=True):
        cameras[pid].add(camid)
    multi_shot = protocol.evaluation == "multi_shot"
    # Multi-shot scores ignore the query's own camera, where it is known.
    return sum(
        not cameras[pid] - ({camid} if multi_shot and camid >= 0 else set())
        for pid, camid in zip(query.pid.tolist(), query.camid.tolist(), strict=True)
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

    Its `sha256` covers the protocol's name, its data set, those of its fields that are
    not at their defaults, and for every image side, name, pid, camid, scale and size,
    but no pixels: equal hashes mean equal protocols. (`seed`, `split` and `val_ids` are
    not among the fields: the sides of the images tell what was drawn.)

    Args:
      plan: a `Plan`.

    Returns:
      `protocol`, its fields; `counts`, by side, of identities and images, of images by
      camera and by scale, in whole numbers, and the smallest and the largest height and
      width; `set_aside`, identities on no side; `sha256`, in hexadecimal digits.
    """
    fields = dataclasses.asdict(plan.protocol)
    defaults = {x.name: x.default for x in dataclasses.fields(Protocol)}
    head = {
        name: value
        for name, value in fields.items()
        if value != defaults[name] and name not in ("seed", "split", "val_ids")
    }
    sides = {side: getattr(plan, side) for side in _sides(plan)}
    lines = [
        f"{side} {name} {pid} {camid} x{scale:g} {width}x{height}"
        for side, images in sides.items()
        for name, pid, camid, scale, width, height in zip(
            *(images.name, images.pid, images.camid, images.scale),
            *(images.width, images.height),
            strict=True,
        )
    ]
    text = "\n".join([json.dumps(head, sort_keys=True), *sorted(lines)])
    counts = {
        side: {
            "identities": len(np.unique(images.pid)),
            "images": len(images.pid),
            "cameras": _count(images.camid),
            "scales": _count(np.rint(images.scale).astype(int)),
            "heights": [int(images.height.min()), int(images.height.max())],
            "widths": [int(images.width.min()), int(images.width.max())],
        }
        for side, images in sides.items()
    }
    return {
        "protocol": fields,
        "counts": counts,
        "set_aside": plan.num_set_aside,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _count(values):
    """{value: how often}, with text keys as JSON wants them, in ascending order."""
    counts = collections.Counter(values.tolist())
    return {str(value): counts[value] for value in sorted(counts)}


def _some(things):
    """The first few of a list, for an error message."""
    rest = f" and {len(things) - 5} more" if len(things) > 5 else ""
    return ", ".join(str(thing) for thing in things[:5]) + rest
