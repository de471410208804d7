"""PSNR of the published VDSR on the luminance of VIPeR, against bicubic.

    python -m benchmarks.restoration --data_dir=DIR \
        --weights=vdsr_twtygqyy_model_epoch_50.pth --into=docs/results.md:vdsr

All 1,264 pictures at their own size, 128×48: down-sampled by 2, 3 and 4 (antialiased
bicubic, rounded to 8 bits), brought back by bicubic interpolation, and restored. The
luminance is BT.601's, from 16 to 235 of 255 levels, as VDSR was trained on it; the peak
of the PSNR is 255, and no border is left out. About eight minutes on two cores.
"""

import argparse

import jax
import numpy as np

from benchmarks.degraded_queries import degraded
from benchmarks.tables import Section, markdown
from configs import common
from crossres_jax.metrics import psnr
from crossres_jax.modules.vdsr import VDSR
from crossres_jax.pretrained import load_torch, merge, tables
from input_pipeline import pipeline

SIDES = ("train", "query", "gallery")  # all pictures, each in one of them


def luminance(images):
    """(B, H, W, 3) RGB in [0, 1] → (B, H, W, 1), BT.601."""
    weights = np.array([65.481, 128.553, 24.966], np.float32) / 255
    return (images @ weights + np.float32(16 / 255))[..., None]


def main():
    """Prints the table, and writes it where the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--cache_dir", default="")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None

    config = common.get_config()
    config.data.protocol, config.data.image_size = "viper", (128, 48)
    config.data.dir, config.data.cache_dir = arguments.data_dir, arguments.cache_dir
    data = pipeline.open_data(config.data)
    vdsr = VDSR(squeeze=0)
    picture = jax.ShapeDtypeStruct((1, 128, 48, 1), np.float32)
    shapes = jax.eval_shape(vdsr.init, jax.random.key(0), picture)
    variables = merge(shapes, load_torch(arguments.weights), tables.VDSR)
    restore = jax.jit(lambda images: vdsr.apply(variables, images))

    rows = [["", "bicubic, dB", "VDSR, dB", "gain", "pictures that gain"]]
    for scale in (2, 3, 4):
        before, after = [], []
        for side in SIDES:
            for batch in pipeline.eval_batches(degraded(data, scale, SIDES), side):
                low, high = luminance(batch["lr"]), luminance(batch["hr"])
                restored = np.asarray(restore(low))
                before.append(psnr(low, high)[batch["valid"]])
                after.append(psnr(restored, high)[batch["valid"]])
        before, after = np.concatenate(before), np.concatenate(after)
        rows.append(
            [
                f"×{scale}",
                f"{before.mean():.2f}",
                f"{after.mean():.2f}",
                f"{(after - before).mean():+.2f}",
                f"{(after > before).mean():.1%}",
            ]
        )
    print(f"{len(before)} pictures")
    print(markdown(rows))
    if section:
        section.write(markdown(rows))


if __name__ == "__main__":
    main()
