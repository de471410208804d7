"""The pictures of a protocol on one sheet, drawn with Pillow."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.pipeline import Data, load_images

TILE = (192, 96)  # height, width of a shown image, pixels
NUM_EXAMPLES, NUM_MATCHES = 8, 3
WIDTH, LINE, FRAME, GAP, SPACE = 1120, 18, 3, 4, 28  # pixels
SAME, OTHER, NEUTRAL, PAPER, INK = "#2a9d4a", "#c8372d", "#9a9a9a", "white", "#202020"


class Tile(NamedTuple):
    """An image of the sheet."""

    pixels: np.ndarray  # (*TILE, 3) float in [0, 1]
    caption: str
    frame: str = NEUTRAL


def contact_sheet(data: Data) -> Image.Image:
    """Examples of what is trained on and searched for; equal data, equal sheets.

    Low-resolution training images of all scales, each beside its original if there is
    one; then queries of all scales, each beside images of its identity, if possible
    from other cameras, and one of another identity.

    Args:
      data: from `pipeline.open_data`, with TILE as the config's `image_size`: images
        are shown as a network would see them.

    Returns:
      A Pillow image.
    """
    protocol = data.plan.protocol
    title = (
        f"{protocol.name} on {protocol.dataset}, seed {protocol.seed}, "
        f"split {protocol.split}, manifest {data.manifest['sha256'][:12]}; "
        "captions: scale, stored size, camera"
    )
    blocks = [
        _draw_block(*block)
        for block in ((title, []), _training_images(data), _searches(data))
    ]
    height = sum(block.height for block in blocks)
    sheet = Image.new("RGB", (WIDTH + 2 * LINE, height), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (LINE, top))
        top += block.height
    return sheet


def _training_images(data):
    """A heading and groups of tiles: LR images and their originals, if there are."""
    train = data.plan.train
    low = np.flatnonzero(train.low)
    if not len(low):
        rows = _spread(np.arange(len(train.pid)), train.pid, NUM_EXAMPLES)
        return "Training images", [[tile] for tile in _tiles(data, "train", rows)]
    rows = _spread(low, train.scale, NUM_EXAMPLES)
    tiles, batch = _tiles(data, "train", rows), load_images(data, "train", rows)
    groups = [
        [tile, Tile(original, "original")] if has_hr else [tile]
        for tile, original, has_hr in zip(
            tiles, batch["hr"], batch["has_hr"], strict=True
        )
    ]
    paired = " and their" if batch["has_hr"].any() else ", without"
    return f"Low-resolution training images{paired} originals", groups


def _searches(data):
    """A heading and groups of tiles: queries, and right and wrong gallery images."""
    query, gallery = data.plan.query, data.plan.gallery
    rows = _spread(np.arange(len(query.pid)), query.scale, NUM_EXAMPLES)
    found = [_right_and_wrong(query, gallery, row) for row in rows]
    others = iter(_tiles(data, "gallery", [row for part in found for row in part]))
    groups = []
    for row, tile, part in zip(rows, _tiles(data, "query", rows), found, strict=True):
        frames = np.where(gallery.pid[part] == query.pid[row], SAME, OTHER)
        groups.append([tile, *(next(others)._replace(frame=x) for x in frames)])
    heading = "Queries, gallery images of their identity (green) and of another (red)"
    return heading, groups


def _right_and_wrong(query, gallery, row):
    """Rows of the gallery: some of a query's identity, and one of another."""
    is_same = gallery.pid == query.pid[row]
    same, others = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    elsewhere = same[gallery.camid[same] != query.camid[row]]
    same = _spread(elsewhere if len(elsewhere) else same, gallery.camid, NUM_MATCHES)
    return np.append(same, others[row * len(others) // len(query.pid) :][:1])


def _spread(rows, keys, num):
    """At most `num` of the rows, evenly spaced in the order of their keys."""
    rows = rows[np.argsort(keys[rows], kind="stable")]
    num = min(num, len(rows))
    return rows[(2 * np.arange(num) + 1) * len(rows) // max(2 * num, 1)]


def _tiles(data, side, rows):
    """Tiles of images as the MLR set stores them."""
    if not len(rows):
        return []
    images = getattr(data.plan, side)
    tiles = []
    for row, pixels in zip(rows, load_images(data, side, rows)["lr"], strict=True):
        words = [f"x{images.scale[row]:.2g}"] if images.low[row] else []
        words.append(f"{images.width[row]}x{images.height[row]}")
        if images.camid[row] >= 0:
            words.append(f"c{images.camid[row]}")
        tiles.append(Tile(pixels, "  ".join(words)))
    return tiles


def _draw_block(heading, groups):
    """A heading and groups of tiles, as many in a row as there fit."""
    tall, wide = LINE + TILE[0] + 2 * FRAME + GAP, TILE[1] + 2 * FRAME + GAP
    per_row = WIDTH // (max(map(len, groups), default=1) * wide + SPACE)
    height = 3 * LINE + -(-len(groups) // per_row) * (tall + GAP)
    block = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, LINE), heading, fill=INK, font=ImageFont.load_default(15))
    for i, group in enumerate(groups):
        x = i % per_row * (WIDTH // per_row)
        y = 5 * LINE // 2 + i // per_row * (tall + GAP)
        for tile in group:
            _draw_tile(draw, block, tile, x, y)
            x += wide
    return block


def _draw_tile(draw, block, tile, x, y):
    draw.text((x, y), tile.caption, fill=INK, font=ImageFont.load_default(12))
    y += LINE
    corner = x + TILE[1] + 2 * FRAME - 1, y + TILE[0] + 2 * FRAME - 1
    draw.rectangle((x, y, *corner), fill=tile.frame)
    pixels = np.uint8(np.rint(tile.pixels * 255))
    block.paste(Image.fromarray(pixels), (x + FRAME, y + FRAME))
