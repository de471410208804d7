"""Pictures of a run, drawn with Pillow."""

import numpy as np
from PIL import Image, ImageDraw

from crossres_jax.metrics import psnr

TILE = (64, 128)  # width, height of a shown crop, pixels
GAP, BORDER, CAPTION = 8, 3, 14
RIGHT, WRONG, NEUTRAL, PAPER, INK = "#2a9d4a", "#c8372d", "#9a9a9a", "white", "#202020"


def ranked_lists(queries, galleries, query_pids, gallery_pids, captions):
    """One row per query: the query, then its nearest gallery images, nearest first.

    Args:
      queries: (S, H, W, 3) float in [0, 1].
      galleries: (S, R, H, W, 3) float in [0, 1].
      query_pids: (S,) int.
      gallery_pids: (S, R) int; an image of the query's identity gets a green frame,
        another one a red frame.
      captions: S strings, shown above the queries.

    Returns:
      A Pillow image.
    """
    rows = []
    for query, row, pid, pids, caption in zip(
        queries, galleries, query_pids, gallery_pids, captions, strict=True
    ):
        tiles = [(query, NEUTRAL, caption)]
        for rank, (image, other) in enumerate(zip(row, pids, strict=True), start=1):
            tiles.append((image, RIGHT if other == pid else WRONG, str(rank)))
        rows.append(tiles)
    return _sheet(rows)


def restorations(low, restored, originals, scales):
    """One column per image: low-resolution, restored, original; with their PSNR.

    Args:
      low: (S, H, W, 3) float in [0, 1], bicubic at the input size.
      restored: (S, H, W, 3) float in [0, 1].
      originals: (S, H, W, 3) float in [0, 1].
      scales: (S,) down-sampling rates.

    Returns:
      A Pillow image.
    """
    captions = (
        [
            f"x{s:.2g} {p:.1f} dB"
            for s, p in zip(scales, psnr(low, originals), strict=True)
        ],
        [f"{p:.1f} dB" for p in psnr(restored, originals)],
        ["original"] * len(originals),
    )
    rows = [
        [(x, NEUTRAL, text) for x, text in zip(images, texts, strict=True)]
        for images, texts in zip((low, restored, originals), captions, strict=True)
    ]
    return _sheet(rows)


def _sheet(rows):
    """Rows of (image, frame colour, caption) as one Pillow image."""
    width, height = TILE[0] + 2 * BORDER, TILE[1] + 2 * BORDER
    sheet = Image.new(
        "RGB",
        (
            GAP + max(map(len, rows)) * (width + GAP),
            GAP + len(rows) * (height + CAPTION + GAP),
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (image, colour, caption) in enumerate(row):
            x = GAP + c * (width + GAP)
            y = GAP + r * (height + CAPTION + GAP)
            draw.text((x, y), caption, fill=INK)
            y += CAPTION
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
            pixels = Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255 + 0.5))
            pixels = pixels.resize(TILE, Image.Resampling.BICUBIC)
            sheet.paste(pixels, (x + BORDER, y + BORDER))
    return sheet
