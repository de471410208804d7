"""What a stored image is: its features on disc, its index, and the way to open both.

Every data set is built once by TFDS into ArrayRecord files, which are then read by
position. The bytes of an image are stored as they were found, damaged ones, too:
whether a run can do without an image is for its plan to say. An image is read and
decoded once while a data set is built, and its index is kept.
"""

import contextlib
import copy
import fcntl
import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLIT = "images"  # all of them; a protocol says who trains and who is searched
KEPT_BYTES = 256 * 2**20  # of decoded pixels, so that small sets are decoded once


class Index(NamedTuple):
    """What is known of every record without reading it; row i describes record i."""

    name: np.ndarray  # (N,) str, unique: the file's path inside the data set
    pid: np.ndarray  # (N,) int64, of its makers; below 0 is junk, to be ignored
    camid: np.ndarray  # (N,) int64
    height: np.ndarray  # (N,) int64, pixels; 0 where the image cannot be decoded
    width: np.ndarray  # (N,) int64, pixels; 0 where the image cannot be decoded
    sha256: np.ndarray  # (N,) str, of the decoded pixels
    role: np.ndarray  # (N,) str, its makers' "train", "query", "gallery", "distractor"
    # or, where these are not told apart, "test"; a word for each official split; or ""


class Pairs(NamedTuple):
    """Pictures that are stored in two resolutions; row i describes record i."""

    original: np.ndarray  # (N,) int64 position of the record that shows the same at
    # full resolution; i where there is none
    scale: np.ndarray  # (N,) float64, at least 1: how much smaller than its original
    # the picture is, or was before it was restored


class EncodedImages(Sequence):
    """`source[i]["image"]` are the encoded bytes of record i, its only field here.

    The others are in the index, and TFDS takes as long to decode them as to read all.
    """

    def __init__(self, builder):
        method = tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
        self._protos = builder.as_data_source(SPLIT, deserialize_method=method)
        self.kept = {}  # position → pixels, of `read_pixels`
        self._kept_bytes, self._lock = 0, threading.Lock()

    def __len__(self):
        return len(self._protos)

    def __getitem__(self, position):
        return self.__getitems__([position])[0]

    def keep(self, position, pixels):
        """Keeps the pixels of a record if there is room."""
        with self._lock:
            room = self._kept_bytes + pixels.nbytes <= KEPT_BYTES
            if room and position not in self.kept:
                self.kept[position] = pixels
                self._kept_bytes += pixels.nbytes

    def __getitems__(self, positions):
        """Several at once, which takes a third of the time."""
        protos = self._protos.__getitems__(positions)
        images = (proto.features.feature["image"] for proto in protos)
        return [{"image": image.bytes_list.value[0]} for image in images]


class Records(NamedTuple):
    """An opened data set."""

    index: Index
    source: EncodedImages


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
      ValueError: if it is empty, cut off, no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(image_bytes)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel (mode {image.mode})")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: not a readable image ({len(image_bytes)} bytes): {error}. "
            "Replace it by an intact copy."
        ) from error


