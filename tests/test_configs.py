"""Every config builds at its full size, and holds the paper's numbers."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from crossres_jax import methods
from crossres_jax.methods.contract import Ensemble
from crossres_jax.training.optimizer import make_optimizer
from crossres_jax.training.state import split

ROOT = Path(__file__).parent.parent
ARGUMENTS = {
    "baseline": (
        *("", "hr", "bot,vdsr", "mlr_viper,gem,bot,vdsr_ca", "hrnet_w32"),
        *("market1501,osnet_x0_25", "mlr_viper,bot,narrow", "agw", "mlr_viper,agw"),
    ),
    "dgrl": ("", "plain", "mlr_viper,no_galn", "caviar,narrow,id_wrt"),
    "ffsr_rife": (
        *("", "srcnn", "vdsr,no_joint_learning", "no_ffsr,two_resnets", "no_mask"),
        *("vr_market1501", "mlr_viper,two_weighted_resnets", "caviar,narrow,resnet"),
    ),
    "ftwa": (
        "",
        "ftwa_r",
        "mlr_market1501",
        "mlr_viper,ftwa_b",
        "caviar,narrow,baseline",
    ),
    "jbim": (
        *("", "vdsr", "lim", "all_resolution", "no_synthetic", "him_lim"),
        *("mlr_viper,osnet_x1_0", "mlr_market1501,sing", "caviar,narrow"),
    ),
    "ps_hrnet": (
        *("", "id", "id_sr", "hr"),
        *("mlr_viper", "mlr_viper,narrow", "mlr_viper,narrow,released"),
    ),
}


def _config(name, arg):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def _build(config, num_classes=316):
    options = config.method.to_dict()
    return methods.load(options.pop("name"))(num_classes, **options)


def _batch_shapes(config):
    batch = config.data.num_ids * config.data.num_instances
    images = jax.ShapeDtypeStruct((batch, *config.data.image_size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    return {
        "lr": images,
        "hr": images,
        "synthetic_lr": images,
        "has_hr": mask,
        "has_lr": mask,
        "label": labels,
        "scale": labels,
        "resolution": jax.ShapeDtypeStruct((batch,), jnp.float32),
        "relative_width": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }


def test_every_config_is_tested():
    configs = {p.stem for p in (ROOT / "configs").glob("*.py")}
    assert configs == {"common", *ARGUMENTS}


@pytest.mark.parametrize(
    ("name", "arg"), [(name, arg) for name, args in ARGUMENTS.items() for arg in args]
)
def test_every_phase_builds_at_the_configs_size(name, arg):
    config = _config(name, arg)
    method, batch = _build(config), _batch_shapes(config)
    if isinstance(method, Ensemble):
        (config.method.rates, *_) = (x["rates"] for x in method.members.values())
        method = _build(config)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    for phase in method.phases:
        output = jax.eval_shape(
            phase.loss,
            variables["params"],
            variables["batch_stats"],
            batch,
            jax.random.key(1),
        )
        assert output.loss.shape == ()
        trained, _ = split(variables["params"], phase.trains)
        jax.eval_shape(make_optimizer(phase.optimizer, 10).init, trained)
    features = jax.eval_shape(
        lambda v, x: method.embed(v, x, role="query", resolution=jnp.ones(len(x))),
        variables,
        batch["lr"],
    )
    distances = jax.eval_shape(method.distance, features, features)
    assert distances.shape == 2 * batch["label"].shape


def test_the_papers_numbers_of_section_4c():
    config = _config("ps_hrnet", "mlr_viper")
    assert config.data.image_size == (256, 128)
    assert (config.data.num_ids, config.data.num_instances) == (4, 6)
    method = _build(config)
    assert [phase.epochs for phase in method.phases] == [70, 70]
    optimizer = method.phases[1].optimizer
    assert optimizer.learning_rates == {"l": 8.5e-3, "restorer": 8.5e-4}
    assert optimizer.weight_decay == 5e-4
    assert (optimizer.milestones, optimizer.decay_factor) == ((30, 60), 0.1)
    m = config.method
    assert (m.margin, m.lambda_ce, m.lambda_bh) == (0.1, 1.15, 0.2)
    assert (m.lambda_sr, m.lambda_ps) == (0.5, 0.5)
    assert m.ps_set == ("seq1", "seq4", "seq5", "logits")


def test_the_released_code_as_an_option():
    config = _config("ps_hrnet", "mlr_viper,released")
    assert config.method.margin == 0.3
    assert len(config.method.ps_set) == 6
    assert (config.data.num_ids, config.data.num_instances) == (6, 4)


def test_the_papers_numbers_of_section_3_2():
    config = _config("ftwa", "mlr_market1501")
    tuples = config.data.num_ids * config.data.num_instances
    assert config.data.tuples == "cross" and 2 * tuples == 64  # an HR and an LR image
    assert _config("ftwa", "mlr_viper").data.num_ids == tuples
    m = config.method
    assert (m.margin, m.lambda_1, m.lambda_2, m.lambda_3) == (0.3, 3.0, 1.0, 0.1)
    assert m.last_stride == 1
    method = _build(config)
    (phase,) = method.phases
    assert phase.epochs == 120
    optimizer = phase.optimizer
    assert (optimizer.algorithm, optimizer.weight_decay) == ("adam", 5e-4)
    assert {*optimizer.learning_rates.values()} == {7e-4}
    assert (optimizer.milestones, optimizer.decay_factor) == ((40, 70), 0.2)


def test_the_papers_numbers_of_dgrl():
    config = _config("dgrl", "mlr_market1501")
    assert config.data.image_size == (256, 128)
    assert (config.data.num_ids, config.data.num_instances) == (16, 3)
    m = config.method
    assert (m.alpha, m.beta, m.gamma, m.label_smoothing) == (0.5, 0.5, 5.0, 0.1)
    assert (m.num_heads, m.num_groups) == (4, 32)
    (phase,) = _build(config).phases
    assert phase.epochs == 70
    optimizer = phase.optimizer
    assert (optimizer.algorithm, optimizer.momentum) == ("sgd", 0.9)
    assert (optimizer.weight_decay, optimizer.milestones) == (5e-4, (30, 60))
    assert {*optimizer.learning_rates.values()} == {1.3e-2}


def test_the_restorers_of_dgrl_build_at_the_configs_size():
    restorer = _config("dgrl", "mlr_market1501").restorer
    method = _build(restorer)
    image = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    variables = jax.eval_shape(method.init, jax.random.key(0), {"lr": image})
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in variables["params"].items()
    }
    # The released x4 network has 15,592,379, of which 24 shift the mean.
    assert sizes == {"x2": 15_444_643, "x3": 15_629_283, "x4": 15_592_355}


@pytest.mark.parametrize("protocol", ["caviar", "paired_folder"])
def test_what_is_not_to_be_restored_has_no_restorer(protocol):
    assert "restorer" not in _config("dgrl", protocol)


@pytest.mark.parametrize("arg", ["id,id_wrt", "plain,no_galn"])
def test_rows_of_a_table_of_dgrl_exclude_each_other(arg):
    with pytest.raises(ValueError, match="choose one of the options"):
        _config("dgrl", arg)


def test_the_papers_numbers_of_section_5_2():
    config = _config("ffsr_rife", "vr_market1501")
    assert config.data.image_size == (256, 128)
    for protocol in ("mlr_viper", "mlr_cuhk03", "caviar", "vr_msmt17"):
        config = _config("ffsr_rife", protocol)
        assert config.data.image_size == (384, 128)
        assert config.data.num_ids * config.data.num_instances == 32
    m = config.method
    assert (m.alpha, m.beta, m.feature_size) == (1.0, 0.1, 256)
    steps = _build(config).phases
    assert [(step.name, step.epochs) for step in steps] == [
        *(("ffsr", 60), ("rife", 60), ("joint", 60))
    ]
    rates = [set(step.optimizer.learning_rates.values()) for step in steps]
    assert rates == [{0.01}, {0.01}, {0.001}]
    for step in steps:
        assert (step.optimizer.algorithm, step.optimizer.milestones) == ("sgd", (30,))


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("resnet,two_resnets", "choose one of the options resnet, two_resnets"),
        ("srcnn,no_ffsr", "choose one of the options no_ffsr, srcnn"),
        ("no_ffsr,no_mask", "no_ffsr has no part that no_mask would change"),
    ],
)
def test_options_of_ffsr_rife_that_contradict_each_other_are_refused(arg, message):
    with pytest.raises(ValueError, match=message):
        _config("ffsr_rife", arg)


def test_the_recipes_of_the_baseline():
    config = _config("baseline", "market1501,osnet_x0_25")
    assert config.data.resize == "bilinear"  # the published score's
    assert (config.method.algorithm, config.method.learning_rate) == ("amsgrad", 1.5e-3)
    config = _config("baseline", "mlr_viper,bot")
    assert config.data.resize == "bicubic"
    assert (config.data.num_ids, config.data.num_instances) == (32, 2)
    assert config.data.erase == 0.5
    m = config.method
    assert (m.backbone, m.last_stride, m.margin) == ("resnet", 1, 0.3)
    assert (m.algorithm, m.learning_rate, m.milestones) == ("adam", 3.5e-4, (40, 70))
    phase = _build(config).phases[-1]
    assert phase.epochs == 120
    assert (phase.optimizer.warmup, phase.optimizer.warmup_epochs) == ("linear", 10)


def test_agw_is_bot_but_for_its_loss_its_blocks_and_its_pooling():
    agw, bot = (_config("baseline", f"mlr_viper,{arg}") for arg in ("agw", "bot"))
    assert agw.data == bot.data
    changed = {k: v for k, v in agw.method.items() if v != bot.method[k]}
    assert changed == {
        "recipe": "agw",
        "num_non_local": (0, 2, 3, 0),
        "pooling": "gem",
    }


@pytest.mark.parametrize("arg", ["resnet50,osnet_x1_0", "vdsr,vdsr_ca", "agw,bot"])
def test_one_backbone_one_restorer_and_one_recipe(arg):
    with pytest.raises(ValueError, match=r"choose one backbone of .* one restorer"):
        _config("baseline", arg)


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"unknown config option big; expected"):
        _config("ps_hrnet", "mlr_viper,big")


def test_rows_of_table_2_exclude_each_other():
    with pytest.raises(ValueError, match=r"choose one of the options hr, id"):
        _config("ps_hrnet", "id,hr")


def test_a_missing_method_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"no method named 'hrnet'.*ps_hrnet"):
        methods.load("hrnet")


@pytest.mark.parametrize("name", ["nowhere.at_all", "json.decoder"])
def test_a_dotted_path_must_lead_to_a_method(name):
    with pytest.raises(ValueError, match=rf"no method named '{name}'.*`build`"):
        methods.load(name)
