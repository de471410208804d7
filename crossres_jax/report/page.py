"""The page of a run: `index.html` with its scores and pictures."""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from crossres_jax.report.pictures import ranked_lists, restorations
from crossres_jax.training.evaluate import Evaluation


def write_report(
    directory: Path,
    results: Mapping,
    evaluation: Evaluation,
    *,
    restore: Callable[..., np.ndarray] | None,
    load: Callable[[str, Sequence[int]], Mapping[str, np.ndarray]],
) -> None:
    """Writes `index.html`, `ranked.png` and, if one restores, `restored.png`.

    Args:
      directory: where to; made if missing.
      results: what `results.json` holds.
      evaluation: which queries are shown, and their nearest gallery images.
      restore: `(images, *, resolution) → images`, both (N, H, W, 3) in [0, 1]; None if
        nothing restores.
      load: `(side, rows) → lr, hr (N, H, W, 3), has_hr, pid, camid, scale, resolution
        (N,)` of those rows of the query or gallery side.
    """
    directory.mkdir(parents=True, exist_ok=True)
    query = load("query", evaluation.shown)
    gallery = load("gallery", evaluation.ranked.ravel())
    shape = evaluation.ranked.shape
    ranked_lists(
        query["lr"],
        gallery["lr"].reshape(*shape, *gallery["lr"].shape[1:]),
        query["pid"],
        gallery["pid"].reshape(shape),
        [f"query x{scale:.2g}" for scale in query["scale"]],
    ).save(directory / "ranked.png")
    pictures = {"ranked.png": "Queries and their nearest gallery images"}

    show = (query["scale"] > 1) & query["has_hr"]
    if restore and show.any():
        low, high = query["lr"][show], query["hr"][show]
        restored = np.asarray(restore(low, resolution=query["resolution"][show]))
        sheet = restorations(low, restored, high, query["scale"][show])
        sheet.save(directory / "restored.png")
        pictures["restored.png"] = "Low-resolution, restored and original queries"
    (directory / "index.html").write_text(_page(results, pictures))


def _page(results, pictures):
    title = f"{results['method']} on {results['protocol']}"
    spread = ""
    if trials := results.get("trials"):
        spread = f" (± {trials['rank1_std']:.1f} over {trials['count']} gallery draws)"
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>\n"
        for key, value in _flat(results)
    )
    figures = "".join(
        f'<h2>{html.escape(text)}</h2>\n<img src="{name}" alt="{html.escape(text)}">\n'
        for name, text in pictures.items()
    )
    return f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; }}
td {{ padding: 0 1.5em 0 0; }} img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
<p>Rank-1 <b>{results["rank1"]:.1f}%</b>{spread}, mAP <b>{results["mAP"]:.1f}%</b>.</p>
{figures}<h2>All figures</h2>
<table>
{rows}</table>
"""


def _flat(value, path=""):
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, f"{path}.{key}" if path else key)
    else:
        yield path, value
