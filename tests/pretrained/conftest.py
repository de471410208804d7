"""Real weights, where there are any."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def weights_dir():
    """The folder with published PyTorch files; skips where absent."""
    beside = Path(__file__).parents[2].parent / "shared" / "weights"
    folder = Path(os.environ.get("CROSSRES_WEIGHTS_DIR", beside))
    if not (folder / "vdsr_twtygqyy_model_epoch_50.pth").exists():
        pytest.skip(
            "no published weights in $CROSSRES_WEIGHTS_DIR or ../shared/weights"
        )
    return folder
