"""From a config to batches: records → plan → decoded pairs → NumPy dicts.

A training batch is a pure function of (seed, step), so a run that is resumed at step n
sees bit for bit what the uninterrupted run would have seen. Nothing keeps a position.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import ArrayLike

from crossres_jax import sampling
from input_pipeline import protocols, transforms
from input_pipeline.datasets import records

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

Batch = dict[str, np.ndarray]


class Data(NamedTuple):
    """An opened and checked data set under its protocol."""

    plan: protocols.Plan
    manifest: dict
    steps_per_epoch: int
    num_repeating: int  # identities with fewer images than a batch shows of them
    source: Sequence  # records by position
    config: Any  # as given to `open_data`


def open_data(config: Any) -> Data:
    """Opens the data set of a protocol, building it the first time, and checks it.

    Args:
      config: any object with the attributes
        protocol: a name in `protocols.PROTOCOLS`;
        dir: folder of the official archives, '' where none is needed;
        cache_dir: where the built data sets are kept, '' for TFDS's own place;
        seed, split: int, which of the protocol's random splits; an official split is 0;
        val_ids: how many training identities to hold out;
        kernel: of the down-sampling, '' for the protocol's own;
        image_size: (height, width) of the batches;
        resize: kernel that brings images to this size; down-sampled ones always come
          back by bicubic interpolation;
        num_ids, num_instances: P and K of the training batches;
        flip, pad, erase: see `transforms.augment`;
        synthetic_lr: 'stored' to train on the MLR set as it is, 'all' to give every
          image an LR copy at a rate that is drawn anew in every step;
        eval_batch_size: images per evaluation batch.

    Returns:
      `Data`.

    Raises:
      ValueError: if the config names something unknown, if the official files are
        missing, incomplete or damaged, or if the split leaks.
    """
    if config.synthetic_lr not in ("stored", "all"):
        raise ValueError(
            f"synthetic_lr must be 'stored' or 'all', found {config.synthetic_lr!r}."
        )
    if config.resize not in protocols.KERNELS:
        raise ValueError(
            f"resize must be one of {', '.join(protocols.KERNELS)}, found "
            f"{config.resize!r}."
        )
    protocol = _find_protocol(config)
    if config.synthetic_lr == "all" and set(protocol.scales) == {1}:
        raise ValueError(
            "synthetic_lr='all' needs a protocol that down-samples, found "
            f"{protocol.name}, whose scales are all 1."
        )
    builder = _find_builder(protocol.dataset, config.cache_dir)
    # With its version: the manifest's hash is to change when the pictures do.
    protocol = dataclasses.replace(protocol, dataset=builder.info.full_name)
    dataset = records.open_records(builder, manual_dir=config.dir)
    plan = protocols.make_plan(protocol, dataset.index)
    protocols.check_disjoint(plan, dataset.index.sha256)
    return Data(
        plan=plan,
        manifest=protocols.manifest(plan),
        steps_per_epoch=sampling.steps_per_epoch(
            plan.train.label,
            num_ids=config.num_ids,
            num_instances=config.num_instances,
        ),
        num_repeating=sampling.num_repeating(
            plan.train.label, num_instances=config.num_instances
        ),
        source=dataset.source,
        config=config,
    )


def train_batches(
    data: Data, *, seed: int, start_step: int, num_steps: int
) -> Iterator[Batch]:
    """The training batches of steps start_step … start_step + num_steps − 1.

    Args:
      data: from `open_data`.
      seed: int, at least 0; with the step it decides everything about a batch.
      start_step: the first step, counted from the start of training.
      num_steps: how many batches.

    Yields:
      Dicts of arrays, B = P·K rows, K consecutive ones of the same identity:
        lr: (B, H, W, 3) float32 in [0, 1], the image as the MLR set stores it (HR where
          `scale` is 1), or with synthetic_lr='all' its LR copy, at the input size;
        hr: (B, H, W, 3) float32 in [0, 1], its HR original with the same flip and crop;
        has_hr: (B,) bool, False where no original exists and `hr` repeats `lr`;
        label: (B,) int32 in [0, num_classes);
        camid: (B,) int32;
        scale: (B,) int32 down-sampling rate of `lr`;
        resolution: (B,) float32, 1 / scale;
        index: (B,) int32 rows of `data.plan.train`.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    images = data.plan.train
    for batch in _iterate(_train_dataset(data, images, seed, start_step, num_steps)):
        yield _describe(batch, images) | {"label": images.label[batch["index"]]}


