"""Market-1501: 1,501 identities seen by six cameras, in boxes drawn by a detector."""

import re
from typing import NamedTuple

import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, records

SIZE = 128, 64  # height, width
NUM_CAMERAS = 6
ROLES = {  # folder → what its pictures are for
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}
FOLDERS = f"(?P<folder>{'|'.join(ROLES)})/"
TOP = "Market-1501-v15.09.15"
_FOLDERS = f"{re.escape(TOP)}/{FOLDERS}"
# Two dozen files of the official archive end in .jpg twice.
_NAME = r"(?P<pid>-1|\d{4})_c(?P<camid>[1-6])s\d_\d{6}_\d\d(\.jpg){1,2}"


class Counts(NamedTuple):
    """What one folder holds."""

    by_camera: tuple[int, ...]  # pictures of identities, in cameras 1 to 6
    identities: int
    distractors: int = 0  # pictures
    junk: int = 0  # pictures

    def __str__(self):
        return (
            f"{sum(self.by_camera)} images of {self.identities} identities "
            f"({', '.join(map(str, self.by_camera))} in cameras 1 to {NUM_CAMERAS}), "
            f"{self.distractors} distractors and {self.junk} junk images"
        )


COMPLETE = {
    "bounding_box_train": Counts((2017, 1709, 2707, 920, 2338, 3245), 751),
    "query": Counts((668, 530, 717, 248, 622, 583), 750),
    "bounding_box_test": Counts((2114, 1740, 2822, 890, 2380, 3169), 750, 2798, 3819),
}


class Market1501(tfds.core.GeneratorBasedBuilder):
    """Market-1501 (Zheng et al., ICCV 2015), from the archive or folder of its makers.

    All pictures of the three folders that the official evaluation uses are records,
    the hand-drawn boxes of `gt_bbox` are not. A file is called
    `query/0002_c1s1_000451_03.jpg` after the identity, the camera (1 to 6), the
    sequence, the frame and the number of the box. Identity 0 are distractors, people of
    no identity and false alarms of the detector; −1 is junk, boxes too poor to tell,
    which the official evaluation ignores.
    """

    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put Market-1501-v15.09.15.zip, or the folder Market-1501-v15.09.15 extracted "
        "from it, into the folder that is named by --config.data.dir."
    )

    def _info(self):
        description = "Market-1501-v15.09.15: 1,501 identities, 6 cameras."
        return records.dataset_info(self, description)

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(dl_manager.manual_dir)
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        instructions = self.MANUAL_DOWNLOAD_INSTRUCTIONS
        place, files = archives.find_files(manual_dir, f"{TOP}.zip", TOP, instructions)
        matches = archives.match_pictures(
            place, files, _FOLDERS, _NAME, "query/0002_c1s1_000451_03.jpg"
        )
        found = {folder: _count(matches, folder) for folder in COMPLETE}
        archives.check_complete(
            place, "Market-1501", TOP, found, COMPLETE, instructions
        )
        yield from generate_examples(matches, files, size=SIZE)


def generate_examples(matches, files, size=None):
    """Examples of a data set that comes in these three folders.

    Args:
      matches: as from `archives.match_pictures`, with the groups `folder`, `pid` and
        `camid`.
      files: as from `archives.find_files`.
      size: (height, width) in pixels, if all images have one.

    Yields:
      (key, `records.record`), in the order of the matches; who is in the gallery and
      never wanted is a distractor.
    """
    wanted = {match["pid"] for match in matches if match["folder"] == "query"}
    told = wanted | {"-1"}  # junk
    for key, match in enumerate(matches):
        role = ROLES[match["folder"]]
        if role == "gallery" and match["pid"] not in told:
            role = "distractor"
        example = records.record(
            match[0].partition("/")[2],
            files[match[0]](),
            pid=int(match["pid"]),
            camid=int(match["camid"]),
            role=role,
            size=size,
        )
        yield key, example


def _count(matches, folder):
    images = [
        (int(match["pid"]), int(match["camid"]))
        for match in matches
        if match["folder"] == folder
    ]
    cameras = [camid for pid, camid in images if pid > 0]
    pids = [pid for pid, _ in images]
    return Counts(
        tuple(cameras.count(camid) for camid in range(1, NUM_CAMERAS + 1)),
        len({pid for pid in pids if pid > 0}),
        pids.count(0),
        pids.count(-1),
    )
