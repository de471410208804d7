"""A data set with its low-resolution images restored, as an ordinary folder.

Whatever trains or is tested on the folder (protocol `paired_folder`) needs neither the
restorer nor the data set that it was made from.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from crossres_jax import sampling
from input_pipeline import pipeline, protocols
from input_pipeline.datasets import records

COLUMNS = ("path", "pid", "camid", "split", "role", "scale", "original")


def check_restorable(data: pipeline.Data) -> None:
    """Raises ValueError if a folder of restored images would not tell all of it.

    Nothing may be held out, query must be low-resolution and gallery not, and the
    gallery must have no distractors.
    """
    plan = data.plan
    if len(plan.val_query.pid):
        raise ValueError(
            f"expected no held-out identities, found {plan.protocol.val_ids}: their "
            "images would be needed both restored and as they are. Leave out "
            "config.data.val_ids."
        )
    if not plan.query.low.any() or plan.gallery.low.any():
        raise ValueError(
            "expected a protocol with low-resolution queries and a gallery of none, "
            f"found {plan.query.low.sum()} and {plan.gallery.low.sum()} low-resolution "
            f"images there under {plan.protocol.name}. Choose an MLR protocol."
        )
    if not plan.protocol.num_draws:
        raise ValueError(
            "expected a protocol with single-shot scores, found none under "
            f"{plan.protocol.name}, whose gallery has images of nobody."
        )


def check_restored(folder: Path) -> str:
    """The SHA-256 of a folder that `write_restored` made, which stands in its manifest.

    Raises:
      ValueError: if a file is not as it was written.
    """
    expected = json.loads((folder / "manifest.json").read_text())["sha256"]
    if (found := _digest(folder)) != expected:
        raise ValueError(
            f"{folder} is damaged: expected the SHA-256 {expected}, found {found}. "
            "Delete it, and it is made again."
        )
    return found


def write_restored(
    data: pipeline.Data,
    restore: Callable[..., np.ndarray],
    folder: Path,
    *,
    progress: Callable[[int], None],
) -> None:
    """Restores every low-resolution image of a protocol, once.

    The folder gets
      train/, query/, gallery/: the images of the sides. Low-resolution ones are
        restored, at the input size; all others are the files as they were. A training
        image that is not low-resolution comes as the restored copy of itself, at a rate
        that is drawn once;
      original/: the originals of the training images, as they are;
      images.csv: the table of `folder.open_folder`;
      manifest.json: the protocol that it was made from, and the SHA-256 of the table
        with the bytes of all pictures.
    It appears whole or not at all.

    Args:
      data: from `open_data`, as `check_restorable` wants it.
      restore: `(images, *, resolution) → images`, both (N, H, W, 3) in [0, 1].
      folder: must not exist.
      progress: is told how many images are done.
    """
    plan = data.plan
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows = []

    def write(path, encoded):
        target = unfinished / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)

    for side in ("train", "query", "gallery"):
        images = getattr(plan, side)
        for i, pixels, scale in _restored(data, side, restore):
            name = images.name[i]
            path, original = f"{side}/{name}", ""
            source = data.source[int(images.original[i])]["image"]
            if pixels is None:
                write(path, source)
            else:
                path += "" if name.endswith(".png") else ".png"
                write(path, records.encode_png(pixels))
            if side == "train" and images.has_hr[i]:
                original = f"original/{name}"
                write(original, source)
            split, role = ("train", "") if side == "train" else ("test", side)
            pid, camid = images.pid[i], images.camid[i]
            rows.append([path, pid, camid, split, role, f"{scale:g}", original])
            progress(len(rows))
    with (unfinished / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    manifest = {"source": protocols.manifest(plan), "sha256": _digest(unfinished)}
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    os.sync()  # before it has the name that says it is whole
    unfinished.rename(folder)


def _digest(folder):
    """SHA-256 of the table and of all pictures that it names, in hexadecimal digits."""
    digest = hashlib.sha256((folder / "images.csv").read_bytes())
    with (folder / "images.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for path in filter(None, (row["path"], row["original"])):
                digest.update((folder / path).read_bytes())
    return digest.hexdigest()


def _restored(data, side, restore) -> Iterator[tuple[int, np.ndarray | None, float]]:
    """(row of the side, its restored pixels or None, scale) of each image."""
    images, protocol = getattr(data.plan, side), data.plan.protocol
    rates = np.zeros(len(images.pid), int)  # of copies; 0 for an image as it is stored
    if side == "train":
        drawn = sampling.plan_scales(
            protocol.seed, protocol.split, len(rates), protocol.scales
        )
        rates = np.where(images.low, 0, drawn)
    for rate in np.unique(rates):
        rows = np.flatnonzero(rates == rate)
        if side != "train":
            yield from ((i, None, 1.0) for i in rows[~images.low[rows]])
            rows = rows[images.low[rows]]
        size = data.config.eval_batch_size
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            full = np.resize(chunk, size)  # one shape, one program
            batch = pipeline.load_images(data, side, full, copy_rate=int(rate))
            low = batch["synthetic_lr"] if rate else batch["lr"]
            scale = np.full(size, rate) if rate else batch["scale"]
            restored = np.asarray(restore(low, resolution=1 / scale))
            pixels = np.rint(restored.clip(0, 1) * 255).astype(np.uint8)
            yield from zip(chunk.tolist(), pixels, scale.tolist(), strict=False)