def eval_batches(data: Data, side: str) -> Iterator[Batch]:
    """All images of one searched side, in order and without augmentation.

    Args:
      data: from `open_data`.
      side: "query" or "gallery", or "val_query" or "val_gallery".

    Yields:
      Dicts as from `train_batches`, of exactly `eval_batch_size` rows, with pid: (B,)
      int64 in place of `label`, `index` for the rows of that side of `data.plan` and
      valid: (B,) bool, False in the last batch where the last image is repeated to fill
      it.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    images = getattr(data.plan, side)
    num_images, batch_size = len(images.pid), data.config.eval_batch_size
    rows = np.arange(-(-num_images // batch_size) * batch_size)
    batches = _plain_batches(data, images, np.minimum(rows, num_images - 1), batch_size)
    valid = (rows < num_images).reshape(-1, batch_size)
    for batch, valid_rows in zip(batches, valid, strict=True):
        yield batch | {"valid": valid_rows}


def load_images(data: Data, side: str, rows: ArrayLike) -> Batch:
    """Some images of one searched side, without augmentation.

    Args:
      data: from `open_data`.
      side: "query" or "gallery", or "val_query" or "val_gallery".
      rows: (N,) int rows of that side of `data.plan`, at least one.

    Returns:
      One batch as from `eval_batches`, of N rows in the order given, without `valid`.

    Raises:
      ValueError: naming the image, if one cannot be read.
    """
    rows = np.asarray(rows)
    return next(_plain_batches(data, getattr(data.plan, side), rows, len(rows)))


def _plain_batches(data, images, rows, batch_size):
    """Batches of the given rows of `images`, without augmentation."""
    for batch in _iterate(_plain_dataset(data, images, rows, batch_size)):
        yield _describe(batch, images) | {"pid": images.pid[batch["index"]]}


def _train_dataset(data, images, seed, start_step, num_steps):
    config = data.config
    batch_size = config.num_ids * config.num_instances

    def plan_step(step):
        index = sampling.plan_batch(
            seed,
            step,
            images.label,
            num_ids=config.num_ids,
            num_instances=config.num_instances,
        )
        scale = images.scale[index]
        if config.synthetic_lr == "all":
            scales = data.plan.protocol.scales
            scale = sampling.plan_scales(seed, step, batch_size, scales)
        slot = step * batch_size + np.arange(batch_size)
        return index, scale, slot

    def plan_slots(step):
        index, scale, slot = tf.numpy_function(
            plan_step, [step], [tf.int32, tf.int32, tf.int64]
        )
        return {"index": index, "scale": scale, "slot": slot}

    def augment(pair, row):
        return transforms.augment(
            pair,
            [seed, row["slot"]],
            flip=config.flip,
            pad=config.pad,
            erase=config.erase,
        )

    steps = tf.data.Dataset.range(start_step, start_step + num_steps)
    return _load(data, images, steps.map(plan_slots), batch_size, augment)


def _plain_dataset(data, images, rows, batch_size):
    planned = tf.data.Dataset.from_tensor_slices(
        {"index": rows.astype(np.int32), "scale": images.scale[rows]}
    )
    planned = planned.batch(batch_size, drop_remainder=True)
    return _load(data, images, planned, batch_size, lambda pair, row: pair)


def _load(data, images, planned, batch_size, augment):
    """Pairs for planned batches of `index`, `scale` and whatever `augment` needs.

    Python decodes a batch in one call, whose images are then handed on as a ragged
    tensor: a call for every image would cost as much again as the decoding.
    """

    def decode(index):
        pixels = [
            records.read_pixels(data.source, images.record[i], images.name[i])
            for i in index
        ]
        flat = np.concatenate([image.ravel() for image in pixels])
        return flat, np.array([image.shape for image in pixels])

    def add_pixels(batch):
        flat, shape = tf.numpy_function(decode, [batch["index"]], [tf.uint8, tf.int64])
        shape = tf.ensure_shape(shape, (batch_size, 3))
        pixels = tf.RaggedTensor.from_row_lengths(
            tf.ensure_shape(flat, (None,)), tf.reduce_prod(shape, axis=1)
        )
        batch = {key: tf.ensure_shape(x, (batch_size,)) for key, x in batch.items()}
        return batch | {"pixels": pixels, "shape": shape}

    def finish(row):
        pixels = tf.reshape(row["pixels"], row["shape"])
        pair = _pair(tf.ensure_shape(pixels, (None, None, 3)), row["scale"], data)
        pair = augment(pair, row)  # (2, H, W, 3)
        return {
            "lr": pair[0],
            "hr": pair[1],
            "scale": row["scale"],
            "index": row["index"],
        }

    options = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    return (
        planned.map(add_pixels, **options)
        .unbatch()
        .map(finish, **options)
        .batch(batch_size, drop_remainder=True)
        .prefetch(2)
    )


def _find_protocol(config):
    if config.protocol not in protocols.PROTOCOLS:
        raise ValueError(
            f"Unknown protocol {config.protocol!r}: choose one of "
            f"{', '.join(protocols.PROTOCOLS)}."
        )
    protocol = protocols.PROTOCOLS[config.protocol]
    return dataclasses.replace(
        protocol,
        seed=config.seed,
        split=config.split,
        kernel=config.kernel or protocol.kernel,
        val_ids=config.val_ids,
    )


def _find_builder(dataset, cache_dir):
    """The TFDS builder of "name" or "name/config", from the file of that name."""
    name, _, builder_config = dataset.partition("/")
    importlib.import_module(f"input_pipeline.datasets.{name}")
    return tfds.builder_cls(name)(
        config=builder_config or None, data_dir=cache_dir or None
    )


def _pair(pixels, scale, data):
    """(LR, HR) at the input size: (2, H, W, 3) float32 in [0, 1]."""
    size = tuple(data.config.image_size)
    kernel = data.plan.protocol.kernel
    hr = transforms.fit(pixels, size, data.config.resize)
    lr = tf.cond(
        tf.equal(scale, 1),
        lambda: hr,
        lambda: transforms.fit(transforms.degrade(pixels, scale, kernel), size),
    )
    return tf.stack([lr, hr])


def _describe(batch, images):
    """Adds what the plan knows about the rows of a batch."""
    return batch | {
        "has_hr": images.has_hr[batch["index"]],
        "camid": images.camid[batch["index"]],
        "resolution": (1.0 / batch["scale"]).astype(np.float32),
    }


def _iterate(dataset):
    """NumPy batches; an error of `_load` comes out as it went into TensorFlow."""
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.InvalidArgumentError as error:  # "… ValueError: …\nTraceback …"
        message = error.message.partition("ValueError: ")[2].partition("\nTraceback")[0]
        raise ValueError(message or error.message) from None
