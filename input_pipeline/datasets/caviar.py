"""CAVIAR4REID: 72 identities in a shopping centre, 50 of them seen by two cameras."""

import collections

import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, records

TOP = "CAVIAR4REID"
NUM_SHOTS = 10  # of an identity in a camera
_NAME = r"(?P<pid>\d{4})(?P<shot>0(?:0[1-9]|1\d|20))\.jpg"
COMPLETE = {(10, 10): 50, (10, 0): 22}  # images in cameras 0 and 1 → identities


class Caviar(tfds.core.GeneratorBasedBuilder):
    """CAVIAR4REID (Cheng et al., BMVC 2011), from the archive or folder of its makers.

    A file is called `0001011.jpg` after the identity (four digits) and the number of
    the image: 001 to 010 are of camera 0, 011 to 020 of camera 1. The 22 identities
    that only one camera has seen are numbered 001 to 010, and camera 0 it is.

    Camera 0 is the high-resolution one: its images are on average 41×101 pixels large,
    those of camera 1 27×59. Of the identities 20 and 50 alone, who pass close by it,
    camera 1 has the larger images. The sizes vary, also within a camera. `0029003.jpg`
    is `0029002.jpg` once more.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put CAVIAR4REID.zip, or the folder CAVIAR4REID extracted from it, into the "
        "folder that is named by --config.data.dir."
    )

    def _info(self):
        description = "CAVIAR4REID: 72 identities, 50 of them in 2 cameras."
        return records.dataset_info(self, description)

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(dl_manager.manual_dir)
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        place, files = archives.find_files(
            manual_dir, f"{TOP}.zip", TOP, self.MANUAL_DOWNLOAD_INSTRUCTIONS
        )
        matches = archives.match_pictures(place, files, f"{TOP}/", _NAME, "0001011.jpg")
        seen = [
            (int(match["pid"]), (int(match["shot"]) - 1) // NUM_SHOTS)
            for match in matches
        ]
        _check_complete(seen, place)
        for key, (match, (pid, camid)) in enumerate(zip(matches, seen, strict=True)):
            name = match[0].removeprefix(f"{TOP}/")
            yield key, records.record(name, files[match[0]](), pid=pid, camid=camid)


def _check_complete(seen, place):
    images = collections.Counter(seen)
    found = collections.Counter(
        (images[pid, 0], images[pid, 1]) for pid in {pid for pid, _ in seen}
    )
    if found != COMPLETE:
        raise ValueError(
            f"{place} is not the complete CAVIAR4REID: expected {_describe(COMPLETE)}, "
            f"found {_describe(found)}. {Caviar.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )


def _describe(counts):
    return (
        ", ".join(
            f"{identities} identities with {first} images in camera 0 and {second} in "
            "camera 1"
            for (first, second), identities in sorted(counts.items(), reverse=True)
        )
        or "no image"
    )
