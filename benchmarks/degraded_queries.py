"""What low resolution does to a network that has never seen it.

    python -m benchmarks.degraded_queries --data_dir=DIR \
        --weights=osnet_x0_25_market1501.pth --into=docs/results.md:degraded \
        --plot=docs/degraded_queries.svg

OSNet x0.25 as published for Market-1501, on the official evaluation with single
queries, but the queries are down-sampled by 2, 3 and 4 (antialiased bicubic, rounded
to 8 bits) and brought back to the input size by bicubic interpolation; the gallery
stays as it is. A column has the queries of one camera; the plot shows all queries, and
those of camera 3, the easiest. About four minutes on two cores.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np

from benchmarks.plots import line_chart
from benchmarks.tables import Section, markdown
from configs import baseline
from crossres_jax import methods
from crossres_jax.training.evaluate import compare, embed_images
from crossres_jax.training.sharding import make_mesh
from crossres_jax.training.start import import_backbone, read_weights
from input_pipeline import pipeline

SCALES = (1, 2, 3, 4)


def of_camera(side, camid):
    """The images of one camera."""
    rows = side.camid == camid
    return side._replace(
        features=jax.tree.map(lambda x: x[rows], side.features),
        **{name: getattr(side, name)[rows] for name in ("pid", "camid", "scale")},
    )


def measure(data, method, variables):
    """{scale: {camera, or "all": results}}."""
    mesh = make_mesh()

    def embed(data, role):
        batches = pipeline.eval_batches(data, role)
        return embed_images(method, variables, batches, mesh, role=role)

    gallery, results = embed(data, "gallery"), {}
    for scale in SCALES:
        smaller = pipeline.at_resolution(data, query=Fraction(1, scale))
        query = embed(smaller, "query")
        sides = {f"camera {c}": of_camera(query, c) for c in np.unique(query.camid)}
        results[scale] = {
            name: compare(method, side, gallery, evaluation="multi_shot").results
            for name, side in {**sides, "all": query}.items()
        }
    return results


def main():
    """Prints the table, and writes it and the plot where the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--cache_dir", default="")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--into", help="FILE:SECTION that receives the table")
    parser.add_argument("--plot", type=Path, help="SVG file that receives the plot")
    arguments = parser.parse_args()
    section = Section(arguments.into) if arguments.into else None

    config = baseline.get_config("market1501,osnet_x0_25")
    config.data.dir, config.data.cache_dir = arguments.data_dir, arguments.cache_dir
    data = pipeline.open_data(config.data)
    options = config.method.to_dict()
    method = methods.load(options.pop("name"))(data.plan.num_classes, **options)
    example = next(pipeline.eval_batches(data, "query"))
    shapes = jax.eval_shape(method.init, jax.random.key(0), example)
    weights, _ = read_weights(arguments.weights)
    # An embedding does not need the head.
    variables = import_backbone(jax.tree.map(zeros, shapes), weights, method)

    results = measure(data, method, variables)
    cameras = list(results[1])
    rows = [["", *cameras]]
    rows.append(["queries", *(str(results[1][c]["num_queries"]) for c in cameras)])
    for scale in SCALES:
        cells = (results[scale][c] for c in cameras)
        rows.append(
            [f"×{scale}", *(f"{r['rank1']:.1f} / {r['mAP']:.1f}" for r in cells)]
        )
    print(markdown(rows))
    if section:
        section.write(markdown(rows))
    if arguments.plot:
        line_chart(
            arguments.plot,
            {
                f"{label}, {c}": [results[scale][c][score] for scale in SCALES]
                for label, score in (("Rank-1", "rank1"), ("mAP", "mAP"))
                for c in ("camera 3", "all")
            },
            ticks=[f"×{scale}" for scale in SCALES],
            title="OSNet x0.25, Market-1501: down-sampled queries",
            unit="%",
        )


def zeros(shape):
    """An array of that shape."""
    return np.zeros(shape.shape, shape.dtype)


if __name__ == "__main__":
    main()
