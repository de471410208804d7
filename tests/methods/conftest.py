"""What the methods that learn from cross tuples share."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def batch():
    """Cross tuples of three persons; two of the six lack an LR image."""
    rng = np.random.default_rng(0)
    hr, lr = rng.uniform(size=(2, 6, 32, 16, 3)).astype(np.float32)
    return {
        "hr": hr,
        "synthetic_lr": (0.9 * hr).astype(np.float32),
        "lr": lr,
        "has_lr": np.array([True, True, True, True, False, False]),
        "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
    }
