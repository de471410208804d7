"""Four simulated devices, one compilation cache, quick compiles, exact products."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Before JAX is imported; launch.py, run by tests, inherits the cache.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
# Tests compile for minutes and run for seconds.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))

import jax  # noqa: E402

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def sixth_method():
    """The method and the config that docs/sixth_method.md shows, as texts."""
    text = (ROOT / "docs" / "sixth_method.md").read_text()
    method, config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return method, config
