"""Streams as one batch."""

import numpy as np

from crossres_jax.ops.streams import apart, together


def test_together_keeps_the_streams_of_a_sample_side_by_side():
    streams = [np.arange(4) + 10 * s for s in range(3)]
    joined = together(*streams)
    assert joined.tolist()[:6] == [0, 10, 20, 1, 11, 21]
    for stream, found in zip(streams, apart(joined, 3), strict=True):
        np.testing.assert_array_equal(found, stream)
