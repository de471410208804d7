"""JBIM (Zheng et al., IJCV 2021).

The embedded demo, generated pedestrians and one narrow model (Rank-1 about 60%, five
minutes on two CPU cores; docs/results.md):

    python launch.py --config=configs/jbim.py

The paper's own setting on real data, three models at full size from ImageNet's
ResNet-50, and their ensemble (for a GPU; not yet run):

    python launch.py --config=configs/jbim.py:mlr_viper --config.data.dir=DIR \
        --config.init.backbone=resnet50.pth

One of the three alone: `--config.method.rates="(2,)"`.
"""

from ml_collections import ConfigDict

from configs import common

BACKBONES = ("resnet50", "osnet_x0_25", "osnet_x1_0")
MODELINGS = ("him", "lim", "him_lim", "all_resolution")
OPTIONS = (*BACKBONES, *MODELINGS, "sing", "no_synthetic", "vdsr", "narrow", "ensemble")


def get_config(arg: str = "") -> ConfigDict:
    """JBIM on the demo (no protocol named) or on a named protocol.

    Args:
      arg: `"PROTOCOL,OPTION,…"`. Options:
        resnet50, osnet_x0_25, osnet_x1_0: the backbone; resnet50 if none;
        him, lim, him_lim, all_resolution: what Tables 5, 6 and 8 compare JBIM with;
        sing: HIM with SRCNN, the scheme of Jiao et al., AAAI 2018;
        no_synthetic: HIM without synthetic LR images, Table 7;
        vdsr: VDSR in place of SRCNN, Table 11;
        narrow: the demo's networks and training on a named protocol;
        ensemble: all three models where the demo's setting has one.
    """
    protocol, options = common.parse(arg, OPTIONS)
    if "sing" in options:
        if others := sorted(options & {*BACKBONES[1:], "vdsr", "no_synthetic"}):
            raise ValueError(f"SING has no option {', '.join(others)}")
        options = options - {"sing"} | {"him"}
    modelings = [name for name in MODELINGS if name in options]
    backbones = [name for name in BACKBONES if name in options]
    for chosen in (modelings, backbones):
        if len(chosen) > 1:
            raise ValueError(f"choose one of the options {', '.join(chosen)}")
    for chosen, without in (
        ({"lim", "all_resolution"}, {"vdsr", "no_synthetic"}),
        ({"all_resolution"}, {"ensemble"}),
    ):
        if options & chosen and (ignored := options & without):
            raise ValueError(
                f"{', '.join(options & chosen)} has no part that "
                f"{', '.join(sorted(ignored))} would change"
            )
    config = common.get_config()
    config.data.tuples = "cross"
    config.method = method = _paper()
    if protocol:
        config.data.protocol = protocol
        config.data.image_size = (256, 128)  # sec. 4.1
        config.data.num_ids = 16  # not given; BoT sec. 2
        config.data.num_instances = 4  # not given; BoT sec. 2
        config.data.pad = 10  # not given; BoT sec. 2
    if protocol == "mlr_viper":
        config.data.num_ids = 64  # of whom one pair each exists
        config.data.num_instances = 1
    if backbones and backbones != ["resnet50"]:
        method.backbone = "osnet"
        method.width = {"osnet_x0_25": 0.25, "osnet_x1_0": 1.0}[backbones[0]]
    if modelings:
        method.modeling = modelings[0]
    if "no_synthetic" in options:
        method.him_synthetic = False
        method.srcnn_residual = True  # starts as the identity: there are no pairs
    if "vdsr" in options:
        method.restorer = "vdsr"
    if not protocol or "narrow" in options:
        _narrow(config)
    if protocol and "narrow" in options:
        config.data.image_size = (128, 64)
        config.data.pad = 5
    if "ensemble" in options:
        method.rates = (2, 3, 4)
    return config


def _paper() -> ConfigDict:
    method = ConfigDict()
    method.name = "jbim"
    method.modeling = "jbim"
    method.rates = (2, 3, 4)  # sec. 5
    method.him_synthetic = True
    # SRCNN 9-1-5, sec. 4.1; VDSR, arXiv:1511.04587, sec. 5.
    method.restorer = "srcnn"
    method.srcnn_kernel_sizes = (9, 1, 5)
    method.srcnn_channels = (64, 32)
    method.srcnn_residual = False
    method.vdsr_channels = 64
    method.vdsr_depth = 20
    # ResNet-50, sec. 4.1.
    method.backbone = "resnet"
    method.width = 64.0
    method.num_blocks = (3, 4, 6, 3)
    method.last_stride = 2  # not given; it fits the operations of Table 2
    method.feature_size = 512  # not given; it fits the parameters of Table 2
    method.dropout = 0.5  # not given; the authors' SING
    # Losses.
    method.margin = 0.3  # not given; BoT sec. 2
    method.label_smoothing = 0.0  # not given
    method.alpha = 1.0  # sec. 6.2
    method.beta = 3.0  # sec. 6.2
    # Test.
    method.sigma = 0.5  # sec. 6.2
    method.unit_features = True  # not given
    # Training: not given, BoT sec. 2 and 3.1, and half of it when all is trained.
    method.epochs_restorer = 20
    method.learning_rate_restorer = 1e-3
    method.epochs = 120
    method.epochs_joint = 60
    method.learning_rate = 3.5e-4
    method.learning_rate_joint = 3.5e-5
    method.algorithm = "adam"
    method.weight_decay = 5e-4
    method.milestones = (40, 70)
    method.milestones_joint = (40,)
    method.decay_factor = 0.1
    method.warmup_epochs = 10
    method.warmup_learning_rate = 3.5e-5
    method.dtype = "float32"
    return method


def _narrow(config: ConfigDict) -> None:
    """One model and a training that two CPU cores manage within minutes; all ours."""
    config.data.num_ids = 8
    config.data.num_instances = 3
    method = config.method
    method.rates = (3,)
    if method.backbone == "resnet":
        method.width = 16.0
        method.num_blocks = (1, 1, 1, 1)
        method.feature_size = 128
    method.srcnn_channels = (16, 8)
    method.srcnn_residual = True
    method.vdsr_channels = 16
    method.vdsr_depth = 4
    method.dropout = 0.0
    method.epochs_restorer = 4
    method.learning_rate_restorer = 1e-3
    # Most of the steps together: alone, HIM and LIM would need as many each.
    method.epochs = 8
    method.epochs_joint = 40
    method.learning_rate = 3e-3
    method.learning_rate_joint = 3e-3
    method.milestones = ()
    method.milestones_joint = (33,)
    method.warmup_epochs = 1
    method.warmup_learning_rate = 2e-4
    method.alpha = 100.0  # at 1 the re-ID losses leave restored images worse than LR
