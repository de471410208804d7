"""What every config has, beside its method."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Seeds, data, training and evaluation; a method's config replaces what differs."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the batches and dropout

    config.data = ConfigDict()
    config.data.protocol = "mlr_pedestrians"
    config.data.dir = ""  # folder of the official archives, or of pictures of one's own
    config.data.table = "images.csv"  # of pictures of one's own: pid, camid, path, …
    config.data.pattern = ""  # of their names, in place of a table
    config.data.no_camera = False  # whether their cameras are not known
    config.data.cache_dir = ""  # built data sets; '' is TFDS's ~/tensorflow_datasets
    config.data.seed = 0  # of the protocol: splits and scales
    config.data.split = 0  # the number of the split
    config.data.val_ids = 0  # training identities held out to choose the checkpoint
    # The protocol's fields; '', (), 0 (and −1) are its own.
    config.data.lr_cameras = ()
    config.data.rate = ""  # per_image or per_identity
    config.data.scales = ()  # whole numbers
    config.data.kernel = ""  # of the down-sampling: area, bilinear, bicubic, lanczos
    config.data.rounding = ""  # of the sizes: floor, nearest, ceil
    config.data.blur = 0.0  # before the down-sampling, standard deviation in pixels
    config.data.jpeg_quality = -1  # of low-resolution images; 0 is lossless
    config.data.evaluation = ""  # single_shot or multi_shot
    config.data.num_draws = 0  # galleries of the single-shot scores

    config.data.image_size = (64, 32)  # height, width
    config.data.resize = "bicubic"  # kernel that brings images to this size
    config.data.num_ids = 6  # P
    config.data.num_instances = 4  # K
    config.data.flip = 0.5  # probability
    config.data.pad = 3  # pixels on each side, before the random crop
    config.data.erase = 0.0  # probability of a rectangle in ImageNet's mean colour
    config.data.tuples = "image"  # what a batch holds: image, synthetic or cross
    config.data.copy_scales = ()  # rates of synthetic copies; () is the protocol's
    config.data.max_quarantined = 10  # unreadable training images that are left out
    config.data.eval_batch_size = 64

    config.init = ConfigDict()
    config.init.backbone = ""  # a file of PyTorch or safetensors to start from

    config.train = ConfigDict()
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 500
    config.train.keep_checkpoints = 2  # the newest; the best is kept besides
    config.train.max_skipped_in_a_row = 5  # non-finite steps, then a rollback
    config.train.max_rollbacks = 2  # to the last checkpoint, then the run ends

    config.evaluation = ConfigDict()
    config.evaluation.ap = "step"  # "trapezoid": as Market-1501's first script
    return config


def has_low_resolution(protocol: str) -> bool:
    """Whether a protocol of that name has low-resolution images."""
    return protocol.startswith(("mlr_", "vr_", "caviar", "paired_"))


def parse(arg: str, options: tuple[str, ...]) -> tuple[str, set[str]]:
    """`"protocol,option,…"` → the protocol ('' for the demo) and the options.

    Raises:
      ValueError: if an option is not one of `options`.
    """
    protocol, *chosen = [part.strip() for part in arg.split(",")]
    if protocol in options:  # `ps_hrnet.py:id_sr` is the demo with an option
        protocol, chosen = "", [protocol, *chosen]
    unknown = sorted(set(chosen) - set(options))
    if unknown:
        raise ValueError(
            f"unknown config option {', '.join(unknown)}; expected "
            f"PROTOCOL or PROTOCOL,OPTION,… with options {', '.join(options)}."
        )
    return protocol, set(chosen)
