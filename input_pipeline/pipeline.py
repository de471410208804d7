"""From a config to batches: records → plan → decoded images → NumPy dicts.

A training batch is a pure function of (seed, step), so a run that is resumed at step n
sees bit for bit what the uninterrupted run would have seen. Nothing keeps a position.
"""

import atexit
import dataclasses
import functools
import importlib
import math
import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import ArrayLike

from crossres_jax import sampling
from input_pipeline import protocols, transforms
from input_pipeline.datasets import folder, records

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

TUPLES = ("image", "synthetic", "cross")
_IMAGE_KEYS = ("lr", "hr", "scale", "relative_width", "index")
_CROSS_KEYS = ("lr", "synthetic_lr", "hr", "synthetic_scale", "index", "lr_index")
Batch = dict[str, np.ndarray]


class Data(NamedTuple):
    """An opened and checked data set under its protocol."""

    plan: protocols.Plan
    manifest: dict
    steps_per_epoch: int
    num_repeating: int  # identities with fewer images than a batch shows of them
    quarantined: list[str]  # training images that cannot be read and are left out
    source: Sequence  # records by position
    config: Any  # as given to `open_data`


def open_data(config: Any) -> Data:
    """Opens the data set of a protocol, building it the first time, and checks it.

    Args:
      config: any object with the attributes
        protocol: a name in `protocols.PROTOCOLS`;
        dir: folder of the official archives or of one's own pictures, '' where none is
          needed;
        table, pattern, no_camera: of one's own pictures, see `folder.open_folder`;
        cache_dir: where the built data sets are kept, '' for TFDS's own place;
        seed, split, val_ids: as in `protocols.Protocol`;
        lr_cameras, rate, scales, kernel, rounding, blur, jpeg_quality, evaluation,
          num_draws: as there; () or '' or 0, jpeg_quality −1, for the protocol's own;
        max_quarantined: how many training images may be unreadable and left out;
        image_size: (height, width) of the batches;
        resize: kernel that brings images to this size; down-sampled ones always come
          back by bicubic interpolation;
        num_ids, num_instances: P and K of the training batches;
        flip, pad, erase: see `transforms.augment`;
        tuples: what a training batch holds, see `train_batches`;
        copy_scales: rates of the synthetic copies in it, 1 for no copy; () for the
          protocol's scales;
        eval_batch_size: images per evaluation batch.

    Returns:
      `Data`.

    Raises:
      ValueError: if the config names something unknown, if the official files are
        missing, incomplete or damaged, if an image that is searched for or too many
        training images cannot be read, or if the split leaks.
    """
    for field, known in {"tuples": TUPLES, "resize": protocols.KERNELS}.items():
        if (found := getattr(config, field)) not in known:
            raise ValueError(
                f"{field} must be one of {', '.join(known)}, found {found!r}."
            )
    protocol = _find_protocol(config)
    builder = _find_builder(protocol.dataset, config)
    dataset = records.open_records(builder, manual_dir=config.dir)
    # With its version: the manifest's hash is to change when the pictures do.
    name, pairs = builder.info.full_name, None
    if protocol.dataset == "folder":
        if protocol.low_resolution == "stored":
            pairs = folder.find_pairs(builder.builder_config.rows)
        name = f"folder/{folder.fingerprint(dataset.index, pairs)}"
    protocol = dataclasses.replace(protocol, dataset=name)
    plan = protocols.make_plan(protocol, dataset.index, pairs)
    plan, quarantined = _quarantine(plan, dataset.index, config, builder.data_dir)
    protocols.check_disjoint(plan, dataset.index.sha256)
    protocols.check_matches(plan)
    _check_tuples(plan, config)
    planned = plan.train.label[_planned(plan, config.tuples)]
    return Data(
        plan=plan,
        manifest=protocols.manifest(plan),
        steps_per_epoch=sampling.steps_per_epoch(
            planned, num_ids=config.num_ids, num_instances=config.num_instances
        ),
        num_repeating=sampling.num_repeating(
            planned, num_instances=config.num_instances
        ),
        quarantined=quarantined,
        source=dataset.source,
        config=config,
    )