def encode_png(pixels):
    """(H, W, 3) uint8 RGB, losslessly, as the bytes of a file."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="png", compress_level=1)
    return encoded.getvalue()


def read_pixels(source, positions, names):
    """Decoded pixels of stored images: a list of (H, W, 3) uint8 RGB, read-only.

    The first `KEPT_BYTES` of them stay in memory.

    Args:
      source: of `Records`.
      positions: of the images in it, a list of ints.
      names: of the images, for the error.

    Raises:
      ValueError: naming the image, if a record is damaged or cannot be decoded.
    """
    found = {p: source.kept[p] for p in positions if p in source.kept}
    name_of = dict(zip(positions, names, strict=True))
    missing = [position for position in name_of if position not in found]
    try:
        examples = source.__getitems__(missing) if missing else []
    except RuntimeError:  # ArrayRecord's, which does not say whose
        examples = [_read(source, p, f"{name_of[p]}: ") for p in missing]
    for position, example in zip(missing, examples, strict=True):
        found[position] = pixels = decode(example["image"], name_of[position])
        source.keep(position, pixels)
    return [found[position] for position in positions]


def dataset_info(builder, description):
    """`tfds.core.DatasetInfo` that all data sets share; records keep their order.

    Args:
      builder: of the data set.
      description: of the data set, in a line.
    """
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "name": np.str_,
        "pid": np.int64,
        "camid": np.int64,
        "height": np.int64,
        "width": np.int64,
        "sha256": np.str_,
        "role": np.str_,
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
    )


def record(name, image_bytes, *, pid, camid, role="", size=None):
    """One example for TFDS; an image that cannot be decoded has the size 0×0.

    Args:
      name: as in `Index`.
      image_bytes: the encoded image.
      pid: as in `Index`.
      camid: as in `Index`.
      role: as in `Index`.
      size: (height, width) in pixels, if all images of the data set have one.

    Raises:
      ValueError: naming the image, if it has another size.
    """
    try:
        pixels = decode(image_bytes, name)
    except ValueError:
        height, width, content = 0, 0, image_bytes
    else:
        height, width, _ = pixels.shape
        content = b"%d %d " % (height, width) + pixels.tobytes()
        if size and size != (height, width):
            raise ValueError(
                f"{name}: expected {size[1]}×{size[0]} pixels as in the official "
                f"files, found {width}×{height}. Replace it by an intact copy."
            )
    return {
        "image": io.BytesIO(image_bytes),
        "name": name,
        "pid": pid,
        "camid": camid,
        "height": height,
        "width": width,
        "sha256": hashlib.sha256(content).hexdigest(),
        "role": role,
    }


def split_generators(builder, examples):
    """What a builder's `_split_generators` returns; the index is written on the way.

    Args:
      builder: of the data set.
      examples: of (key, `record`).
    """

    def indexed():
        rows = []
        for key, example in examples:
            rows.append(_row(example))
            yield key, example
        _write_index(Path(builder.data_dir), rows)  # the unfinished folder

    return {SPLIT: indexed()}


def open_records(builder, *, manual_dir=""):
    """Opens a data set, after building it if that has not been done.

    TFDS builds in a folder of another name and renames it at the end, the index within,
    so an interrupted build leaves nothing that would be used. Of processes that want to
    build, one does, and the others wait for it. An index that the user has deleted is
    written again.

    Args:
      builder: a `tfds.core.DatasetBuilder` of this package.
      manual_dir: where the files that the user has to provide lie; only looked at when
        the data set is built.

    Returns:
      `Records`.

    Raises:
      ValueError: if the user's files are missing or incomplete, or their archive is
        damaged.
    """
    folder = Path(builder.data_dir)
    if not (folder / "index.npz").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():  # since the builder looked
                builder = copy.copy(builder)  # TFDS makes it anew, and it looks again
            else:
                _build(builder, manual_dir)
            if not (folder / "index.npz").exists():
                encoded = {"image": tfds.decode.SkipDecoding()}
                source = builder.as_data_source(SPLIT, decoders=encoded)
                rows = (_read(source, i) for i in range(len(source)))
                _write_index(folder, [_row(row) for row in rows])
    source = EncodedImages(builder)
    return Records(_read_index(folder / "index.npz", len(source)), source)


def _build(builder, manual_dir):
    folder = Path(builder.data_dir)
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # was killed
        shutil.rmtree(leftover)
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


def _read(source, position, name=""):
    try:
        return source[position]
    except RuntimeError as error:  # ArrayRecord, which checks a hash
        raise ValueError(
            f"{name}record {position} of the built data set is damaged: {error}. "
            "Delete that data set's folder, and it is built again."
        ) from error


def _read_index(path, num_records):
    try:
        with path.open("rb") as file, np.load(file) as columns:
            index = Index(**columns)
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and it is written again."
        ) from error
    if len(index.name) != num_records:
        raise ValueError(
            f"{path} describes {len(index.name)} records, but {num_records} are stored "
            "beside it: delete it, and it is written again."
        )
    return index


def _row(example):
    """What the index says of an example, or of a record that was read."""
    return {column: example[column] for column in Index._fields}


def _write_index(folder, rows):
    columns = {name: np.array([row[name] for row in rows]) for name in Index._fields}
    for name, column in columns.items():
        if column.dtype.kind == "S":  # text comes out of a record as bytes
            columns[name] = np.char.decode(column, "utf-8")
    unfinished = folder / "unfinished.npz"
    np.savez(unfinished, **columns)
    unfinished.replace(folder / "index.npz")
