"""VIPeR: 632 identities, one 48×128 picture from each of two cameras."""

import tensorflow_datasets as tfds

from input_pipeline.datasets import archives, records

NUM_IDENTITIES = 632
SIZE = 128, 48  # height, width
CAMERAS = ("cam_a", "cam_b")


class Viper(tfds.core.GeneratorBasedBuilder):
    """VIPeR (Gray et al., PETS 2007), from the archive or the folder of its makers.

    `cam_a` is camera 0 and `cam_b` camera 1. A file is called `cam_a/000_45.bmp` after
    the identity's number (0 to 873, with gaps) and the angle of view in degrees.
    """

    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put VIPeR.v1.0.zip, or the folder VIPeR extracted from it, into the folder "
        "that is named by --config.data.dir."
    )

    def _info(self):
        return records.dataset_info(self, "VIPeR.v1.0: 632 identities × 2 cameras.")

    def _split_generators(self, dl_manager):
        examples = self._generate_examples(dl_manager.manual_dir)
        return records.split_generators(self, examples)

    def _generate_examples(self, manual_dir):
        files = _find_files(manual_dir)
        for key, (name, (pid, camid, read)) in enumerate(sorted(files.items())):
            yield key, records.record(name, read(), pid=pid, camid=camid, size=SIZE)


def _find_files(manual_dir):
    """{name: (pid, camid, read)} of VIPeR, checked for completeness."""
    place, found = archives.find_files(
        manual_dir, "VIPeR.v1.0.zip", "VIPeR", Viper.MANUAL_DOWNLOAD_INSTRUCTIONS
    )
    matches = archives.match_pictures(
        place, found, r"VIPeR/(cam_[ab])/", r"(\d+)_\d+\.bmp", "cam_a/000_45.bmp"
    )
    files = {}
    for match in matches:
        camera, pid = match.groups()
        name = match[0].removeprefix("VIPeR/")
        files[name] = (int(pid), CAMERAS.index(camera), found[match[0]])
    _check_complete(files, place)
    return files


def _check_complete(files, place):
    found = [
        [pid for pid, camid, _ in files.values() if camid == camera]
        for camera in range(len(CAMERAS))
    ]
    complete = all(len(pids) == NUM_IDENTITIES for pids in found) and (
        set(found[0]) == set(found[1]) and len(set(found[0])) == NUM_IDENTITIES
    )
    if not complete:
        counts = ", ".join(
            f"{len(pids)} images of {len(set(pids))} identities in {camera}"
            for camera, pids in zip(CAMERAS, found, strict=True)
        )
        raise ValueError(
            f"{place} is not the complete VIPeR: expected one picture of each of the "
            f"same {NUM_IDENTITIES} identities in VIPeR/cam_a and in VIPeR/cam_b "
            f"(VIPeR/cam_a/000_45.bmp …), found {counts}. "
            + Viper.MANUAL_DOWNLOAD_INSTRUCTIONS
        )
