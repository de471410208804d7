"""DGRL (Ye and Gao).

The embedded demo, generated pedestrians and narrow networks (not yet measured):

    python launch.py --config=configs/dgrl.py

The paper's own setting on real data, from ImageNet's ResNet-50 (not yet run):

    python launch.py --config=configs/dgrl.py:mlr_viper --config.data.dir=DIR \
        --config.init.backbone=resnet50.pth
"""

from ml_collections import ConfigDict

from configs import common

LOSSES = ("id", "id_wrt", "id_wrt_l1")
NETWORKS = ("plain", "no_galn", "no_restormer")
OPTIONS = (*LOSSES, *NETWORKS, "narrow")


def get_config(arg: str = "") -> ConfigDict:
    """DGRL on the demo (no protocol named) or on a named protocol.

    Args:
      arg: `"PROTOCOL,OPTION,…"`. Options:
        id, id_wrt, id_wrt_l1: the first rows of Table II;
        plain, no_galn, no_restormer: the first rows of Table III;
        narrow: the demo's networks and training on a named protocol.
    """
    protocol, options = common.parse(arg, OPTIONS)
    for rows in (LOSSES, NETWORKS):
        if len(chosen := options & {*rows}) > 1:
            raise ValueError(f"choose one of the options {', '.join(sorted(chosen))}")
    config = common.get_config()
    config.method = method = _paper()
    config.restorer = _rcan()
    config.data.num_ids = 16  # sec. IV-C
    config.data.num_instances = 3  # sec. IV-C
    if protocol in ("caviar", "paired_folder"):
        del config.restorer  # sec. IV-C; or the images are restored already
    if protocol == "caviar":  # its own low-resolution images have no originals
        config.data.tuples = "synthetic"
    if protocol:
        config.data.protocol = protocol
        config.data.image_size = (256, 128)  # sec. IV-C
        config.data.pad = 10  # not given; PS-HRNet's
    if protocol.startswith("mlr_"):
        config.data.kernel = "area"  # sec. IV-C
    if protocol == "mlr_viper":
        config.data.num_ids = 24  # of whom two images each exist
        config.data.num_instances = 2
    if options & {"id", "id_wrt", "id_wrt_l1"}:
        method.lambda_kl = 0.0
    if options & {"id", "id_wrt"}:
        method.gamma = 0.0
    if "id" in options:
        method.lambda_wrt = 0.0
    if options & {"plain", "no_galn", "no_restormer"}:
        method.restormer = False
    if options & {"plain", "no_galn"}:
        method.group_aware = False
    if "plain" in options:
        method.non_local = False
    if not protocol or "narrow" in options:
        _narrow(config)
    if protocol and "narrow" in options:
        config.data.image_size = (128, 64)
        config.data.pad = 5
        config.data.kernel = ""  # the protocol's, as in all methods' narrow runs
    return config


def _paper() -> ConfigDict:
    method = ConfigDict()
    method.name = "dgrl"
    method.non_local = True
    method.group_aware = True
    method.restormer = True
    # ResNet-50, sec. III-A.
    method.width = 64
    method.num_blocks = (3, 4, 6, 3)
    method.side1_blocks = (3, 2)  # not given; DHM's
    method.side2_blocks = 3  # not given; DHM's
    method.num_heads = 4  # sec. IV-C
    method.num_groups = 32  # sec. IV-C
    method.group_features = 512  # not given; GroupFace's
    # Losses.
    method.label_smoothing = 0.1  # sec. III-D1
    method.alpha = 0.5  # sec. IV-C
    method.beta = 0.5  # sec. IV-C
    method.gamma = 5.0  # sec. IV-C
    method.lambda_wrt = 1.0  # Eq. (13)
    method.lambda_kl = 1.0  # Eq. (13)
    # Training, sec. IV-C.
    method.epochs = 70
    method.learning_rate = 1.3e-2
    method.algorithm = "sgd"
    method.momentum = 0.9
    method.weight_decay = 5e-4
    method.milestones = (30, 60)
    method.decay_factor = 0.1  # "decreased by one-tenth"
    method.warmup_epochs = 0  # not mentioned
    method.warmup_learning_rate = 0.0
    method.dtype = "float32"
    return method


def _rcan() -> ConfigDict:
    """What restores the images before: RCAN, on the training images (sec. III-B1)."""
    restorer = ConfigDict()
    restorer.data = ConfigDict()
    restorer.data.tuples = "synthetic"
    restorer.data.num_ids = 16  # RCAN sec. 4.1: batches of 16
    restorer.data.num_instances = 1
    restorer.data.erase = 0.0
    restorer.method = method = ConfigDict()
    method.name = "rcan"
    method.rates = (2, 3, 4)  # sec. IV-C
    method.num_groups = 10  # RCAN sec. 4.1
    method.num_blocks = 20  # RCAN sec. 4.1
    method.channels = 64  # RCAN sec. 4.1
    method.squeeze = 4  # RCAN sec. 4.1: 64 / 16
    method.residual = False
    method.epochs = 200  # not given
    method.learning_rate = 1e-4  # RCAN sec. 4.1
    method.milestones = (100,)  # not given; halved, RCAN sec. 4.1
    method.decay_factor = 0.5  # RCAN sec. 4.1
    method.dtype = "float32"
    return restorer


def _narrow(config: ConfigDict) -> None:
    """Networks and a training that two CPU cores manage within minutes; all ours."""
    config.data.num_ids = 8
    config.data.num_instances = 3
    method = config.method
    method.width = 16
    method.num_blocks = (1, 1, 1, 1)
    method.side1_blocks = (1, 1)
    method.side2_blocks = 1
    method.group_features = 64
    method.epochs = 24
    method.algorithm = "adam"
    method.learning_rate = 2e-3
    method.milestones = (18,)
    method.warmup_epochs = 1
    method.warmup_learning_rate = 2e-4
    if "restorer" in config:
        config.restorer.data.num_ids = 24
        method = config.restorer.method
        method.num_groups = 1
        method.num_blocks = 3
        method.channels = 16
        method.squeeze = 4
        method.residual = True
        method.epochs = 6
        method.learning_rate = 2e-3
        method.milestones = (4,)
