"""A protocol in words and numbers, for a terminal."""

import textwrap

import numpy as np

from input_pipeline.pipeline import Data
from input_pipeline.protocols import AS_THEY_ARE, PROTOCOLS, SEARCHED, num_unmatched

_ROUNDED = {"floor": "down", "nearest": "to the nearest", "ceil": "up"}
_WIDTH = 88  # of the terminal


def list_protocols() -> str:
    """All protocols, one line each."""
    rows = [("protocol", "data set", "low-resolution", "rates", "main scores")]
    for x in PROTOCOLS.values():
        scores = x.evaluation.replace("_", "-")
        rows.append((x.name, x.dataset, _low_side(x), _rates(x), scores))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def describe(data: Data) -> str:
    """The protocol, its images by side, and what deserves attention, as text.

    Args:
      data: from `pipeline.open_data`.

    Returns:
      Lines of at most 88 characters, where no name of a picture is longer.
    """
    protocol = data.plan.protocol
    fields = [f"{key:<16}{text}" for key, text in _fields(data).items() if text]
    notes = [
        textwrap.fill(
            note,
            _WIDTH,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for note in _notes(data)
    ]
    title = f"{protocol.name} on {protocol.dataset}"
    return "\n".join(
        [title, "", *fields, "", *_table(data), *[""][: len(notes)], *notes]
    )


def _low_side(protocol):
    """Which images are low-resolution."""
    if protocol.low_resolution == "camera":
        cameras = " ".join(map(str, protocol.lr_cameras))
        return f"camera{'s' * (len(protocol.lr_cameras) > 1)} {cameras}"
    return {
        "none": "none",
        "half": "half per identity",
        "per_identity": "camera per identity",
        "real": "the smaller images",
        "stored": "as the table says",
        "all": "all",
    }[protocol.low_resolution]


def _rates(protocol):
    """How low it is, and how that is dealt out."""
    if protocol.low_resolution == "none":
        return ""
    if protocol.low_resolution in AS_THEY_ARE:
        return "as they are"
    choices = _scales(protocol)
    if protocol.widths:
        choices = f"{min(protocol.widths)}–{max(protocol.widths)} px"
    elif len(protocol.scales) == 1:
        return choices
    return f"{choices} by {protocol.rate.removeprefix('per_')}"


def _scales(protocol):
    return " ".join(f"×{scale}" for scale in protocol.scales)


def _fields(data):
    """{what: how} of the protocol."""
    protocol = data.plan.protocol
    copies = [protocol.kernel, f"sizes rounded {_ROUNDED[protocol.rounding]}"]
    if protocol.blur:
        copies.append(f"blur of {protocol.blur:g} pixels")
    if protocol.jpeg_quality:
        copies.append(f"JPEG of quality {protocol.jpeg_quality}")
    if protocol.widths or protocol.low_resolution in AS_THEY_ARE:
        copies.append(f"synthetic copies at {_scales(protocol)}")
    drawn = f"seed {protocol.seed}, split {protocol.split}"
    if protocol.val_ids:
        drawn += f", {protocol.val_ids} training identities held out"
    scores = f"single-shot over {protocol.num_draws} galleries"
    if protocol.evaluation == "multi_shot":
        beside = f"; beside them {scores}" if protocol.num_draws else ""
        scores = f"multi-shot{beside}"
    return {
        "low-resolution": _low_side(protocol),
        "rates": _rates(protocol),
        "down-sampling": ", ".join(copies) if _rates(protocol) else "",
        "drawn by": drawn,
        "scores": scores,
        "manifest": data.manifest["sha256"],
    }


def _table(data):
    """Lines: the sides beside each other."""
    counts = data.manifest["counts"]
    sides = [getattr(data.plan, name) for name in counts]
    rows = {
        "": list(counts),
        "identities": [_number(side["identities"]) for side in counts.values()],
        "images": [_number(side["images"]) for side in counts.values()],
        "low-resolution": [_number(images.low.sum()) for images in sides],
    }
    whole = all((images.scale % 1 == 0).all() for images in sides)
    scale = "×{}" if whole else "about ×{}"
    for column, label in (("cameras", "camera {}"), ("scales", scale)):
        keys = {int(key) for side in counts.values() for key in side[column]}
        for key in sorted(keys):
            found = [side[column].get(str(key), 0) for side in counts.values()]
            rows["no camera" if key < 0 else label.format(key)] = map(_number, found)
    for name in ("width", "height"):
        ranges = [sorted(set(side[f"{name}s"])) for side in counts.values()]
        rows[name] = ["–".join(map(str, ends)) for ends in ranges]
    return [
        f"{label:<16}" + "".join(f"{cell:>12}" for cell in cells)
        for label, cells in rows.items()
    ]


def _notes(data):
    """Yields what deserves attention, a line each."""
    plan, train = data.plan, data.plan.train
    sides = {name: getattr(plan, name) for name in data.manifest["counts"]}
    used = {p for x in sides.values() for p in (*x.record, *x.original)}
    if left_out := len(data.source) - len(used):
        yield (
            f"on no side: identities {plan.num_set_aside:,}, "
            f"images {left_out:,} of {len(data.source):,}"
        )
    if data.quarantined:
        yield (
            f"training images that cannot be read and are left out: "
            f"{len(data.quarantined)} ({', '.join(data.quarantined)})"
        )
    if train.low.any() and not train.low.all():
        for kind in ("high", "low"):
            seen = train.pid[train.low == (kind == "low")]
            if missing := len(np.setdiff1d(train.pid, seen)):
                yield (
                    f"training identities without a {kind}-resolution image "
                    f"(cross tuples lack it): {missing:,}"
                )
    no_original = {name: (~images.has_hr).sum() for name, images in sides.items()}
    if any(no_original.values()):
        found = (f"{name} {count:,}" for name, count in no_original.items() if count)
        yield f"images without a high-resolution original: {', '.join(found)}"
    for query, gallery in SEARCHED:
        images = getattr(plan, query), getattr(plan, gallery)
        if unmatched := num_unmatched(plan.protocol, *images):
            yield (
                f"images of {query} that have no match in {gallery} and do not count: "
                f"{unmatched:,}"
            )


def _number(count):
    return f"{count:,}" if count else "–"
