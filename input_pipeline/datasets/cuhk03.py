"""CUHK03: 1,467 identities, each seen by the two cameras of one of five pairs."""

import contextlib
import dataclasses
import errno
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from input_pipeline.datasets import records

TOP = "cuhk03_release"
MAT = "cuhk-03.mat"
BOXES = {"labelled": "labeled", "detected": "detected"}  # our name → theirs
NUM_PAIRS = 5  # of cameras
NUM_TEST_SETS = 20
NUM_TESTED = 100  # identities of each test set


class Counts(NamedTuple):
    """What is in the boxes of one kind, by pair of cameras."""

    identities: tuple[int, ...]
    pictures: tuple[int, ...]

    def __str__(self):
        return (
            f"{sum(self.pictures)} pictures {self.pictures} of "
            f"{sum(self.identities)} identities {self.identities}"
        )


COMPLETE = {
    "labelled": Counts((843, 440, 77, 58, 49), (8177, 4337, 649, 510, 423)),
    "detected": Counts((843, 440, 77, 58, 49), (8177, 4337, 650, 510, 423)),
}


class Picture(NamedTuple):
    """A picture in `cuhk-03.mat`."""

    boxes: str  # one of BOXES
    name: str  # such as 1_001_1_01.png
    identity: str  # such as 1_001: the pair of cameras, and who in that pair
    pid: int
    camid: int
    pixels: h5py.Reference  # to (3, W, H) uint8


@dataclasses.dataclass(kw_only=True)
class Cuhk03Config(tfds.core.BuilderConfig):
    """Which boxes, and what the roles are."""

    boxes: tuple[str, ...]  # of BOXES
    split_file: str = ""  # of a split of others; without, the makers' own test sets


