"""Who may import whom (README, "How it is laid out"), read off the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("crossres_jax", "input_pipeline", "configs", "launch")

# Prefix of a module → prefixes of our modules that it may import; the first match
# counts. A folder whose modules may import each other lists itself.
ALLOWED = {
    "crossres_jax.methods.contract": (),
    "crossres_jax.methods": (
        "crossres_jax.methods.contract",
        "crossres_jax.modules",
        "crossres_jax.losses",
        "crossres_jax.ops",
        "crossres_jax.pretrained.tables",
    ),
    "crossres_jax.modules": ("crossres_jax.modules", "crossres_jax.ops"),
    "crossres_jax.losses": ("crossres_jax.losses", "crossres_jax.ops"),
    "crossres_jax.ops": ("crossres_jax.ops",),
    "crossres_jax.metrics": ("crossres_jax.metrics",),
    "crossres_jax.sampling": (),
    "crossres_jax.pretrained": ("crossres_jax.pretrained",),
    "crossres_jax.training": (
        "crossres_jax.training",
        "crossres_jax.methods.contract",
        "crossres_jax.metrics",
        "crossres_jax.ops",
        "crossres_jax.pretrained",
    ),
    "crossres_jax.export": (
        "crossres_jax.methods",
        "crossres_jax.pretrained",
        "crossres_jax.training.writer",
    ),
    "crossres_jax.report": (
        "crossres_jax.report",
        "crossres_jax.methods.contract",
        "crossres_jax.training.evaluate",
        "crossres_jax.metrics",
    ),
    "input_pipeline": ("input_pipeline", "crossres_jax.sampling", "crossres_jax.ops"),
    "configs.common": (),
    "configs": ("configs.common",),
}
OUTSIDERS = {
    "crossres_jax": {"tensorflow", "tensorflow_datasets", "ml_collections", "absl"},
    "crossres_jax.metrics": {"jax", "flax", "optax", "orbax"},
    "crossres_jax.sampling": {"jax", "flax", "optax", "orbax"},
    "crossres_jax.losses": {"flax", "optax", "orbax"},
    "crossres_jax.ops": {"flax", "optax", "orbax"},
    "crossres_jax.pretrained": {"torch", "safetensors", "optax", "orbax"},
}


def _sources():
    for folder in ("crossres_jax", "input_pipeline", "configs"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _within(module, prefix):
    return module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize("path", list(_sources()), ids=_module)
def test_imports_follow_the_table(path):
    module = _module(path)
    allowed = next((v for k, v in ALLOWED.items() if _within(module, k)), ())
    for name in _imports(path):
        if name.split(".")[0] in OURS:
            assert any(_within(name, prefix) for prefix in allowed), name
        for prefix, outsiders in OUTSIDERS.items():
            if _within(module, prefix):
                assert name.split(".")[0] not in outsiders, name


def test_only_one_file_imports_orbax():
    users = {_module(p) for p in _sources() if any("orbax" in n for n in _imports(p))}
    assert users == {"crossres_jax.training.checkpoint"}


def test_the_library_works_without_tensorflow():
    script = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        blocked = ("tensorflow", "tensorflow_datasets", "ml_collections")
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import crossres_jax
for module in pkgutil.walk_packages(crossres_jax.__path__, "crossres_jax."):
    importlib.import_module(module.name)

import jax, jax.numpy as jnp, numpy as np
from crossres_jax import losses, metrics, sampling
from crossres_jax.modules.vdsr import VDSR
print(losses.batch_hard_triplet(jnp.eye(4), jnp.array([0, 0, 1, 1])).shape)
print(metrics.evaluate_ranking(np.eye(2), [0, 1], [1, 0]).mAP)
print(sampling.plan_batch(0, 0, [0, 0, 1, 1], num_ids=2, num_instances=2).shape)
print(VDSR(4, 3).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:4] == ["(4,)", "1.0", "(4,)", "(1, 8, 8, 3)"]
