"""A data set with its low-resolution images restored, as an ordinary folder.

Whatever trains or is tested on the folder (protocol `paired_folder`) needs neither the
restorer nor the data set that it was made from.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from crossres_jax import sampling
from input_pipeline import pipeline, protocols
from input_pipeline.datasets import records

COLUMNS = ("path", "pid", "camid", "split", "role", "scale", "original")


def check_restorable(data: pipeline.Data) -> None:
    """Raises ValueError if identities are held out, or no query is low-resolution."""
    plan = data.plan
    if len(plan.val_query.pid):
        raise ValueError(
            f"expected no held-out identities, found {plan.protocol.val_ids}: their "
            "images would be needed both restored and as they are. Leave out "
            "config.data.val_ids."
        )
    if not plan.query.low.any():
        raise ValueError(
            "expected a protocol with low-resolution queries, found none under "
            f"{plan.protocol.name}: there is nothing to restore."
        )


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
        restored, at the input size; those of the gallery are the files as they are. A
        training image that is not low-resolution comes as the restored copy of itself,
        at a rate that is drawn once;
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
    rows, digest = [], hashlib.sha256()

    def write(path, encoded):
        target = unfinished / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)
        digest.update(path.encode() + encoded)

    for side in ("train", "query", "gallery"):
        images = getattr(plan, side)
        for i, pixels, scale in _restored(data, side, restore):
            name = images.name[i]
            path, original = f"{side}/{name}", ""
            source = data.source[int(images.original[i])]["image"]
            if pixels is None:
                write(path, source)
            else:
                path = str(PurePosixPath(path).with_suffix(".png"))
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
    digest.update((unfinished / "images.csv").read_bytes())
    manifest = {"source": protocols.manifest(plan), "sha256": digest.hexdigest()}
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    unfinished.rename(folder)


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
        for chunk in (rows[n : n + size] for n in range(0, len(rows), size)):
            batch = pipeline.load_images(data, side, chunk, copy_rate=int(rate))
            low = batch["synthetic_lr"] if rate else batch["lr"]
            scale = np.full(len(chunk), rate) if rate else batch["scale"]
            restored = np.asarray(restore(low, resolution=1 / scale))
            pixels = np.rint(restored.clip(0, 1) * 255).astype(np.uint8)
            yield from zip(chunk.tolist(), pixels, scale.tolist(), strict=True)
