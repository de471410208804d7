"""A model that goes out comes back, bit for bit, without the run it came from."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossres_jax.export import read_export, write_export
from crossres_jax.methods import baseline

OPTIONS = {"width": 4.0, "num_blocks": [1, 1, 1, 1], "recipe": "bot"}
MANIFEST = {
    "protocol": {"name": "mlr_viper", "dataset": "viper/1.0.0", "split": 3},
    "counts": {"train": {"identities": 5, "images": 10}},
    "sha256": "ab12",
}


@pytest.fixture(scope="module")
def variables():
    method = baseline.build(5, **OPTIONS)
    fresh = jax.jit(method.init)(jax.random.key(0), {"lr": jnp.zeros((1, 32, 16, 3))})
    # No two leaves alike, and numbers that text would not keep.
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + rng.uniform(size=x.shape).astype(np.float32), fresh
    )


@pytest.fixture
def folder(tmp_path, variables):
    write_export(
        tmp_path / "export",
        variables,
        config={
            "data": {"image_size": [32, 16]},
            "method": {"name": "baseline", **OPTIONS},
        },
        weights="cd34",
        manifest=MANIFEST,
        num_classes=5,
        results={"rank1": 12.5, "step": 7},
    )
    return tmp_path / "export"


def test_what_comes_back_is_bit_equal_and_embeds_the_same(folder, variables):
    exported = read_export(folder)
    assert jax.tree.structure(exported.variables) == jax.tree.structure(variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
        ),
        exported.variables,
        variables,
    )
    images = np.random.default_rng(0).uniform(size=(3, 32, 16, 3)).astype(np.float32)

    def features(method, variables):
        embed = jax.jit(partial(method.embed, role="query"))
        return embed(variables, images, resolution=np.ones(3))

    np.testing.assert_array_equal(
        features(exported.method, exported.variables),
        features(baseline.build(5, **OPTIONS), variables),
    )


def test_the_card_says_what_the_model_is(folder):
    card = json.loads((folder / "card.json").read_text())
    assert card["config"]["method"]["name"] == "baseline"
    assert card["protocol"]["split"] == 3 and card["manifest_sha256"] == "ab12"
    assert card["scores"] == {"rank1": 12.5, "step": 7}
    assert card["started_from_sha256"] == "cd34"
    assert card["training_data"] == {
        "dataset": "viper/1.0.0",
        "identities": 5,
        "images": 10,
    }


def test_a_model_that_was_not_trained_claims_no_training_data(tmp_path, variables):
    write_export(
        tmp_path,
        variables,
        config={"method": {"name": "baseline"}},
        weights="cd34",
        manifest=MANIFEST,
        num_classes=5,
        results={"step": 0},
    )
    assert json.loads((tmp_path / "card.json").read_text())["training_data"] is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_classes",), 6, r"does not fit card\.json: .*classifier/kernel"),
        (("config", "method", "recipe"), "softmax", r"batch_stats/head/neck/bn/mean"),
        (("config", "method", "recipe"), "best", "card.json is no card of a model: .*"),
        (("config", "method", "depth"), 9, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_card_of_another_model_is_refused(folder, path, value, message):
    card = json.loads((folder / "card.json").read_text())
    *parents, last = path
    place = card
    for key in parents:
        place = place[key]
    place[last] = value
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        read_export(folder)


def test_what_the_docs_show_runs(folder):
    text = (Path(__file__).parent.parent / "docs" / "runs.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace = {}
    exec(code.replace("runs/baseline/export", str(folder)), namespace)
    assert namespace["features"].shape == (2, 128)


def test_a_damaged_model_is_refused(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or another model"):
        read_export(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "crossres_jax 9"}', "{}"])
def test_a_card_that_cannot_be_read_is_named(folder, text):
    (folder / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"card\.json is no card of a model: "):
        read_export(folder)


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no card\.json; expected the folder"):
        read_export(tmp_path)
