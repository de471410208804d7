"""Time and memory of an evaluation at the size of Market-1501.

    pip install -e .
    python -m benchmarks.ranking

From the features of 3,368 queries and 15,913 gallery images to the scores of both
protocols, as the product computes them (`training.evaluate.compare`: distances in
blocks of 256 queries, ranks by counting), against the whole matrix and its argsort,
which gives the multi-shot scores alone. The labels are made as in Market-1501: 750
identities, 6 cameras, at most one query per identity and camera, 2,798 distractors.

Each way runs in a process of its own, because the peak memory of a process never falls;
memory is what the peak grew by after the features were made (Linux counts it in KiB),
the start of XLA included. The time is the best of five runs.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np

from crossres_jax.methods.contract import Method
from crossres_jax.ops.distances import cosine_distances, euclidean_distances
from crossres_jax.training.evaluate import Embedded, compare

NUM_QUERIES, NUM_MATCHABLE, NUM_DISTRACTORS = 3_368, 13_115, 2_798
NUM_IDENTITIES, NUM_CAMERAS, NUM_FEATURES = 750, 6, 512
RUNS = 5


def make_images(rng, pids, centres):
    """Features (N, D) around their identity's centre, of length 1."""
    features = rng.standard_normal((len(pids), NUM_FEATURES), np.float32)
    for feature, pid in zip(features, pids, strict=True):  # in place: no second copy
        feature += 0.4 * centres[pid]
        feature /= np.linalg.norm(feature)
    return features


def make_data():
    """Features, pids and camids of query and gallery."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((NUM_IDENTITIES + 1, NUM_FEATURES), np.float32)
    centres[0] = 0  # distractors have nothing in common
    seen = rng.permutation(NUM_IDENTITIES * NUM_CAMERAS)[:NUM_QUERIES]
    query_pids, query_camids = 1 + seen // NUM_CAMERAS, seen % NUM_CAMERAS
    gallery_pids = np.concatenate(
        [
            rng.integers(1, NUM_IDENTITIES + 1, NUM_MATCHABLE),
            np.zeros(NUM_DISTRACTORS, int),
        ]
    )
    gallery_camids = rng.integers(0, NUM_CAMERAS, len(gallery_pids))
    query = make_images(rng, query_pids, centres)
    gallery = make_images(rng, gallery_pids, centres)
    return query, gallery, query_pids, gallery_pids, query_camids, gallery_camids


def product(distance, query, gallery, q_pids, g_pids, q_camids, g_camids):
    """Both protocols, as every run of launch.py computes them."""
    method = Method(init=None, phases=(), embed=None, distance=distance)
    scales = np.ones_like(q_pids)
    results = compare(
        method,
        Embedded(query, q_pids, q_camids, scales, {}),
        Embedded(gallery, g_pids, g_camids, scales, {}),
    ).results["multi_shot"]
    return results["rank1"], results["mAP"], results["mINP"]


def by_argsort(distance, query, gallery, q_pids, g_pids, q_camids, g_camids):
    """The multi-shot protocol from the whole matrix, sorted."""
    order = np.argsort(jax.jit(distance)(query, gallery), axis=1, kind="stable")
    first, aps, inps = [], [], []
    for ranked, pid, camid in zip(order, q_pids, q_camids, strict=True):
        match = g_pids[ranked] == pid
        hits = match[~(match & (g_camids[ranked] == camid))]
        if hits.any():
            ranks = 1 + np.flatnonzero(hits)
            first.append(ranks[0] == 1)
            aps.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            inps.append(len(ranks) / ranks[-1])
    return tuple(100 * np.mean(values) for values in (first, aps, inps))


WAYS = [
    (product, cosine_distances),
    (product, euclidean_distances),
    (by_argsort, euclidean_distances),
]


def measure(number):
    """Seconds, MiB and scores of one of the ways."""
    way, distance = WAYS[number]
    data = make_data()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        scores = way(distance, *data)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return min(seconds), (peak - before) / 1024, scores


def main():
    """Prints one line per way."""
    print(f"{'':32}seconds    MiB  Rank-1    mAP   mINP")
    for number, (way, distance) in enumerate(WAYS):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as process:
            seconds, memory, scores = process.submit(measure, number).result()
        figures = " ".join(f"{score:6.2f}" for score in scores)
        name = f"{way.__name__}, {distance.__name__}"
        print(f"{name:32}{seconds:7.2f}{memory:7.0f}  {figures}", flush=True)


if __name__ == "__main__":
    main()
