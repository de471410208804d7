"""DukeMTMC-reID: 1,404 identities and 408 distractors, seen by eight cameras."""

import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, market1501, records

TOP = "DukeMTMC-reID"
_FOLDERS = f"{TOP}/{market1501.FOLDERS}"
_NAME = r"(?P<pid>\d{4})_c(?P<camid>[1-8])_f\d{7}\.jpg"
COMPLETE = {
    "bounding_box_train": archives.Counts(16_522, 702),
    "query": archives.Counts(2_228, 702),
    "bounding_box_test": archives.Counts(17_661, 1_110),  # 408 of them are distractors
}


class Dukemtmc(tfds.core.GeneratorBasedBuilder):
    """DukeMTMC-reID (Zheng et al., ICCV 2017), from its archive or folder.

    The data set was withdrawn by its makers; this project neither offers nor links a
    download, and the reader is for people who already hold a copy.

    It is laid out as Market-1501. A file is called `query/0002_c1_f0044158.jpg` after
    the identity, the camera (1 to 8) and the frame. Distractors, people whom a single
    camera has seen, are identities of the gallery with numbers of their own.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put DukeMTMC-reID.zip, or the folder DukeMTMC-reID extracted from it, into "
        "the folder that is named by --config.data.dir. The data set was withdrawn by "
        "its makers; this project neither offers nor links a download, and the reader "
        "is for people who already hold a copy."
    )

    def _info(self):
        description = "DukeMTMC-reID: 1,404 identities, 408 distractors, 8 cameras."
        return records.dataset_info(self, description)

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(dl_manager.manual_dir)
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        instructions = self.MANUAL_DOWNLOAD_INSTRUCTIONS
        place, files = archives.find_files(manual_dir, f"{TOP}.zip", TOP, instructions)
        matches = archives.match_pictures(
            place, files, _FOLDERS, _NAME, "query/0002_c1_f0044158.jpg"
        )
        found = {folder: _count(matches, folder) for folder in COMPLETE}
        archives.check_complete(place, TOP, TOP, found, COMPLETE, instructions)
        yield from market1501.generate_examples(matches, files)


def _count(matches, folder):
    pids = [match["pid"] for match in matches if match["folder"] == folder]
    return archives.Counts(len(pids), len(set(pids)))
