"""VIPeR: 632 identities, one 48×128 picture from each of two cameras."""

import re
import zipfile
import zlib
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.datasets import records

NUM_IDENTITIES = 632
HEIGHT, WIDTH = 128, 48
CAMERAS = ("cam_a", "cam_b")


class Viper(tfds.core.GeneratorBasedBuilder):
    """VIPeR (Gray et al., PETS 2007), from the archive or the folder of its makers.

    `cam_a` is camera 0 and `cam_b` camera 1. A file is called `cam_a/000_45.bmp` after
    the identity's number (0 to 873, with gaps) and the angle of view in degrees.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put VIPeR.v1.0.zip, or the folder VIPeR extracted from it, into the folder "
        "that is named by --config.data.dir."
    )

    def _info(self):
        return records.dataset_info(self, "VIPeR.v1.0: 632 identities × 2 cameras.")

    def _split_generators(self, dl_manager):
        files = _read_files(Path(dl_manager.manual_dir))
        return {records.SPLIT: self._generate_examples(files)}

    def _generate_examples(self, files):
        for key, (name, (pid, camid, image_bytes)) in enumerate(sorted(files.items())):
            example = records.record(name, image_bytes, pid=pid, camid=camid)
            if (example["height"], example["width"]) != (HEIGHT, WIDTH):
                raise ValueError(
                    f"{name}: expected {WIDTH}×{HEIGHT} pixels as in VIPeR.v1.0.zip, "
                    f"found {example['width']}×{example['height']}. "
                    + self.MANUAL_DOWNLOAD_INSTRUCTIONS
                )
            yield key, example


def _read_files(folder):
    """{name: (pid, camid, bytes)} of VIPeR in `folder`, checked for completeness."""
    archive, extracted = folder / "VIPeR.v1.0.zip", folder / "VIPeR"
    if archive.is_file():
        place, paths = archive, _read_archive(archive)
    elif extracted.is_dir():
        place = extracted
        paths = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in extracted.glob("cam_?/*.bmp")
        }
    else:
        place, paths = folder, {}

    files = {}
    for path, image_bytes in paths.items():
        if match := re.fullmatch(r"VIPeR/((cam_[ab])/(\d+)_\d+\.bmp)", path):
            name, camera, pid = match.groups()
            files[name] = (int(pid), CAMERAS.index(camera), image_bytes)
    _check_complete(files, place)
    return files


def _read_archive(archive):
    try:
        with zipfile.ZipFile(archive) as content:
            return {
                path: content.read(path)
                for path in content.namelist()
                if path.endswith(".bmp")
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} is damaged ({error}): expected the complete VIPeR.v1.0.zip. "
            "Download it again. " + Viper.MANUAL_DOWNLOAD_INSTRUCTIONS
        ) from error


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
