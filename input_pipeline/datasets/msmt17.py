"""MSMT17: 4,101 identities seen by fifteen cameras, indoors and outdoors."""

import dataclasses

import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, records

NUM_TRAIN = 1_041  # identities
ROLES = {  # list → what the pictures that it names are for
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
COMPLETE = {
    "list_train.txt": archives.Counts(30_248, NUM_TRAIN),
    "list_val.txt": archives.Counts(2_373, NUM_TRAIN),
    "list_query.txt": archives.Counts(11_659, 3_060),
    "list_gallery.txt": archives.Counts(82_161, 3_060),
}
_NAME = r"(?P=pid)_\d+_(?P<camid>0[1-9]|1[0-5])_[^/]+\.jpe?g"
_EXAMPLE = "0000/0000_000_01_0303morning_0008_0.jpg"


@dataclasses.dataclass(kw_only=True)
class Msmt17Config(tfds.core.BuilderConfig):
    """A version of the data set: how its two folders of pictures are called."""

    train: str
    test: str


class Msmt17(tfds.core.GeneratorBasedBuilder):
    """MSMT17 (Wei et al., CVPR 2018), from the archive or the folder of its makers.

    `v2` is the version with blurred faces. A file is called
    `train/0000/0000_000_01_0303morning_0008_0.jpg` after the identity, the number of
    the picture and the camera (1 to 15); the rest, the time, is not looked at. Four
    lists say what a picture is for; those of the validation list train, as is usual.
    The numbers of the test identities start from 0 again: 1,041 is added to them.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS names and reads it); the first is default
        Msmt17Config(name="v1", train="train", test="test"),
        Msmt17Config(name="v2", train="mask_train_v2", test="mask_test_v2"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put MSMT17_V1.tar.gz (MSMT17_V2.tar.gz for msmt17/v2), a zip archive of that "
        "name, or the folder extracted from it, into the folder that is named by "
        "--config.data.dir."
    )

    def _info(self):
        return records.dataset_info(self, "MSMT17: 4,101 identities, 15 cameras.")

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(dl_manager.manual_dir)
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        config, top = self.builder_config, f"MSMT17_{self.builder_config.name.upper()}"
        folders = rf"{top}/(?P<side>{config.train}|{config.test})/((?P<pid>\d+)/)?"
        with archives.open_files(
            *(manual_dir, top, self.MANUAL_DOWNLOAD_INSTRUCTIONS),
            scratch_dir=self.data_dir,  # the unfinished folder
        ) as (place, files):
            matches = archives.match_pictures(
                *(place, files, folders, _NAME),
                f"{_EXAMPLE}, with a camera from 01 to 15",
            )
            pids = {match[0]: int(match["pid"]) for match in matches}
            lists = _read_lists(place, files, pids, top, config)
            _check_complete(place, pids, lists, top)
            for key, match in enumerate(matches):
                path, trains = match[0], match["side"] == config.train
                example = records.record(
                    path.removeprefix(f"{top}/"),
                    files[path](),
                    pid=pids[path] + (0 if trains else NUM_TRAIN),
                    camid=int(match["camid"]),
                    role=ROLES[lists[path]],
                )
                yield key, example


def _read_lists(place, files, pids, top, config):
    """{path of a picture: the list that names it}, where `pids` are {path: pid}."""
    lists = {}
    for name, role in ROLES.items():
        if f"{top}/{name}" not in files:
            raise ValueError(
                f"{place}: expected the list {top}/{name} of the official archive, "
                f"found none. {Msmt17.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        folder = f"{top}/{config.train if role == 'train' else config.test}"
        lines = files[f"{top}/{name}"]().decode(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            path, _, pid = line.rpartition(" ")
            path = f"{folder}/{path}"
            if path not in pids or pid != str(pids[path]):
                raise ValueError(
                    f"{top}/{name} in {place}, line {number}: expected the path of a "
                    f"picture in {folder} and its identity, such as '{_EXAMPLE} 0', "
                    f"found {line!r}. Take the lists and all pictures of one version: "
                    f"{Msmt17.MANUAL_DOWNLOAD_INSTRUCTIONS}"
                )
            lists[path] = name
    return lists


def _check_complete(place, pids, lists, top):
    found = {}
    for name in COMPLETE:
        of_list = [pids[path] for path in lists if lists[path] == name]
        found[name] = archives.Counts(len(of_list), len(set(of_list)))
    archives.check_complete(
        place, top, top, found, COMPLETE, Msmt17.MANUAL_DOWNLOAD_INSTRUCTIONS
    )
    unnamed = pids.keys() - lists.keys()
    if unnamed:
        raise ValueError(
            f"{place}: expected that the lists name every picture, found "
            f"{len(unnamed)} that none of them names, such as {min(unnamed)}. Move "
            f"them out of {top}, or take the lists of that version."
        )
