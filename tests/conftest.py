"""Four simulated devices, one compilation cache, quick compiles, weights to import."""

import os
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# Before JAX is imported; launch.py, run by tests, inherits the cache.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
# Tests compile for minutes and run for seconds.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    # XLA's older code generator compiles a gradient in a third of the time.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
# JAX does not write these files atomically: every process of pytest-xdist has its own.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"

import jax  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_default_matmul_precision", "highest")

LONGEST = ("test_interruptions.py", "test_launch.py", "test_ps_hrnet.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process ends with one while others idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_auto_num_workers(config):
    """No processes for the tests of one file, which would share one anyway."""
    one_file = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if one_file else None  # one per core


@pytest.fixture(scope="session")
def sixth_method():
    """The method and the config that docs/sixth_method.md shows, as texts."""
    text = (ROOT / "docs" / "sixth_method.md").read_text()
    method, config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return method, config


@pytest.fixture(scope="session")
def narrow_resnet(tmp_path_factory):
    """A file of weights, in PyTorch's names, of ResNet(4, (1, 1, 1, 1))."""
    from crossres_jax.modules.resnet import ResNet
    from crossres_jax.pretrained import write_safetensors

    variables = jax.eval_shape(
        lambda rng, x: ResNet(4, (1, 1, 1, 1)).init(rng, x, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 32, 16, 3), "float32"),
    )
    rng, weights = np.random.default_rng(0), {}
    for path, shape in flatten_dict(variables, sep="/").items():
        _, *modules, leaf = path.split("/")
        module = ".".join(modules).replace("_0", ".0")
        module = module.replace("shortcut_conv", "downsample.0")
        module = module.replace("shortcut_bn", "downsample.1")
        name = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
        values = (leaf in ("scale", "var")) + 0.1 * rng.normal(size=shape.shape)
        if leaf == "kernel":
            values = values.transpose(3, 2, 0, 1)
        weights[f"{module}.{name.get(leaf, 'weight')}"] = values.astype(np.float32)
    weights |= {"fc.weight": np.zeros((9, 128)), "fc.bias": np.zeros(9)}
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    write_safetensors(path, weights)
    return path


@pytest.fixture(scope="session")
def weights_dir():
    """The folder with published PyTorch files; skips where absent."""
    beside = ROOT.parent / "shared" / "weights"
    folder = Path(os.environ.get("CROSSRES_WEIGHTS_DIR", beside))
    if not (folder / "vdsr_twtygqyy_model_epoch_50.pth").exists():
        pytest.skip(
            "no published weights in $CROSSRES_WEIGHTS_DIR or ../shared/weights"
        )
    return folder
