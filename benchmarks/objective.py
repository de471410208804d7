"""How well trained models tell persons apart at every resolution.

    python -m benchmarks.objective --into=docs/results.md:objective \\
        --plot=docs/objective.svg "ResNet=runs/resnet" "FFSR + RIFE=runs/ffsr_rife"

O(r1, r2) of Eq. (2) of FFSR + RIFE for finished runs of any method: queries at r1 and
gallery at r2 of their originals' width, (a) both at r, as in Fig. 2 (a) and the upper
half of Fig. 4, and (b) the gallery at full resolution. The figures of each run go to
`objective.json` in its folder; the plot PLOT-a.svg shows (a), PLOT-b.svg (b). Test
images need a HR original, so that CAVIAR has no such figures.

Models that weigh two streams (FFSR + RIFE) or judge the quality of two vectors (FTWA)
also show the mean weights of the query images at each resolution, in
PLOT-weights-NAME.svg.
"""

import argparse
import dataclasses
import glob
import json
import re
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import launch
from benchmarks.plots import line_chart
from benchmarks.tables import Section, markdown
from crossres_jax.export import read_export
from crossres_jax.methods.contract import Ensemble
from crossres_jax.metrics import reid_objective
from crossres_jax.training.evaluate import embed_images
from crossres_jax.training.sharding import make_mesh
from crossres_jax.training.workdir import resolve
from crossres_jax.training.writer import write_json
from input_pipeline import pipeline

RESOLUTIONS = [Fraction(n, 8) for n in range(1, 9)]
CHUNK = 256  # queries whose distances are in memory
CURVES = {"a": "r1 = r2 = r", "b": "r1 = r, r2 = 1"}
WEIGHTS = {"w_low": "w^L", "w_high": "w^H", "w_lr": "w^LR", "w_hr": "w′^HR"}


def embed(models, data, role):
    """What each model makes of one side: {name: pytree}, and the identities."""
    features = {}
    for name, (method, variables, _) in models.items():
        copy_rate = method.gallery_rate if role == "gallery" else 0
        method = dataclasses.replace(method, restore=None)  # no pictures are compared
        batches = pipeline.eval_batches(data, role, copy_rate)
        embedded = embed_images(method, variables, batches, make_mesh(), role=role)
        features[name] = embedded.features
    return features, embedded.pid


def behind(restorer, model):
    """An exported model that gets its images, of either side, restored before."""

    def embed(variables, images, *, role, resolution):
        images = restorer.method.restore(
            restorer.variables, images, resolution=resolution
        )
        return model.method.embed(variables, images, role=role, resolution=resolution)

    return model._replace(method=dataclasses.replace(model.method, embed=embed))


def objective(distance, squared, query, gallery):
    """O of two sides, each as `embed` gives it."""
    (features, pid), (others, other_pid) = query, gallery
    blocks = [
        distance(jax.tree.map(lambda x, n=n: x[n : n + CHUNK], features), others)
        for n in range(0, len(pid), CHUNK)
    ]
    distances = np.concatenate([np.asarray(block) for block in blocks])
    return reid_objective(
        distances if squared else np.square(distances), pid, other_pid
    )


def mean_weights(side):
    """Key of `WEIGHTS` → means over the images of a side, one per block."""
    features, _ = side
    return {
        key: np.mean([model[key] for model in features.values()], axis=(0, 1)).tolist()
        for key in WEIGHTS
        if all(isinstance(x, dict) and key in x for x in features.values())
    }


def measure(folder):
    """The figures of one finished run, which are kept in its folder."""
    config = ConfigDict(resolve(None, folder, "evaluate"))
    data = pipeline.open_data(config.data)
    method = launch.build_method(config, data)
    if isinstance(method, Ensemble):
        models = {
            name: read_export(folder / name / "export") for name in method.members
        }
        distance, squared = method.distance, False
    else:
        if "restorer" in config:  # its images were restored once, these are not
            restorer = read_export(folder / "restorer" / "export")
            only = behind(restorer, read_export(folder / config.method.name / "export"))
        else:
            only = read_export(folder / "export")
        models, squared = {"": only}, only.method.squared

        def distance(query, gallery):
            return only.method.distance(query[""], gallery[""])

    full = embed(models, data, "gallery")
    curves, weights = {"a": [], "b": []}, []
    for r in RESOLUTIONS:
        smaller = pipeline.at_resolution(data, query=r, gallery=r)
        query = embed(models, smaller, "query")
        gallery = embed(models, smaller, "gallery") if r < 1 else full
        curves["a"].append(objective(distance, squared, query, gallery))
        curves["b"].append(objective(distance, squared, query, full))
        weights.append(mean_weights(query))
    figures = {
        "manifest_sha256": data.manifest["sha256"],
        "resolutions": [float(r) for r in RESOLUTIONS],
        **curves,
    }
    if weights[0]:
        figures["weights"] = weights
    write_json(folder / "objective.json", figures)
    return figures


def read(pattern):
    """The figures of all runs in the folders that a pattern matches."""
    runs = []
    for folder in map(Path, sorted(glob.glob(pattern))):
        kept = folder / "objective.json"
        runs.append(json.loads(kept.read_text()) if kept.exists() else measure(folder))
    if not runs:
        raise ValueError(f"expected folders of finished runs, found none at {pattern}.")
    return runs


def main():
    """Prints the table, and writes it and the plots where the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("--plot", type=Path, help="PLOT.svg, see above")
    parser.add_argument("rows", nargs="+", help="NAME=PATTERN of run folders")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    rows = {}
    for row in arguments.rows:
        name, _, pattern = row.partition("=")
        rows[name] = read(pattern)
    manifests = {
        name: {x["manifest_sha256"] for x in runs} for name, runs in rows.items()
    }
    if len({*map(frozenset, manifests.values())}) > 1:
        raise ValueError(f"expected the same protocol in all rows, found {manifests}.")

    lines = [["", "", *(str(r) for r in RESOLUTIONS)]]
    for curve, meaning in CURVES.items():
        for name, runs in rows.items():
            mean = np.mean([run[curve] for run in runs], axis=0)
            lines.append([meaning, name, *(f"{100 * value:.1f}" for value in mean)])
    print(markdown(lines))
    if section:
        section.write(markdown(lines))
    if arguments.plot:
        draw(arguments.plot, rows)


def draw(plot, rows):
    """One plot per curve, and one of the weights of every row that has them."""

    def chart(suffix, lines, title):
        line_chart(
            plot.with_name(f"{plot.stem}-{suffix}.svg"),
            {name: 100 * np.asarray(values) for name, values in lines.items()},
            ticks=[str(r) for r in RESOLUTIONS],
            title=title,
            unit="%",
        )

    for curve, meaning in CURVES.items():
        lines = {
            name: np.mean([run[curve] for run in runs], axis=0)
            for name, runs in rows.items()
        }
        chart(curve, lines, f"O(r1, r2) by resolution, {meaning}")
    for name, runs in rows.items():
        if all("weights" in run for run in runs):
            lines = {}
            for key in runs[0]["weights"][0]:
                of_runs = [[w[key] for w in run["weights"]] for run in runs]
                mean = np.mean(of_runs, axis=0)  # (resolutions,) or (…, blocks)
                if mean.ndim == 1:
                    lines[WEIGHTS[key]] = mean
                    continue
                for t in range(mean.shape[1]):
                    lines[f"{WEIGHTS[key]}, block {t + 1}"] = mean[:, t]
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
            chart(f"weights-{slug}", lines, f"{name}: weights by resolution")


if __name__ == "__main__":
    main()
