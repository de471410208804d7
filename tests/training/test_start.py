"""Published weights as the start of a run."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from torch_names import hrnet_w32_c

from crossres_jax.methods import baseline, ps_hrnet
from crossres_jax.pretrained import load_torch
from crossres_jax.training.start import import_backbone, read_weights


@pytest.fixture(scope="module")
def method():
    return baseline.build(3, width=4, num_blocks=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def variables(method):
    images = {"lr": jnp.zeros((1, 32, 16, 3))}
    return jax.jit(method.init)(jax.random.key(0), images)


def test_the_backbone_is_filled_and_the_head_is_not(method, variables, narrow_resnet):
    weights, digest = read_weights(narrow_resnet)
    assert digest == hashlib.sha256(narrow_resnet.read_bytes()).hexdigest()
    started = import_backbone(variables, weights, method)
    assert jax.tree.structure(started) == jax.tree.structure(variables)
    np.testing.assert_array_equal(
        started["params"]["backbone"]["layer2_0"]["conv3"]["kernel"][0, 0],
        weights["layer2.0.conv3.weight"][:, :, 0, 0].T,
    )
    np.testing.assert_array_equal(
        started["batch_stats"]["backbone"]["bn1"]["var"], weights["bn1.running_var"]
    )
    head = jax.tree.map(
        lambda a, b: (a == b).all(),
        started["params"]["head"],
        variables["params"]["head"],
    )
    assert jax.tree.all(head)


def test_weights_of_another_width_are_refused_before_anything_is_built(narrow_resnet):
    wide = baseline.build(3, width=8, num_blocks=(1, 1, 1, 1))
    shapes = jax.eval_shape(
        wide.init, jax.random.key(0), {"lr": jnp.zeros((1, 32, 16, 3))}
    )
    message = r"do not fit the network(.|\n)*conv1.weight: .* \(7, 7, 3, 8\), found"
    with pytest.raises(ValueError, match=message):
        import_backbone(shapes, load_torch(narrow_resnet), wide)


def test_a_method_without_a_backbone_says_so(build, narrow_resnet):
    with pytest.raises(ValueError, match="no backbone that weights could be read into"):
        import_backbone({}, load_torch(narrow_resnet), build(3))


def test_both_networks_of_ps_hrnet_start_from_imagenet():
    method = ps_hrnet.build(3)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    shapes = jax.eval_shape(
        method.init, jax.random.key(0), {"lr": images, "hr": images}
    )
    weights = {  # that take no memory
        name: np.broadcast_to(np.float32(n), shape)
        for n, (name, shape) in enumerate(hrnet_w32_c())
    }
    params = import_backbone(shapes, weights, method)["params"]
    filled = {
        component: {
            path: float(x.ravel()[0])
            for path, x in flatten_dict(params[component], sep="/").items()
            if isinstance(x, jax.Array)
        }
        for component in params
    }
    assert filled["h"] == filled["l"] and not filled["restorer"]
    assert filled["l"]["body/stem1/conv/kernel"] == list(weights).index("conv1.weight")
    left = {*flatten_dict(params["l"], sep="/")} - {*filled["l"]}
    assert {path.split("/")[0] for path in left} == {"fc1", "bn", "fc2"}


def test_the_published_osnet_fills_its_backbone(weights_dir):
    method = baseline.build(3, backbone="osnet", width=0.25)
    images = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    shapes = jax.eval_shape(method.init, jax.random.key(0), {"lr": images})
    weights = load_torch(weights_dir / "osnet_x0_25_msmt17.pth")
    assert weights["classifier.weight"].shape == (1041, 512)  # of other identities
    started = import_backbone(shapes, weights, method)
    for leaf in jax.tree.leaves({k: v["backbone"] for k, v in started.items()}):
        assert isinstance(leaf, jax.Array)
    with pytest.raises(
        ValueError, match=r"conv1\.conv\.weight \(16, .*not in the table"
    ):
        resnet = baseline.build(3)
        shapes = jax.eval_shape(resnet.init, jax.random.key(0), {"lr": images})
        import_backbone(shapes, weights, resnet)
