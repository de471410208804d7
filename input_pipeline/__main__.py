"""Shows a protocol before anything is trained: a table and a sheet of pictures.

python -m input_pipeline PROTOCOL --data_dir DIR [--out PATH.png]
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from input_pipeline.contact_sheet import TILE, contact_sheet
from input_pipeline.overview import describe, list_protocols
from input_pipeline.pipeline import open_data

# Options: their defaults, which have their types, and what they are.
_DATA = {
    "data_dir": ("", "folder of the official archives, or of your own pictures"),
    "cache_dir": ("", "folder of built data sets; ~/tensorflow_datasets"),
    "table": ("images.csv", "of your own pictures, in their folder; images.csv"),
    "pattern": ("", "regex of your pictures' names, in place of a table"),
    "max_quarantined": (10, "training images that may be unreadable; 10"),
    "seed": (0, "of all that is drawn; 0"),
    "split": (0, "its number; 0"),
    "val_ids": (0, "training identities that are held out; 0"),
}
_PROTOCOL = {
    "lr_cameras": ((), "low-resolution cameras, such as 1,3"),
    "rate": ("", "how scales are dealt: per_image or per_identity"),
    "scales": ((), "such as 2,3,4"),
    "kernel": ("", "of the down-sampling: area, bilinear, bicubic or lanczos"),
    "rounding": ("", "of the sizes: floor, nearest or ceil"),
    "blur": (0.0, "before the down-sampling, standard deviation in pixels"),
    "jpeg_quality": (-1, "of low-resolution images, 1 to 95; 0 is lossless"),
    "evaluation": ("", "single_shot or multi_shot"),
    "num_draws": (0, "galleries of the single-shot scores"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what the arguments ask for; foreseen errors end in one line."""
    logging.getLogger("absl").setLevel("ERROR")  # TFDS's own notices
    arguments = _parser().parse_args(argv)
    if arguments.list or not arguments.protocol:
        print(list_protocols())
        return
    try:
        show(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"input_pipeline: {_message(error)}")


def show(arguments: argparse.Namespace) -> None:
    """Prints the table of a protocol and writes its pictures.

    Args:
      arguments: of the command line.

    Raises:
      ValueError: if the data set cannot be opened, or the file of the pictures exists.
    """
    config = SimpleNamespace(
        **vars(arguments),
        dir=arguments.data_dir,
        image_size=TILE,
        resize="bicubic",
        # Of batches, which are not made here.
        tuples="image",
        copy_scales=(),
        num_ids=1,
        num_instances=1,
    )
    data = open_data(config)
    print(describe(data))
    sheet = contact_sheet(data)
    out = Path(arguments.out or f"{arguments.protocol}.png")
    try:
        with out.open("xb") as file:
            sheet.save(file, format="png")
    except FileExistsError as error:
        raise ValueError(
            f"{out} exists and is left as it is: delete it, or name another by --out."
        ) from error
    print(f"\nPictures: {out}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline",
        usage="%(prog)s PROTOCOL [--data_dir DIR] [--out PATH] [OPTION …]",
        description="Shows who trains, who is searched for, and what is low-resolution "
        "under a protocol: prints a table and writes a sheet of pictures. Without "
        "PROTOCOL, lists the protocols.",
    )
    parser.add_argument("protocol", nargs="?", metavar="PROTOCOL", help="its name")
    parser.add_argument("--list", action="store_true", help="the protocols, no more")
    parser.add_argument(
        "--out",
        default="",
        metavar="PATH",
        help="PNG file of the pictures; PROTOCOL.png. One that exists is left as it is",
    )
    types = {str: str, int: _number, float: float, tuple: _numbers}
    words = {str: "TEXT", int: "N", float: "X", tuple: "N,N"}
    titles = ("data set and split", "in place of the protocol's own")
    for title, options in zip(titles, (_DATA, _PROTOCOL), strict=True):
        group = parser.add_argument_group(title)
        for name, (default, what) in options.items():
            kind = type(default)
            group.add_argument(
                f"--{name}",
                type=types[kind],
                default=default,
                metavar=words[kind],
                help=what,
            )
        if options is _DATA:
            group.add_argument(
                "--no_camera", action="store_true", help="cameras are not known"
            )
    return parser


def _number(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _numbers(text):
    return tuple(_number(number) for number in text.split(","))


def _message(error):
    """An error in one line, with the names that options have here."""
    text = " ".join(str(error).split())
    text = re.sub(r"(--)?config\.data\.dir\b", "--data_dir", text)
    return re.sub(r"(--)?config\.data\.(\w+)(=True)?", r"--\2", text)


if __name__ == "__main__":
    main()
