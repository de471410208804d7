"""What each part of PS-HRNet contributes, by the main command, over seeds or splits.

    python -m benchmarks.ablation --out=runs/ablation
    python -m benchmarks.ablation --out=runs/viper --arg=mlr_viper,narrow \
        --vary=data.split --values=0,1 -- --config.data.dir=DIR

Rows: (a) raw pixels, the untrained network, (b) HRNet-ReID-H, trained on HR images,
(c) HRNet-ReID-L, trained on the MLR set alone, (d) PS-HRNet. Every run is one of
launch.py in its own folder; a finished one is not repeated. Arguments after `--` go to
every run. Prints a Markdown table of means ± sample standard deviations;
`--into=docs/results.md:demo` also puts it between the lines `<!-- demo -->` and
`<!-- /demo -->` of that file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.tables import Section, markdown

ROOT = Path(__file__).parent.parent
UNTRAINED = ("--config.method.epochs_h=0", "--config.method.epochs_l=0")
ROWS = {  # name → (option of configs/ps_hrnet.py, further flags)
    "untrained": ("", UNTRAINED),
    "(b) H on HR images": ("hr", ()),
    "(c) L without SR and PS": ("id", ()),
    "(d) PS-HRNet": ("", ()),
}


def run(out, arg, option, varied, flags, row_flags):
    """Runs launch.py where that has not been done, and returns its results."""
    field, value = varied
    name = f"{option or 'full'}{'-untrained' if row_flags else ''}-{value}"
    if not (out / name / "results.json").exists():
        argument = ",".join(part for part in (arg, option) if part)
        command = [
            sys.executable,
            ROOT / "launch.py",
            f"--config={ROOT / 'configs' / 'ps_hrnet.py'}:{argument}",
            f"--workdir={out / name}",
            f"--config.{field}={value}",
            *flags,
            *row_flags,
        ]
        subprocess.run(command, check=True)
    return json.loads((out / name / "results.json").read_text())


def raw_pixels(config_path):
    """The results of comparing the pixels of a run's queries and gallery images."""
    from ml_collections import ConfigDict

    from crossres_jax.methods.contract import Method
    from crossres_jax.ops.distances import euclidean_distances
    from crossres_jax.training.evaluate import compare, embed_images
    from crossres_jax.training.sharding import make_mesh
    from input_pipeline import pipeline

    config = ConfigDict(json.loads(config_path.read_text())["config"])
    data = pipeline.open_data(config.data)
    method = Method(
        init=lambda rng, batch: {},
        phases=(),
        embed=lambda variables, x, *, role, resolution: x.reshape(len(x), -1),
        distance=euclidean_distances,
    )
    query, gallery = (
        embed_images(
            method, {}, pipeline.eval_batches(data, side), make_mesh(), role=side
        )
        for side in ("query", "gallery")
    )
    protocol = data.plan.protocol
    scored = {"evaluation": protocol.evaluation, "num_draws": protocol.num_draws}
    return compare(method, query, gallery, **scored, **config.evaluation).results


def table(rows):
    """Rows of results.json dictionaries → means ± standard deviations."""
    columns = {  # name → (digits, value)
        "Rank-1": (1, lambda r: r["rank1"]),
        "Rank-5": (1, lambda r: r["rank5"]),
        "Rank-10": (1, lambda r: r["rank10"]),
        "mAP": (1, lambda r: r["mAP"]),
        "×2": (1, lambda r: r["by_scale"]["2"]["rank1"]),
        "×3": (1, lambda r: r["by_scale"]["3"]["rank1"]),
        "×4": (1, lambda r: r["by_scale"]["4"]["rank1"]),
        "PSNR − bicubic": (2, lambda r: r["sr"]["psnr"] - r["sr"]["psnr_bicubic"]),
        "SSIM − bicubic": (3, lambda r: r["sr"]["ssim"] - r["sr"]["ssim_bicubic"]),
    }
    lines = [["", *columns]]
    for name, results in rows.items():
        cells = [name]
        for column, (digits, value) in columns.items():
            if "bicubic" in column and "sr" not in results[0]:
                cells.append("")
                continue
            values = [value(result) for result in results]
            cell = f"{np.mean(values):.{digits}f}"
            if len(values) > 1:
                cell += f" ± {np.std(values, ddof=1):.{digits}f}"
            cells.append(cell)
        lines.append(cells)
    return markdown(lines)


def main():
    """Runs every row with every value, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arg", default="", help="PROTOCOL[,OPTION…] of the config")
    parser.add_argument("--vary", default="seed", help="field of the config")
    parser.add_argument("--values", default="0,1,2", help="of that field")
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("flags", nargs="*", help="after --, for every run")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    out, arg, values = arguments.out, arguments.arg, arguments.values.split(",")
    rows = {
        name: [
            run(out, arg, option, (arguments.vary, value), arguments.flags, flags)
            for value in values
        ]
        for name, (option, flags) in ROWS.items()
    }
    configs = [out / f"full-{value}" / "config.json" for value in values]
    if arguments.vary == "seed":  # of the network, which pixels do not have
        configs = configs[:1]
    rows = {"(a) raw pixels": [raw_pixels(path) for path in configs], **rows}
    print(table(rows))
    if section:
        section.write(table(rows))


if __name__ == "__main__":
    main()
