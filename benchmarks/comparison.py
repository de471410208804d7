"""One table of several runs under one protocol, from their `results.json`.

    python -m benchmarks.comparison --into=docs/results.md:finetuned \
        "zero-shot=runs/zero" "fine-tuned=runs/tuned"

Every run is the folder of a launch with `--num_splits`. Runs of another protocol or
other splits are refused: their manifests differ. ± is the sample standard deviation
over the splits.
"""

import argparse
import json
from pathlib import Path

from benchmarks.tables import Section, markdown

SCORES = {"Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mAP": "mAP"}


def table(runs):
    """{name: results.json of several splits} → a Markdown table."""
    first, *others = runs.values()
    for results in others:
        if results["manifests_sha256"] != first["manifests_sha256"]:
            raise ValueError(
                "expected runs on the same splits of one protocol, found "
                f"{first['protocol']} of {first['runs']} and {results['protocol']} of "
                f"{results['runs']} with other manifests."
            )
    scales = list(first["mean"]["by_scale"])
    rows = [["", *SCORES, *(f"×{scale}" for scale in scales)]]
    for name, results in runs.items():
        mean, std = results["mean"], results["std"]
        pairs = [(mean[key], std[key]) for key in SCORES.values()]
        pairs += [
            (mean["by_scale"][scale]["rank1"], std["by_scale"][scale]["rank1"])
            for scale in scales
        ]
        rows.append([name, *(f"{value:.1f} ± {spread:.1f}" for value, spread in pairs)])
    return markdown(rows)


def main():
    """Prints the table, and writes it where `--into` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None
    runs = {}
    for argument in arguments.runs:
        name, _, folder = argument.partition("=")
        runs[name] = json.loads((Path(folder) / "results.json").read_text())
    print(table(runs))
    if section:
        section.write(table(runs))


if __name__ == "__main__":
    main()