def train_batches(
    data: Data, *, seed: int, start_step: int, num_steps: int, copy_rate: int = 0
) -> Iterator[Batch]:
    """The training batches of steps start_step … start_step + num_steps − 1.

    Args:
      data: from `open_data`.
      seed: int, at least 0; with the step it decides everything about a batch.
      start_step: the first step, counted from the start of training.
      num_steps: how many batches.
      copy_rate: the one rate of all synthetic copies; 0 for one of `copy_scales` or of
        the protocol's scales, drawn anew for each.

    Yields:
      Dicts of arrays, B = P·K rows, K consecutive ones of the same identity. Pixels are
      in [0, 1], at the input size. Image tuples (`tuples` "image" or "synthetic"):
        lr: (B, H, W, 3) float32, the image as the MLR set stores it, or with
          "synthetic", where it has an HR original, a copy of that at a rate that is
          drawn anew in every step;
        hr: (B, H, W, 3) float32, its HR original with the same flip and crop;
        has_hr: (B,) bool, False where no original exists and `hr` repeats `lr`;
        label: (B,) int32 in [0, num_classes);
        camid: (B,) int32;
        scale: (B,) float32, how much smaller `lr` is, at least 1;
        resolution: (B,) float32, 1 / scale;
        relative_width: (B,) float32, the width of `lr` as it is stored, or as the copy
          would be, by that of the widest stored training image;
        index: (B,) int32 rows of `data.plan.train`.
      Cross tuples (`tuples` "cross"), from HR and from LR images of the same identity:
        hr: (B, H, W, 3) float32, an image that is not low-resolution;
        synthetic_lr: (B, H, W, 3) float32, a copy of it at a rate drawn anew in every
          step, with the same flip and crop;
        lr: (B, H, W, 3) float32, a low-resolution image of the identity, with a flip
          and a crop of its own;
        has_lr: (B,) bool, False where the identity has no such image, `lr` repeats
          `synthetic_lr` and no loss may use it;
        label, camid, index: as above, of `hr`; lr_camid, lr_index: of `lr`, −1 where
          there is none;
        scale, resolution: of `lr`; synthetic_scale, synthetic_resolution: of
          `synthetic_lr`.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    images = data.plan.train
    make, keys, describe = _image_tuples, _IMAGE_KEYS, _describe
    if data.config.tuples == "cross":
        make, keys, describe = _cross_tuples, _CROSS_KEYS, _describe_cross
    steps = range(start_step, start_step + num_steps)
    for batch in _ahead(lambda step: make(data, seed, step, copy_rate), keys, steps):
        yield describe(batch, images) | {"label": images.label[batch["index"]]}


def eval_batches(data: Data, side: str, copy_rate: int = 0) -> Iterator[Batch]:
    """All images of one searched side, in order and without augmentation.

    Args:
      data: from `open_data`.
      side: "query" or "gallery", or "val_query" or "val_gallery".
      copy_rate: if not 0, batches have `synthetic_lr`, copies of the images, as they
        are stored, at that rate.

    Yields:
      Image tuples as from `train_batches`, of exactly `eval_batch_size` rows, as the
      MLR set stores them, with pid: (B,) int64 in place of `label`, `index` for the
      rows of that side of `data.plan` and valid: (B,) bool, False in the last batch
      where the last image is repeated to fill it.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    num_images = len(getattr(data.plan, side).pid)
    batch_size = data.config.eval_batch_size
    rows = np.arange(-(-num_images // batch_size) * batch_size).reshape(-1, batch_size)
    existing = np.minimum(rows, num_images - 1)
    batches = _plain_batches(data, side, existing, copy_rate)
    for batch, valid in zip(batches, rows < num_images, strict=True):
        yield batch | {"valid": valid}


def load_images(data: Data, side: str, rows: ArrayLike, copy_rate: int = 0) -> Batch:
    """Some images of one side, without augmentation.

    Args:
      data: from `open_data`.
      side: "train", "query", "gallery", "val_query" or "val_gallery".
      rows: (N,) int rows of that side of `data.plan`, at least one.
      copy_rate: see `eval_batches`.

    Returns:
      One batch as from `eval_batches`, of N rows in the order given, without `valid`.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    return next(_plain_batches(data, side, np.asarray(rows)[None], copy_rate))


def at_resolution(data: Data, **resolutions: Fraction) -> Data:
    """The data with the images of some sides at another resolution.

    Args:
      data: from `open_data`.
      **resolutions: side, "query" or "gallery" → fraction of its originals' width and
        height at which every image is stored then, at most 1.

    Returns:
      `Data`; sizes are rounded, and the images degraded, as the protocol says.

    Raises:
      ValueError: if an image is stored as a low-resolution one, or a fraction is not
        from 0 to 1.
    """
    sides = {}
    for side, resolution in resolutions.items():
        images = getattr(data.plan, side)
        fixed = ~images.has_hr | (images.original != images.record)
        if fixed.any():
            raise ValueError(
                f"expected to degrade the HR original of every {side} image, found "
                f"{fixed.sum()} images that are stored as low-resolution ones under "
                f"{data.plan.protocol.name}."
            )
        sides[side] = protocols.at_resolution(
            images, resolution, data.plan.protocol.rounding
        )
    return data._replace(plan=data.plan._replace(**sides))


def _plain_batches(data, side, rows, copy_rate=0):
    """Batches of the given (batches, B) rows of a side, without augmentation."""
    images = getattr(data.plan, side)
    size = tuple(data.config.image_size)

    def load(number):
        index = rows[number].astype(np.int32)
        lr, hr, *copies = _empty(data, 2 + bool(copy_rate), len(index))
        for row, (low, high) in enumerate(_read(data, images, index)):
            hr[row] = transforms.fit(high, size, data.config.resize)
            low, kernel = _stored(data, images, index[row], low)
            lr[row] = hr[row] if low is high else transforms.fit(low, size, kernel)
            for copy in copies:
                copy[row] = transforms.fit(_copy(data, low, copy_rate), size)
        relative_width = _relative_width(data, images.width[index])
        return lr, hr, images.scale[index], relative_width, index, *copies

    keys = (*_IMAGE_KEYS, "synthetic_lr") if copy_rate else _IMAGE_KEYS
    for batch in _ahead(load, keys, range(len(rows))):
        batch = _describe(batch, images)
        yield batch | {"pid": images.pid[batch["index"]]}


def _image_tuples(data, seed, step, copy_rate):
    """One training batch, in the order of _IMAGE_KEYS."""
    config, images = data.config, data.plan.train
    index, rates = _plan(data, seed, step, copy_rate)
    draws = sampling.plan_draws(seed, step, len(index), transforms.NUM_DRAWS)
    copied = images.has_hr[index] & (config.tuples == "synthetic")
    scale = np.where(copied, rates, images.scale[index]).astype(np.float32)
    width = images.width[index].astype(float)
    lr, hr = _empty(data, 2, len(index))
    augment = _augmentation(config)
    for row, (low, high) in enumerate(_read(data, images, index)):
        augment(high, draws[row], kernel=config.resize, out=hr[row])
        if copied[row]:
            low, kernel = _copy(data, high, rates[row]), "bicubic"
            width[row] = high.shape[1] / rates[row]
        else:
            low, kernel = _stored(data, images, index[row], low)
        if low is high:
            lr[row] = hr[row]
        else:
            augment(low, draws[row], kernel=kernel, out=lr[row])
    return lr, hr, scale, _relative_width(data, width), index


def _cross_tuples(data, seed, step, copy_rate):
    """One training batch, in the order of _CROSS_KEYS."""
    config, images = data.config, data.plan.train
    index, rates = _plan(data, seed, step, copy_rate)
    low = np.flatnonzero(images.low)
    partner = sampling.plan_partners(seed, step, images.label[index], images.label[low])
    lr_index = np.where(partner < 0, -1, low[partner]).astype(np.int32)
    draws = sampling.plan_draws(seed, step, 2 * len(index), transforms.NUM_DRAWS)
    partners = _read(data, images, lr_index[lr_index >= 0])
    lr, synthetic_lr, hr = _empty(data, 3, len(index))
    augment = _augmentation(config)
    for row, (_, high) in enumerate(_read(data, images, index)):
        augment(high, draws[2 * row], kernel=config.resize, out=hr[row])
        low = _copy(data, high, rates[row])
        augment(low, draws[2 * row], out=synthetic_lr[row])
        if lr_index[row] < 0:
            lr[row] = synthetic_lr[row]
            continue
        low, kernel = _stored(data, images, lr_index[row], next(partners)[0])
        augment(low, draws[2 * row + 1], kernel=kernel, out=lr[row])
    return lr, synthetic_lr, hr, rates.astype(np.float32), index, lr_index


def _plan(data, seed, step, copy_rate):
    """((B,) rows of the training side, (B,) rates of synthetic copies) of a step."""
    config, images = data.config, data.plan.train
    rows = _planned(data.plan, config.tuples)
    index = sampling.plan_batch(
        seed,
        step,
        images.label[rows],
        num_ids=config.num_ids,
        num_instances=config.num_instances,
    )
    scales = config.copy_scales or data.plan.protocol.scales
    if copy_rate:
        scales = (copy_rate,)
    return rows[index], sampling.plan_scales(seed, step, len(index), scales)


def _planned(plan, tuples):
    """(N,) int32: the rows of the training side that P×K batches are drawn from."""
    rows = np.arange(len(plan.train.pid), dtype=np.int32)
    return rows[~plan.train.low] if tuples == "cross" else rows


def _read(data, images, index):
    """Pixels of some images of a side: an iterator of (record's, original's).

    Both are (h, w, 3) uint8, and one array where the image has no other original.
    """
    columns = (images.name, images.record, images.original)
    names, record, original = (column[index] for column in columns)
    of_names = [f"{name}'s original" for name in names]
    of_names = np.where(record == original, names, of_names)
    positions = np.append(original, record).tolist()
    pixels = records.read_pixels(data.source, positions, [*of_names, *names])
    return zip(pixels[len(index) :], pixels[: len(index)], strict=True)


def _stored(data, images, i, pixels):
    """Image i, of these pixels in its record, as the MLR set stores it.

    Returns:
      ((h, w, 3) uint8, the kernel that brings them to the input size): the LR copy or
      `pixels` themselves.
    """
    paired = images.record[i] != images.original[i]
    if paired or not (images.low[i] and images.has_hr[i]):
        return pixels, data.config.resize
    return _degraded(data, pixels, (images.height[i], images.width[i])), "bicubic"


def _copy(data, pixels, rate):
    """The LR copy of an image at some rate, (h, w, 3) uint8."""
    size = np.array(pixels.shape[:2])
    size = protocols.down_sample(size, rate, data.plan.protocol.rounding)
    return _degraded(data, pixels, tuple(size))


def _degraded(data, pixels, size):
    protocol = data.plan.protocol
    return transforms.degrade(
        pixels,
        size,
        protocol.kernel,
        blur=protocol.blur,
        jpeg_quality=protocol.jpeg_quality,
    )


def _augmentation(config):
    return functools.partial(
        transforms.augment,
        size=tuple(config.image_size),
        flip=config.flip,
        pad=config.pad,
        erase=config.erase,
    )


def _empty(data, num_arrays, batch_size):
    """Arrays for the images of a batch, at multiples of 64 bytes.

    From such addresses TensorFlow takes an array over, from others it copies it.
    """
    shape = (batch_size, *data.config.image_size, 3)
    size, arrays = math.prod(shape), []
    for _ in range(num_arrays):
        memory = np.empty(size + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4
        arrays.append(memory[start : start + size].reshape(shape))
    return arrays


def _relative_width(data, width):
    """(B,) float32: widths by that of the widest stored training image, at most 1."""
    return np.minimum(width / data.plan.train.width.max(), 1).astype(np.float32)


def _describe(batch, images):
    """Adds what the plan knows about the rows of a batch of image tuples."""
    index = batch["index"]
    return batch | {
        "has_hr": images.has_hr[index],
        "camid": images.camid[index],
        "resolution": 1 / batch["scale"],
    }


def _describe_cross(batch, images):
    """Adds what the plan knows about the rows of a batch of cross tuples."""
    index, lr_index = batch["index"], batch["lr_index"]
    has_lr = lr_index >= 0
    scale = np.where(has_lr, images.scale[lr_index], batch["synthetic_scale"])
    return batch | {
        "has_lr": has_lr,
        "camid": images.camid[index],
        "lr_camid": np.where(has_lr, images.camid[lr_index], -1),
        "scale": scale,
        "resolution": 1 / scale,
        "synthetic_resolution": 1 / batch["synthetic_scale"],
    }


_open = weakref.WeakSet()  # iterators whose threads may still be at work


def _ahead(make, keys, numbers):
    """Dicts of the arrays `make(number)`, made ahead by several threads, in order."""
    batches = _by_threads(make, keys, numbers)
    _open.add(batches)
    return batches


@atexit.register
def _close():
    """Stops the threads: Python's end would wait for them, and they for Python."""
    for batches in list(_open):
        batches.close()


def _by_threads(make, keys, numbers):
    types = [tf.int32 if key.endswith("index") else tf.float32 for key in keys]
    dataset = (
        tf.data.Dataset.range(numbers.start, numbers.stop)
        .map(
            lambda number: tf.numpy_function(make, [number], types),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .prefetch(2)
    )
    try:
        for arrays in dataset.as_numpy_iterator():
            yield dict(zip(keys, arrays, strict=True))
    except tf.errors.InvalidArgumentError as error:  # "… ValueError: …\nTraceback …"
        message = error.message.partition("ValueError: ")[2].partition("\nTraceback")[0]
        raise ValueError(message or error.message) from None


def _find_protocol(config):
    """The named protocol, with what the config says instead."""
    if config.protocol not in protocols.PROTOCOLS:
        raise ValueError(
            f"Unknown protocol {config.protocol!r}: choose one of "
            f"{', '.join(protocols.PROTOCOLS)}."
        )
    fields = ("lr_cameras", "rate", "scales", "kernel", "rounding", "blur")
    fields += ("evaluation", "num_draws")
    changes = {name: value for name in fields if (value := getattr(config, name))}
    for name in {"lr_cameras", "scales"} & changes.keys():
        changes[name] = tuple(dict.fromkeys(changes[name]))  # each once
    if config.jpeg_quality >= 0:
        changes["jpeg_quality"] = config.jpeg_quality
    return dataclasses.replace(
        protocols.PROTOCOLS[config.protocol],
        seed=config.seed,
        split=config.split,
        val_ids=config.val_ids,
        **changes,
    )


def _find_builder(dataset, config):
    """The TFDS builder of "name" or "name/config", from the file of that name."""
    cache_dir = config.cache_dir or None
    if dataset == "folder":
        return folder.open_folder(
            config.dir,
            table=config.table,
            pattern=config.pattern,
            no_camera=config.no_camera,
            cache_dir=cache_dir,
        )
    name, _, builder_config = dataset.partition("/")
    importlib.import_module(f"input_pipeline.datasets.{name}")
    return tfds.builder_cls(name)(config=builder_config or None, data_dir=cache_dir)


def _quarantine(plan, index, config, folder):
    """The plan without training images that cannot be read, and their names."""
    advice = (
        f"Replace it by an intact copy, and delete {folder}: it is then built again."
    )
    for side in ("query", "gallery", "val_query", "val_gallery"):
        _, names = _unreadable(getattr(plan, side), index)
        if names:
            raise ValueError(
                f"{names[0]}: not a readable image, and none may be missing in {side} "
                f"(of {len(names)} there). {advice}"
            )
    bad, names = _unreadable(plan.train, index)
    if len(names) > config.max_quarantined:
        raise ValueError(
            f"{names[0]}: not a readable image, like {len(names)} training images in "
            f"all, of which at most {config.max_quarantined} may be left out "
            f"(config.data.max_quarantined). {advice}"
        )
    train = protocols.Images(*(column[~bad] for column in plan.train))
    labels, label = np.unique(train.label, return_inverse=True)  # some may have gone
    train = train._replace(label=label.astype(np.int32))
    return plan._replace(train=train, num_classes=len(labels)), names


def _unreadable(images, index):
    """((N,) bool, names): which images of a side, or their originals, are damaged."""
    itself, original = (
        index.height[positions] == 0 for positions in (images.record, images.original)
    )
    bad = itself | original
    names = [
        name if alone else f"{name}'s original {index.name[position]}"
        for name, alone, position in zip(
            images.name[bad].tolist(), itself[bad], images.original[bad], strict=True
        )
    ]
    return bad, names


def _check_tuples(plan, config):
    """Raises ValueError where the protocol has nothing to make such tuples of."""
    protocol, tuples, scales = plan.protocol, config.tuples, config.copy_scales
    if any(scale < 1 or scale % 1 for scale in scales):
        raise ValueError(
            f"copy_scales must be whole numbers from 1 on, found {tuple(scales)}."
        )
    if scales and tuples == "image":
        raise ValueError(
            "tuples='image' has no synthetic copies, found "
            f"copy_scales={tuple(scales)}."
        )
    if tuples != "image" and set(protocol.scales) == {1}:
        raise ValueError(
            f"tuples={tuples!r} needs a protocol that down-samples, found "
            f"{protocol.name}, whose scales are all 1."
        )
    if tuples == "cross" and (plan.train.low.all() or not plan.train.low.any()):
        raise ValueError(
            "tuples='cross' needs training images of high and of low resolution, found "
            f"one kind alone under {protocol.name}."
        )
