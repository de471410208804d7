"""The baselines: any backbone, with or without a restorer, by three recipes.

The embedded demo, generated pedestrians and a narrow ResNet (Rank-1 about 48%, two
minutes on two CPU cores; docs/results.md):

    python launch.py --config=configs/baseline.py

A published model on Market-1501, Rank-1 91.2% and mAP 74.9% (docs/results.md):

    python launch.py --config=configs/baseline.py:market1501,osnet_x0_25 \
        --mode=evaluate --config.init.backbone=osnet_x0_25_market1501.pth \
        --config.data.dir=DIR

"Bicubic + ResNet-50" and "VDSR + ResNet-50" from ImageNet weights (not yet run):

    python launch.py --config=configs/baseline.py:mlr_viper,bot \
        --config.init.backbone=resnet50.pth --config.data.dir=DIR
    python launch.py --config=configs/baseline.py:mlr_viper,bot,vdsr \
        --config.init.backbone=resnet50.pth --config.data.dir=DIR

The same by AGW (not yet run):

    python launch.py --config=configs/baseline.py:mlr_viper,agw \
        --config.init.backbone=resnet50.pth --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from configs import common

BACKBONES = ("resnet50", "osnet_x0_25", "osnet_x1_0", "hrnet_w32")
OPTIONS = (*BACKBONES, "bot", "agw", "gem", "vdsr", "vdsr_ca", "hr", "narrow")


def get_config(arg: str = "") -> ConfigDict:
    """A baseline on the demo (no protocol named) or on a named protocol.

    Args:
      arg: `"PROTOCOL,OPTION,…"`. Options:
        resnet50, osnet_x0_25, osnet_x1_0, hrnet_w32: the backbone; resnet50 if none;
        bot: "Bag of Tricks" instead of cross-entropy alone;
        agw: AGW, with non-local blocks and generalised-mean pooling;
        gem: generalised-mean pooling;
        vdsr, vdsr_ca: down-sampled images are restored first;
        hr: trains on HR images only;
        narrow: the demo's networks and training on a named protocol.
    """
    protocol, options = common.parse(arg, OPTIONS)
    chosen = [name for name in BACKBONES if name in options]
    rivals = ({"vdsr", "vdsr_ca"}, {"bot", "agw"})
    if len(chosen) > 1 or any(pair <= options for pair in rivals):
        raise ValueError(
            f"choose one backbone of {', '.join(BACKBONES)}, one restorer of vdsr, "
            f"vdsr_ca and one recipe of bot, agw; found {', '.join(sorted(options))}"
        )
    config = common.get_config()
    config.method = method = _softmax()
    (backbone,) = chosen or ("resnet50",)
    if backbone != "resnet50":
        method.backbone, _, width = backbone.partition("_")
        method.width = {"x0_25": 0.25, "x1_0": 1.0, "w32": 32.0}[width]
    if method.backbone != "osnet":
        method.learning_rate = 3e-4  # not given; weights of ImageNet want less
    if protocol:
        config.data.protocol = protocol
        config.data.image_size = (256, 128)  # OSNet sec. 4.1, BoT sec. 2
        config.data.num_ids = 16  # BoT sec. 2; 64 images as in OSNet sec. 4.1
        config.data.num_instances = 4  # BoT sec. 2
        config.data.pad = 10  # BoT sec. 2
        config.data.erase = 0.5  # BoT sec. 3.2; OSNet sec. 4.1 gives no probability
    if protocol in ("mlr_viper", "viper"):
        config.data.num_ids = 32  # of whom two images each exist
        config.data.num_instances = 2
    if protocol and not common.has_low_resolution(protocol):
        # Not given; with it the published weights have their published scores.
        config.data.resize = "bilinear"
    if "bot" in options:
        _bot(method)
    if "agw" in options:
        _agw(method)
    if "gem" in options:
        method.pooling = "gem"
    if options & {"vdsr", "vdsr_ca"}:
        if protocol and not common.has_low_resolution(protocol):
            raise ValueError(f"{protocol} has nothing low-resolution to restore")
        method.restorer = "vdsr"
        method.vdsr_squeeze = 4 if "vdsr_ca" in options else 0  # PS-HRNet sec. IV-C
        method.epochs_restorer = 60  # not given
        if protocol == "caviar":  # its own low-resolution images have no originals
            config.data.tuples = "synthetic"
    if "hr" in options:
        method.trains_on = "hr"
    if not protocol or "narrow" in options:
        _narrow(config)
    if protocol and "narrow" in options:
        config.data.image_size = (128, 64)
        config.data.pad = 5
    return config


def _softmax() -> ConfigDict:
    """Zhou et al., arXiv:1905.00953, sec. 4.1, fine-tuning."""
    method = ConfigDict()
    method.name = "baseline"
    method.recipe = "softmax"
    method.trains_on = "lr"
    # ResNet-50.
    method.backbone = "resnet"
    method.width = 64.0
    method.num_blocks = (3, 4, 6, 3)
    method.last_stride = 2
    method.num_non_local = (0, 0, 0, 0)
    method.pooling = "average"
    # VDSR, arXiv:1511.04587, sec. 5.
    method.restorer = "none"
    method.vdsr_channels = 64
    method.vdsr_depth = 20
    method.vdsr_squeeze = 0
    # Losses.
    method.label_smoothing = 0.1
    method.margin = 0.3  # BoT sec. 2
    method.lambda_center = 5e-4  # BoT sec. 3.6
    # Training.
    method.epochs = 140
    method.epochs_head = 10
    method.learning_rate = 1.5e-3
    method.algorithm = "amsgrad"
    method.weight_decay = 5e-4
    method.milestones = (50, 110)  # 60 and 120 with the epochs of the head
    method.decay_factor = 0.1
    method.warmup_epochs = 0
    method.warmup_learning_rate = 0.0
    method.epochs_restorer = 0
    method.learning_rate_restorer = 1e-4  # not given
    method.dtype = "float32"
    return method


def _bot(method: ConfigDict) -> None:
    """Luo et al., arXiv:1903.07071."""
    method.recipe = "bot"
    method.last_stride = 1  # sec. 3.4
    method.epochs = 120  # sec. 2
    method.epochs_head = 0
    method.learning_rate = 3.5e-4  # sec. 2
    method.algorithm = "adam"
    method.milestones = (40, 70)  # sec. 2
    method.warmup_epochs = 10  # sec. 3.1
    method.warmup_learning_rate = 3.5e-5  # sec. 3.1


def _agw(method: ConfigDict) -> None:
    """Ye et al., arXiv:2001.04193, sec. 4, on top of BoT, whose training it keeps."""
    _bot(method)
    method.recipe = "agw"
    method.num_non_local = (0, 2, 3, 0)  # released code
    method.pooling = "gem"  # its exponent is learned, from 3


def _narrow(config: ConfigDict) -> None:
    """A network and a training that two CPU cores manage within minutes; all ours."""
    config.data.num_ids = 8
    config.data.num_instances = 3
    config.data.erase = 0.0  # as in PS-HRNet's demo
    method = config.method
    if method.backbone == "resnet":
        method.width = 16.0
        method.num_blocks = (1, 1, 1, 1)
    elif method.backbone == "hrnet":
        method.width = 8.0
    else:
        method.width = 0.25
    method.vdsr_channels = 16
    method.vdsr_depth = 4
    method.epochs = 46
    method.epochs_head = 0
    method.milestones = (30,)
    method.warmup_epochs = 2
    method.learning_rate = 2e-3
    method.warmup_learning_rate = 2e-4
    if method.epochs_restorer:
        method.epochs_restorer = 25
    method.learning_rate_restorer = 1e-3
