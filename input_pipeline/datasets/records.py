"""What a stored image is: its features on disc, its index, and the way to open both.

Every data set is built once by TFDS into ArrayRecord files, which are then read by
position and without TensorFlow. The bytes of an image are stored as they were found.
"""

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLIT = "images"  # all of them; a protocol says who trains and who is searched


class Index(NamedTuple):
    """What is known of every record without reading it; row i describes record i."""

    name: np.ndarray  # (N,) str, unique: the file's path inside the data set
    pid: np.ndarray  # (N,) int64
    camid: np.ndarray  # (N,) int64
    height: np.ndarray  # (N,) int64, pixels
    width: np.ndarray  # (N,) int64, pixels
    sha256: np.ndarray  # (N,) str, of the encoded bytes


class Records(NamedTuple):
    """An opened data set: `source[i]["image"]` are the encoded bytes of record i."""

    index: Index
    source: Sequence


def decode(image_bytes, name):
    """Pixels of an encoded image (JPEG, PNG or BMP), by Pillow.

    Pillow rather than TensorFlow: its JPEG pixels are those of TensorFlow's
    INTEGER_ACCURATE mode, and TensorFlow refuses VIPeR's own files, which are two bytes
    longer than their header says.

    Args:
      image_bytes: the encoded image.
      name: what to call it in the error.

    Returns:
      (H, W, 3) uint8 RGB.

    Raises:
      ValueError: if it is empty, cut off or no image.
    """
    try:
        with Image.open(io.BytesIO(image_bytes)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: not a readable image ({len(image_bytes)} bytes): {error}. "
            "Replace it by an intact copy."
        ) from error


def read_pixels(source, position, name):
    """Decoded pixels of a stored image: (H, W, 3) uint8 RGB.

    Args:
      source: of `Records`.
      position: of the image in it.
      name: of the image, for the error.

    Raises:
      ValueError: if the record is damaged or its image cannot be decoded.
    """
    try:
        image_bytes = source[position]["image"]
    except RuntimeError as error:  # ArrayRecord, which checks a hash
        raise ValueError(
            f"{name}: record {position} of the built data set is damaged: {error}. "
            "Delete that data set's folder, and it is built again."
        ) from error
    return decode(image_bytes, name)


def dataset_info(builder, description):
    """`tfds.core.DatasetInfo` that all data sets share; records keep their order."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "name": np.str_,
                "pid": np.int64,
                "camid": np.int64,
                "height": np.int64,
                "width": np.int64,
            }
        ),
        disable_shuffling=True,
    )


def record(name, image_bytes, *, pid, camid):
    """One example for TFDS; an image that cannot be decoded is refused by its name."""
    height, width, _ = decode(image_bytes, name).shape
    return {
        "image": io.BytesIO(image_bytes),
        "name": name,
        "pid": pid,
        "camid": camid,
        "height": height,
        "width": width,
    }


def open_records(builder, *, manual_dir=""):
    """Opens a data set, after building it if that has not been done.

    TFDS builds in a folder of another name and renames it at the end, and the index is
    written the same way, so an interrupted build leaves nothing that would be used.

    Args:
      builder: a `tfds.core.DatasetBuilder` of this package.
      manual_dir: where the files that the user has to provide lie; only looked at when
        the data set is built.

    Returns:
      `Records`.

    Raises:
      ValueError: if the user's files are missing, incomplete or damaged.
    """
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir or None, compute_stats="skip"
    )
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself
            builder.download_and_prepare(
                download_config=config, file_format="array_record"
            )
    except AssertionError as error:  # how TFDS says that manual_dir is not there
        raise ValueError(str(error)) from error
    source = builder.as_data_source(
        SPLIT, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return Records(_open_index(builder.data_dir, source), source)


def _open_index(folder, source):
    path = os.path.join(folder, "index.npz")
    if not os.path.exists(path):
        _write_index(path, source)
    with np.load(path) as columns:
        index = Index(**columns)
    if len(index.name) != len(source):
        raise ValueError(
            f"{path} describes {len(index.name)} records, but {len(source)} are stored "
            "beside it: delete the folder, and it is built again."
        )
    return index


def _write_index(path, source):
    rows = [source[i] for i in range(len(source))]
    numbers = {
        column: np.array([row[column] for row in rows], np.int64)
        for column in ("pid", "camid", "height", "width")
    }
    index = Index(
        name=np.array([row["name"].decode() for row in rows]),
        sha256=np.array([hashlib.sha256(row["image"]).hexdigest() for row in rows]),
        **numbers,
    )
    unfinished = f"{path}.{uuid.uuid4().hex}.npz"
    np.savez(unfinished, **index._asdict())
    os.replace(unfinished, path)
