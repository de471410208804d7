"""FFSR + RIFE (Mao et al., IJCAI 2019).

The embedded demo, generated pedestrians and narrow networks (Rank-1 about 47%, five
minutes on two CPU cores; docs/results.md):

    python launch.py --config=configs/ffsr_rife.py

The paper's own setting on real data, from ImageNet's ResNet-50 (not yet run):

    python launch.py --config=configs/ffsr_rife.py:vr_market1501 --config.data.dir=DIR \
        --config.init.backbone=resnet50.pth
"""

from ml_collections import ConfigDict

from configs import common

EXTRACTORS = ("resnet", "two_resnets", "two_weighted_resnets")
RESTORERS = ("no_ffsr", "srcnn", "vdsr")
OPTIONS = (*EXTRACTORS, *RESTORERS, "no_mask", "no_joint_learning", "narrow")


def get_config(arg: str = "") -> ConfigDict:
    """FFSR + RIFE on the demo (no protocol named) or on a named protocol.

    Args:
      arg: `"PROTOCOL,OPTION,…"`. Options:
        no_ffsr, srcnn, vdsr: Table 1's "Bilinear", SRCNN and VDSR in place of FFSR;
        no_mask: FFSR without a mask, Table 1's "AE";
        no_joint_learning: the restorer is frozen in the third step, Table 1;
        resnet, two_resnets, two_weighted_resnets: Table 2's in place of RIFE;
        narrow: the demo's networks and training on a named protocol.
    """
    protocol, options = common.parse(arg, OPTIONS)
    extractors = [name for name in EXTRACTORS if name in options]
    restorers = [name for name in RESTORERS if name in options]
    for chosen in (extractors, restorers):
        if len(chosen) > 1:
            raise ValueError(f"choose one of the options {', '.join(chosen)}")
    for name in ("no_mask", "no_joint_learning"):
        if name in options and "no_ffsr" in options:
            raise ValueError(f"no_ffsr has no part that {name} would change")
    config = common.get_config()
    config.method = method = _paper()
    config.data.num_ids = 32  # sec. 5.2: batches of 32; no loss wants pairs
    config.data.num_instances = 1
    if protocol:
        config.data.protocol = protocol
        config.data.image_size = (384, 128)  # sec. 5.2
        config.data.pad = 10  # not given; BoT sec. 2
    if protocol == "vr_market1501":
        config.data.image_size = (256, 128)  # sec. 5.2
    if protocol == "caviar":
        config.data.num_ids = 16  # of 25
        config.data.num_instances = 2
        # Its own low-resolution images have no originals: copies of the others, some
        # of them at the full resolution.
        config.data.tuples = "synthetic"
        config.data.copy_scales = (1, 2, 3, 4)
    if extractors:
        method.extractor = extractors[0]
    if restorers:
        method.restorer = {"no_ffsr": "none"}.get(restorers[0], restorers[0])
        method.mask = "none"
    if "no_mask" in options:
        method.mask = "none"
    if "no_joint_learning" in options:
        method.joint_learning = False
    if not protocol or "narrow" in options:
        _narrow(config)
    if protocol and "narrow" in options:
        config.data.image_size = (128, 64)
        config.data.pad = 5
    return config


def _paper() -> ConfigDict:
    method = ConfigDict()
    method.name = "ffsr_rife"
    method.restorer = "ffsr"
    method.mask = "gaussian"  # sec. 4.1
    method.joint_learning = True
    method.extractor = "rife"
    # FFSR: widths not given; these have the 3.71 GMAC of Table 1.
    method.ffsr_stem_channels = 16
    method.ffsr_channels = 128
    # SRCNN 9-1-5, ECCV 2014; VDSR, arXiv:1511.04587, sec. 5.
    method.srcnn_kernel_sizes = (9, 1, 5)
    method.srcnn_channels = (64, 32)
    method.vdsr_channels = 64
    method.vdsr_depth = 20
    # ResNet-50, sec. 5.2.
    method.width = 64
    method.num_blocks = (3, 4, 6, 3)
    method.last_stride = 2  # not given
    method.feature_size = 256  # sec. 5.2
    # Losses.
    method.alpha = 1.0  # sec. 5.2
    method.beta = 0.1  # sec. 5.2
    # Training, sec. 5.2.
    method.epochs_ffsr = 60
    method.epochs_rife = 60
    method.epochs_joint = 60
    method.learning_rate_ffsr = 0.01
    method.learning_rate_rife = 0.01
    method.learning_rate_joint = 0.001
    method.algorithm = "sgd"
    method.momentum = 0.9  # not given
    method.weight_decay = 5e-4  # not given
    method.milestones = (30,)
    method.decay_factor = 0.1
    method.dtype = "float32"
    return method


def _narrow(config: ConfigDict) -> None:
    """Networks and a training that two CPU cores manage within minutes; all ours."""
    config.data.num_ids = 24
    config.data.num_instances = 1
    method = config.method
    method.width = 16
    method.num_blocks = (1, 1, 1, 1)
    method.feature_size = 128
    method.ffsr_stem_channels = 16
    method.ffsr_channels = 32
    method.srcnn_channels = (16, 8)
    method.vdsr_channels = 16
    method.vdsr_depth = 4
    method.epochs_ffsr = 10
    method.epochs_rife = 55
    method.epochs_joint = 15
    method.algorithm = "adam"  # SGD moves both networks hardly from scratch
    method.learning_rate_ffsr = 2e-3
    method.learning_rate_rife = 2e-3
    method.learning_rate_joint = 2e-4
    method.milestones = (40,)