class Cuhk03(tfds.core.GeneratorBasedBuilder):
    """CUHK03 (Li et al., CVPR 2014), from the archive or the MATLAB file of its makers.

    The boxes were drawn by hand (`labelled`) or by a detector (`detected`). A picture
    is called `labelled/1_001_2_06.png` after the boxes, the pair of cameras (1 to 5),
    the identity in that pair, the view (1 or 2) and the place among the identity's ten:
    01 to 05 are of view 1, 06 to 10 of view 2, and not all are there. Identities (0 to
    1466) and cameras (0 to 9) are numbered on from pair to pair. The MATLAB file holds
    pixels, which are stored as PNG.

    The makers drew 20 test sets of 100 identities: a role is 20 words, "train" or
    "test" in each of them. In the split into 767 training and 700 test identities that
    came later (Zhong et al., CVPR 2017), and that has a file for either kind of boxes,
    a role is "train", "query" or "gallery".
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS names and reads it); the first is default
        Cuhk03Config(name="labelled", boxes=("labelled",)),
        Cuhk03Config(name="detected", boxes=("detected",)),
        Cuhk03Config(name="merged", boxes=("labelled", "detected")),
        Cuhk03Config(
            name="labelled_767",
            boxes=("labelled",),
            split_file="cuhk03_new_protocol_config_labeled.mat",
        ),
        Cuhk03Config(
            name="detected_767",
            boxes=("detected",),
            split_file="cuhk03_new_protocol_config_detected.mat",
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put cuhk03_release.zip, the folder cuhk03_release extracted from it, or its "
        "cuhk-03.mat into the folder that is named by --config.data.dir; for the split "
        "into 767 and 700 identities also cuhk03_new_protocol_config_labeled.mat or "
        "cuhk03_new_protocol_config_detected.mat of Zhong et al."
    )

    def _info(self):
        description = "CUHK03: 1,467 identities, 5 pairs of cameras."
        return records.dataset_info(self, description)

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(Path(dl_manager.manual_dir))
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        config = self.builder_config
        place = _find(manual_dir, f"{TOP}.zip", f"{TOP}/{MAT}", MAT)
        with _open(place, self.data_dir) as mat:
            with _unharmed(place):
                pictures = [x for boxes in config.boxes for x in _pictures(mat, boxes)]
                test_sets = _test_sets(mat)
            _check_complete(pictures, config.boxes, place)
            _check_test_sets(test_sets, pictures, place)
            if config.split_file:
                roles = _read_roles(_find(manual_dir, config.split_file), pictures)
            else:
                roles = _classic_roles(test_sets, pictures)
            for key, picture in enumerate(pictures):
                with _unharmed(place):
                    image_bytes = records.encode_png(
                        mat[picture.pixels][:].T
                    )  # (H, W, 3)
                example = records.record(
                    f"{picture.boxes}/{picture.name}",
                    image_bytes,
                    pid=picture.pid,
                    camid=picture.camid,
                    role=roles[picture.name],
                )
                yield key, example


def _find(manual_dir, *names):
    """The first of the files that is there."""
    for name in names:
        if (manual_dir / name).is_file():
            return manual_dir / name
    raise ValueError(
        f"{manual_dir}: expected {' or '.join(names)}, found no such file. "
        + Cuhk03.MANUAL_DOWNLOAD_INSTRUCTIONS
    )


@contextlib.contextmanager
def _open(place, folder):
    """Opens `cuhk-03.mat`; out of the archive, `folder` has it for so long."""
    with tempfile.TemporaryDirectory(dir=folder) as extracted:
        path = place
        if place.suffix == ".zip":
            with _unharmed(place), zipfile.ZipFile(place) as archive:
                path = archive.extract(f"{TOP}/{MAT}", extracted)
        with _unharmed(place):
            mat = h5py.File(path)
        with mat:
            yield mat


@contextlib.contextmanager
def _unharmed(path):
    """Says which file is damaged, where reading fails."""
    try:
        yield
    except Exception as error:  # zipfile, h5py and SciPy raise a dozen kinds
        if getattr(error, "errno", None) == errno.ENOSPC:  # on extracting
            raise
        raise ValueError(
            f"{path} is damaged ({error}): expected the complete {path.name} of its "
            f"makers. Download it again. {Cuhk03.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        ) from error


def _pictures(mat, boxes):
    """Each `Picture` in boxes of one kind, in the order of their names."""
    first_pid = 0
    for pair, identities in enumerate(mat[BOXES[boxes]][:].flat):
        cells = mat[identities][:].T  # (identities, 10)
        for (number, column), pixels in np.ndenumerate(cells):
            if mat[pixels].ndim < 3:  # an empty cell, stored as its shape
                continue
            identity, view = f"{pair + 1}_{number + 1:03d}", column // 5
            yield Picture(
                boxes=boxes,
                name=f"{identity}_{view + 1}_{column + 1:02d}.png",
                identity=identity,
                pid=first_pid + number,
                camid=2 * pair + view,
                pixels=pixels,
            )
        first_pid += len(cells)


def _test_sets(mat):
    """The identities of each test set."""
    return [
        {f"{pair:.0f}_{number:03.0f}" for pair, number in mat[tested][:].T}
        for tested in mat["testsets"][:].flat
    ]


def _check_complete(pictures, boxes, place):
    for kind in boxes:
        found = _count([x for x in pictures if x.boxes == kind])
        if found != COMPLETE[kind]:
            raise ValueError(
                f"{place} is not the complete CUHK03: in {kind} boxes expected "
                f"{COMPLETE[kind]}, found {found}. "
                + Cuhk03.MANUAL_DOWNLOAD_INSTRUCTIONS
            )


def _count(pictures):
    by_identity = [pair for pair, _ in {(x.camid // 2, x.pid) for x in pictures}]
    by_picture = [x.camid // 2 for x in pictures]
    return Counts(
        tuple(by_identity.count(pair) for pair in range(NUM_PAIRS)),
        tuple(by_picture.count(pair) for pair in range(NUM_PAIRS)),
    )


def _check_test_sets(test_sets, pictures, place):
    identities = {x.identity for x in pictures}
    found = [len(tested & identities) for tested in test_sets]
    if found != [NUM_TESTED] * NUM_TEST_SETS:
        raise ValueError(
            f"{place} is not the complete CUHK03: expected {NUM_TEST_SETS} test sets "
            f"of {NUM_TESTED} identities, found {len(found)} of {found}. "
            + Cuhk03.MANUAL_DOWNLOAD_INSTRUCTIONS
        )


def _classic_roles(test_sets, pictures):
    """{name: role}, a word for each test set."""
    return {
        x.name: " ".join("test" if x.identity in s else "train" for s in test_sets)
        for x in pictures
    }


def _read_roles(path, pictures):
    """{name: role} of the 767/700 split."""
    with _unharmed(path):
        split = scipy.io.loadmat(path)
        names = [name.item() for name in split["filelist"].flat]
        roles = {
            names[i - 1]: role
            for role in ("train", "query", "gallery")
            for i in split[f"{role}_idx"].flat
        }
    expected = {x.name for x in pictures}
    if roles.keys() != expected:
        raise ValueError(
            f"{path} is not of {pictures[0].boxes} boxes: expected the roles of all "
            f"{len(expected)} pictures, found those of {len(expected & roles.keys())} "
            f"and of {len(roles.keys() - expected)} that are not there. "
            + Cuhk03.MANUAL_DOWNLOAD_INSTRUCTIONS
        )
    return roles
