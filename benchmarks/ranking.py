"""Time and memory of an evaluation at the size of Market-1501.

    pip install -e .
    python benchmarks/ranking.py

From the features of 3,368 queries and 15,913 gallery images to CMC, mAP and mINP:
Euclidean or cosine distances in blocks of 256 queries and ranks by counting, against
the whole distance matrix and its argsort. The labels are made as in Market-1501: 750
identities, 6 cameras, at most one query per identity and camera, 2,798 distractors.

Each way runs in a process of its own, because the peak memory of a process never falls;
memory is what the peak grew by after the features were made (Linux counts it in KiB),
the start of XLA included. The time is the best of five runs, without compilation.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from crossres_jax.metrics import (
    Ranking,
    rank_multi_shot,
    rank_single_shot,
    summarize,
    summarize_draws,
)

NUM_QUERIES, NUM_MATCHABLE, NUM_DISTRACTORS = 3_368, 13_115, 2_798
NUM_IDENTITIES, NUM_CAMERAS, NUM_FEATURES = 750, 6, 512
BLOCK = 256  # queries
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


def euclidean(gallery):
    gallery_squares = np.einsum("gd,gd->g", gallery, gallery)

    def distance(query):
        distances = query @ gallery.T  # (Q, G), the rest in place
        distances *= -2
        distances += gallery_squares
        distances += np.einsum("qd,qd->q", query, query)[:, None]
        return np.sqrt(np.maximum(distances, 0, out=distances), out=distances)

    return distance


def cosine(gallery):
    def distance(query):
        distances = query @ gallery.T
        return np.subtract(1, distances, out=distances)

    return distance


def euclidean_jax(gallery):
    gallery = jax.device_put(gallery)
    return lambda query: jitted_euclidean(query, gallery)


@jax.jit
def jitted_euclidean(query, gallery):
    squares = jnp.sum(query**2, axis=1)[:, None] + jnp.sum(gallery**2, axis=1)[None]
    return jnp.sqrt(jnp.maximum(squares - 2 * query @ gallery.T, 0))


def cosine_jax(gallery):
    gallery = jax.device_put(gallery)
    return lambda query: jitted_cosine(query, gallery)


@jax.jit
def jitted_cosine(query, gallery):
    return 1 - query @ gallery.T


def blocks(distance, query, gallery):
    distance = distance(gallery)
    for start in range(0, len(query), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, np.asarray(distance(query[rows]))


def by_counting(distance, query, gallery, q_pids, g_pids, q_camids, g_camids):
    return summarize(
        [
            rank_multi_shot(block, q_pids[rows], g_pids, q_camids[rows], g_camids)
            for rows, block in blocks(distance, query, gallery)
        ]
    )


def both_protocols(distance, query, gallery, q_pids, g_pids, q_camids, g_camids):
    multi, single = [], []
    for rows, block in blocks(distance, query, gallery):
        multi.append(
            rank_multi_shot(block, q_pids[rows], g_pids, q_camids[rows], g_camids)
        )
        single.append(rank_single_shot(block, q_pids[rows], g_pids))
    summarize_draws(single)
    return summarize(multi)


def distances_only(distance, query, gallery, *_):
    for _ in blocks(distance, query, gallery):
        pass


def by_argsort(distance, query, gallery, q_pids, g_pids, q_camids, g_camids):
    order = np.argsort(distance(gallery)(query), axis=1, kind="stable")
    cmcs, aps, inps = [], [], []
    for ranked, pid, camid in zip(order, q_pids, q_camids, strict=True):
        match = g_pids[ranked] == pid
        hits = match[~(match & (g_camids[ranked] == camid))]
        if hits.any():
            ranks = 1 + np.flatnonzero(hits)
            cmcs.append(ranks[0] <= np.arange(1, 51))
            aps.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            inps.append(len(ranks) / ranks[-1])
    return Ranking(np.mean(cmcs, axis=0), np.mean(aps), np.mean(inps), len(aps))


WAYS = [
    (distances_only, euclidean),
    (distances_only, euclidean_jax),
    (distances_only, cosine),
    (distances_only, cosine_jax),
    (by_counting, euclidean),
    (by_counting, euclidean_jax),
    (by_counting, cosine),
    (by_counting, cosine_jax),
    (both_protocols, euclidean),
    (by_argsort, euclidean),
]


def measure(number):
    """Seconds, MiB and result of one of the ways."""
    way, distance = WAYS[number]
    data = make_data()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        result = way(distance, *data)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return min(seconds), (peak - before) / 1024, result


def main():
    print(f"{'':32}seconds    MiB  Rank-1    mAP   mINP")
    for number, (way, distance) in enumerate(WAYS):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as process:
            seconds, memory, result = process.submit(measure, number).result()
        name = f"{way.__name__}, {distance.__name__}"
        line = f"{name:32}{seconds:7.2f}{memory:7.0f}"
        if result:
            line += f"  {result.cmc[0]:6.4f} {result.mAP:6.4f} {result.mINP:6.4f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
