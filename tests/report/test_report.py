"""The page and the pictures of a run."""

import numpy as np
from PIL import Image

from crossres_jax.report import pictures, write_report
from crossres_jax.training.evaluate import Evaluation


def _images(*shape):
    return np.random.default_rng(0).uniform(size=(*shape, 32, 16, 3)).astype(np.float32)


def test_frames_tell_right_from_wrong():
    sheet = pictures.ranked_lists(
        _images(1), _images(1, 2), np.array([7]), np.array([[7, 8]]), ["query x2"]
    )
    colours = {colour for _, colour in sheet.getcolors(maxcolors=10**6)}
    assert {(42, 157, 74), (200, 55, 45)} <= colours


def test_restorations_have_one_column_per_image():
    two, four = (
        pictures.restorations(_images(n), _images(n), _images(n) / 2, [2] * n)
        for n in (2, 4)
    )
    assert two.height == four.height
    assert four.width - pictures.GAP == 2 * (two.width - pictures.GAP)


def test_report_is_a_page_with_its_pictures(tmp_path):
    def load(side, rows):
        n, scale = len(rows), 2 if side == "query" else 1
        return {
            "lr": _images(n),
            "hr": _images(n) / 2,
            "has_hr": np.ones(n, bool),
            "pid": np.arange(n),
            "camid": np.zeros(n, int),
            "scale": np.full(n, scale),
            "resolution": np.full(n, 1 / scale),
        }

    options = {"restore": lambda images, *, resolution: images, "load": load}
    results = {
        "method": "ps_hrnet",
        "protocol": "<mlr>",
        "rank1": 48.25,
        "mAP": 50.0,
        "trials": {"count": 100, "rank1_std": 1.5},
    }
    evaluation = Evaluation(results, np.arange(3), np.arange(6).reshape(3, 2))
    write_report(tmp_path / "report", results, evaluation, **options)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "48.2%</b> (± 1.5 over 100 gallery draws), mAP" in page
    assert "&lt;mlr&gt;" in page
    for name in ("ranked.png", "restored.png"):
        assert f'src="{name}"' in page
        with Image.open(tmp_path / "report" / name) as picture:
            assert min(picture.size) > 100

    del results["trials"]  # of multi-shot scores there is one, without a spread
    write_report(tmp_path / "report", results, evaluation, **options)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "48.2%</b>, mAP" in page
