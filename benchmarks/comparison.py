"""One table of several methods under one protocol, from the `results.json` of runs.

    python -m benchmarks.comparison --into=docs/results.md:finetuned \
        "zero-shot=runs/zero" "fine-tuned=runs/tuned" "other=runs/other-*"

A row is a name and a pattern of folders: those of single runs, or one of a launch with
`--num_splits`. ± is the sample standard deviation over a row's runs. All rows must have
the same manifests, that is the same images on the same splits.
"""

import argparse
import glob
import json
from pathlib import Path

from benchmarks.tables import Section, markdown
from crossres_jax.training.evaluate import mean_and_std

SCORES = {"Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mAP": "mAP"}


def read(pattern):
    """The results of all runs in the folders that a pattern matches."""
    runs = []
    for folder in map(Path, sorted(glob.glob(pattern))):
        results = json.loads((folder / "results.json").read_text())
        parts = [folder / name / "results.json" for name in results.get("runs", ())]
        runs += [json.loads(part.read_text()) for part in parts] or [results]
    if not runs:
        raise ValueError(f"expected folders of runs, found none at {pattern}")
    return runs


def table(rows):
    """{name: results of its runs} → a Markdown table."""
    manifests = {
        name: {run["manifest_sha256"] for run in runs} for name, runs in rows.items()
    }
    first, *others = manifests
    for name in others:
        if manifests[name] != manifests[first]:
            raise ValueError(
                f"expected the same protocol and splits in all rows, found other "
                f"manifests in {name!r} than in {first!r}."
            )
    scales = list(next(iter(rows.values()))[0]["by_scale"])
    lines = [["", "runs", *SCORES, *(f"×{scale}" for scale in scales)]]
    for name, runs in rows.items():
        mean, std = mean_and_std(runs).values()
        pairs = [(mean[key], std[key]) for key in SCORES.values()]
        pairs += [
            (mean["by_scale"][scale]["rank1"], std["by_scale"][scale]["rank1"])
            for scale in scales
        ]
        cells = [
            f"{value:.1f}" + (f" ± {spread:.1f}" if len(runs) > 1 else "")
            for value, spread in pairs
        ]
        lines.append([name, str(len(runs)), *cells])
    return markdown(lines)


def main():
    """Prints the table, and writes it where `--into` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("rows", nargs="+", help="NAME=PATTERN")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    named = (row.partition("=") for row in arguments.rows)
    text = table({name: read(pattern) for name, _, pattern in named})
    print(text)
    if section:
        section.write(text)


if __name__ == "__main__":
    main()
