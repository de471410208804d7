"""The real command: a run, its files, its second start, and every kind of bad input."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from configs import common
from crossres_jax import methods
from crossres_jax.export import read_export
from crossres_jax.pretrained import read_safetensors
from launch import (
    check_fields,
    check_values,
    has_trained,
    main,
    parse_flags,
    read_start,
)

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sixth_method):
    """The two files of docs/sixth_method.md, on data that are built in a second."""
    folder = tmp_path_factory.mktemp("sixth")
    method, config = sixth_method
    (folder / "sixth").mkdir()
    (folder / "sixth" / "__init__.py").touch()
    (folder / "sixth" / "pixel_net.py").write_text(method)
    config = config.replace('"pixel_net"', '"sixth.pixel_net"')
    (folder / "pixel_net.py").write_text(config)
    return folder


@pytest.fixture(scope="module")
def process(folder):
    """A function that runs launch.py in `folder` and returns the finished process."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "launch.py", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="module")
def launch(folder):
    """The same without a process, whose start takes longer than most of these runs."""

    def run(*arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        seconds = jax.config.jax_persistent_cache_min_compile_time_secs
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # those that the last call overrode
        flags.FLAGS.unparse_flags()
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(action="ignore"),
        ):
            patch.setattr(sys, "argv", ["launch.py", *arguments])
            patch.syspath_prepend(folder)
            try:
                main(parse_flags(sys.argv))
                code = 0
            except SystemExit as end:  # with a message, which Python prints
                print(end.code, file=stderr)
                code = 1
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        return subprocess.CompletedProcess(
            arguments, code, stdout.getvalue(), stderr.getvalue()
        )

    return run


@pytest.fixture(scope="module")
def config(folder):
    """The flags of a quick run."""
    return (
        "--config=pixel_net.py:mlr_pedestrians_tiny",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.data.image_size=(32, 16)",
        "--config.data.num_ids=4",
        "--config.data.num_instances=2",
        "--config.data.eval_batch_size=8",
        "--config.method.epochs=2",
    )


@pytest.fixture(scope="module")
def finished(process, config, folder):
    """The first run, in the folder `finished`."""
    finished = process(*config, "--workdir=finished")
    assert finished.returncode == 0, finished.stderr
    return finished


def test_a_run_says_where_its_results_lie(finished):
    assert "Rank-1" in finished.stdout
    assert "finished/results.json" in finished.stdout
    assert "Traceback" not in finished.stderr


def test_a_run_writes_what_the_docs_promise(finished, folder):
    run = folder / "finished"
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["method"]["name"] == "sixth.pixel_net"
    assert config["versions"][0]["packages"]["jax"]
    manifest = json.loads((run / "manifest.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert results["manifest_sha256"] == manifest["sha256"]
    assert re.fullmatch(r"pedestrians/tiny/\d+\.\d+\.\d+", results["dataset"])
    assert {
        *("method", "dataset", "protocol", "manifest_sha256", "phase", "step"),
        *("num_queries", "num_gallery", "num_identities"),
        *("rank1", "rank5", "rank10", "rank20", "mAP", "mINP", "trials", "by_scale"),
    } <= set(results)
    assert 0 <= results["rank1"] <= results["rank5"] <= 100
    steps = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    assert steps[-1]["step"] == results["step"]
    assert (run / "report" / "index.html").exists()
    assert (run / "report" / "ranked.png").exists()
    card = json.loads((run / "export" / "card.json").read_text())
    assert card["scores"] == results and card["config"] == config["config"]
    assert card["training_data"]["images"] == manifest["counts"]["train"]["images"]
    arrays, _ = read_safetensors(run / "export" / "model.safetensors")
    assert "params/net/conv0/kernel" in arrays


def test_a_finished_run_is_only_evaluated_from_its_workdir_alone(
    finished, launch, folder
):
    before = (folder / "finished" / "results.json").read_bytes()
    metrics = (folder / "finished" / "metrics.jsonl").read_bytes()
    again = launch("--workdir=finished")
    assert again.returncode == 0, again.stderr
    assert (folder / "finished" / "results.json").read_bytes() == before
    assert (folder / "finished" / "metrics.jsonl").read_bytes() == metrics


def test_a_workdir_of_another_config_is_left_alone(finished, launch, config, folder):
    before = {p: p.read_bytes() for p in (folder / "finished").rglob("*.json*")}
    ended = launch(*config, "--config.method.width=8", "--workdir=finished")
    assert ended.returncode != 0
    assert "config.method.width: the run has 16, now it is 8" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert before == {p: p.read_bytes() for p in (folder / "finished").rglob("*.json*")}


BAD_INPUT = {
    "--config.data.protocol=mlr_nothing": "Unknown protocol 'mlr_nothing'",
    "--config.method.widht=8": "option widht. Did you mean width",
    "config.method.width=8": "unexpected config.method.width=8",
    "--config.method.name=ps_hrnt": "no method named 'ps_hrnt'",
    "--config.data.num_ids=100": "P=100",
    "--config.data.pad=-1": "config.data.pad must be at least 0, found -1",
    "--config=configs/nothing.py": "No such file or directory: 'configs/nothing.py'",
    "--mode=evaluate": "--mode=evaluate needs a finished one",
    "--mode=test": "should be one of <train|evaluate>",
    "--confg=x": "Unknown command line flag 'confg'",
}


@pytest.mark.parametrize(("argument", "message"), BAD_INPUT.items())
def test_bad_input_ends_in_one_message(launch, config, folder, argument, message):
    ended = launch(*config, argument, "--workdir=refused")
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("data.split", -1),
        ("data.flip", 1.5),
        ("data.erase", 50.0),
        ("data.eval_batch_size", 0),
        ("train.checkpoint_every_steps", 0),
        ("data.num_draws", -1),
        ("evaluation.ap", "voc"),
    ],
)
def test_values_that_would_only_mislead_are_refused(path, value):
    config = common.get_config()
    check_values(config)
    config.update_from_flattened_dict({path: value})
    with pytest.raises(
        ValueError, match=rf"config\.{path} .*must be .* found .*{value}"
    ):
        check_values(config)


def test_a_run_of_an_older_version_is_told_so(tmp_path):
    config = common.get_config()
    check_fields(config, tmp_path)
    del config.data["resize"], config["init"]
    message = r"lacks data\.resize, init\.backbone\. .*config\.json names it"
    with pytest.raises(ValueError, match=message):
        check_fields(config, tmp_path)


def test_an_option_that_the_method_does_not_know_is_named(launch, config, folder):
    text = (folder / "pixel_net.py").read_text()
    (folder / "deep_net.py").write_text(text.replace('"width"', '"depth"'))
    flags = (config[0].replace("pixel_net", "deep_net"), *config[1:])
    ended = launch(*flags, "--workdir=deep")
    assert ended.returncode != 0
    assert "config.method does not fit sixth.pixel_net: " in ended.stderr
    assert "unexpected keyword argument 'depth'" in ended.stderr
    assert not (folder / "deep").exists()


def test_what_no_weight_depends_on_may_change(finished, launch, config, folder):
    results = folder / "finished" / "results.json"
    before = json.loads(results.read_text())
    ended = launch(
        *config,
        "--workdir=finished",
        "--mode=evaluate",
        "--config.evaluation.ap=trapezoid",
        "--config.data.eval_batch_size=5",
    )
    assert ended.returncode == 0, ended.stderr
    after = json.loads(results.read_text())
    assert after["rank1"] == before["rank1"]
    assert after["multi_shot"]["mAP"] != before["multi_shot"]["mAP"]


def test_a_finished_run_is_not_scored_under_another_protocol(finished, launch, config):
    ended = launch(
        *config, "--workdir=finished", "--mode=evaluate", "--config.data.num_draws=7"
    )
    assert ended.returncode == 1
    assert "data.num_draws" in ended.stderr


def test_the_protocols_fields_reach_the_scores(launch, config, folder):
    ended = launch(
        *config,
        "--workdir=multi_shot",
        "--config.data.evaluation=multi_shot",
        "--config.data.scales=(5,)",
        "--config.data.blur=0.5",
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Rank-1 [\d.]+  Rank-5 .*\(%, whole gallery\)", ended.stdout)
    results = json.loads((folder / "multi_shot" / "results.json").read_text())
    assert results["evaluation"] == "multi_shot" and "trials" not in results
    assert results["by_scale"].keys() == {"5"} and "rank1" in results["single_shot"]
    manifest = json.loads((folder / "multi_shot" / "manifest.json").read_text())
    assert manifest["protocol"]["scales"] == [5]
    assert manifest["protocol"]["blur"] == 0.5


def test_a_method_gets_the_tuples_that_it_learns_from(launch, config, folder):
    ended = launch(*config, "--workdir=cross", "--config.data.tuples=cross")
    assert ended.returncode == 1
    assert "learns from image tuples, found config.data.tuples=cross" in ended.stderr
    assert not (folder / "cross").exists()


def test_a_run_that_blows_up_goes_back_and_then_ends_with_names(process, config):
    ended = process(
        *config,
        "--workdir=blown_up",
        "--config.method.learning_rate=1e30",
        "--config.train.max_skipped_in_a_row=0",
        "--config.train.max_rollbacks=1",
    )
    assert ended.returncode == 1
    assert "Going back to step 0, and on with other batches" in ended.stderr
    assert "Traceback" not in ended.stderr
    names = r"1 steps in a row .* not finite.* of this batch: (.*?\.png)\."
    first, last = re.findall(names, ended.stderr)
    assert len(first.split(", ")) == len(last.split(", ")) == 8
    assert first != last


def test_splits_run_in_their_own_folders_and_end_in_means(launch, config, folder):
    flags = (*config, "--config.data.val_ids=3", "--config.method.epochs=6")
    flags += ("--config.train.checkpoint_every_steps=5",)
    ended = launch(*flags, "--num_splits=2", "--workdir=splits")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Rank-1 .* ± .* mAP .* ± .*\(%, 2 splits\)", ended.stdout)
    results = json.loads((folder / "splits" / "results.json").read_text())
    assert results["runs"] == ["split-0", "split-1"]
    runs, manifests = [], []
    for split, name in enumerate(results["runs"]):
        run = folder / "splits" / name
        runs.append(json.loads((run / "results.json").read_text()))
        manifests.append(json.loads((run / "manifest.json").read_text()))
        assert manifests[-1]["protocol"]["split"] == split
        assert manifests[-1]["counts"]["val_query"]["identities"] == 3
        # The best checkpoint on the held-out identities is the one that counts.
        steps = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
        scored = [step for step in steps if "validation" in step]
        assert len(scored) == 4  # of 18 steps
        best = max(scored, key=lambda step: step["validation"]["mAP"])
        assert runs[-1]["step"] == best["step"]
    hashes = [manifest["sha256"] for manifest in manifests]
    assert hashes == results["manifests_sha256"] and hashes[0] != hashes[1]
    for key in ("rank1", "mAP"):
        values = [run[key] for run in runs]
        assert results["mean"][key] == pytest.approx(sum(values) / 2, abs=1e-3)
        spread = abs(values[0] - values[1]) / 2**0.5  # of a sample of two
        assert results["std"][key] == pytest.approx(spread, abs=1e-3)


def test_splits_do_not_overwrite_a_single_run(finished, launch, config, folder):
    before = (folder / "finished" / "results.json").read_bytes()
    ended = launch(*config, "--num_splits=2", "--workdir=finished")
    assert ended.returncode != 0
    assert "nothing but the folders of splits, found checkpoints, " in ended.stderr
    assert (folder / "finished" / "results.json").read_bytes() == before


def test_an_ensemble_trains_its_members_and_compares_them_together(launch, folder):
    flags = [f"--config={ROOT / 'configs' / 'jbim.py'}:mlr_pedestrians_tiny,narrow,lim"]
    flags += [f"--config.data.cache_dir={folder / 'cache'}", "--config.data.num_ids=4"]
    flags += ["--config.data.num_instances=2"]
    flags += ["--config.data.image_size=(32, 16)", "--config.method.epochs=1"]
    flags += ["--config.method.width=4.0", "--config.method.rates=(2, 3)"]
    ended = launch(*flags, "--workdir=ensemble")
    assert ended.returncode == 0, ended.stderr

    top = folder / "ensemble"
    results = json.loads((top / "results.json").read_text())
    assert results["members"].keys() == {"x2", "x3"}
    digests = set()
    for name, scores in results["members"].items():
        of_member = json.loads((top / name / "results.json").read_text())
        assert scores == {key: of_member[key] for key in ("step", "rank1", "mAP")}
        assert of_member["manifest_sha256"] == results["manifest_sha256"]
        config = json.loads((top / name / "config.json").read_text())["config"]
        assert config["method"]["rates"] == [int(name[1])]
        model = (top / name / "export" / "model.safetensors").read_bytes()
        digests.add(hashlib.sha256(model).digest())
    assert len(digests) == 2
    assert {"rank1", "mAP", "by_scale", "trials"} <= results.keys()
    assert (top / "report" / "index.html").exists()

    again = launch("--workdir=ensemble", "--mode=evaluate")
    assert again.returncode == 0, again.stderr
    assert json.loads((top / "results.json").read_text()) == results

    # Nothing is kept of what does not fit.
    ended = launch(*flags, "--config.method.algorithm=adamw", "--workdir=wrong")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert not (folder / "wrong").exists()

    stored = top / "x3" / "config.json"
    text = stored.read_text()
    stored.write_text(text.replace('"split": 0', '"split": 1'))
    ended = launch("--workdir=ensemble")
    assert ended.returncode == 1
    assert "x3 holds a run of another config" in ended.stderr
    assert "config.data.split: the run has 1, now it is 0" in ended.stderr
    stored.write_text(text)

    (top / "x3").rename(folder / "elsewhere")
    ended = launch("--workdir=ensemble", "--mode=evaluate")
    assert ended.returncode == 1
    assert "x3 holds no run (no config.json)" in ended.stderr
    assert not (top / "x3").exists()


RESTORED_NET = """
import pixel_net
from ml_collections import ConfigDict


def get_config(arg=""):
    config = pixel_net.get_config(arg)
    narrow = {"num_groups": 1, "num_blocks": 1, "channels": 4, "squeeze": 1}
    config.restorer = ConfigDict(
        {
            "data": {"tuples": "synthetic"},
            "method": {"name": "rcan", "epochs": 1, **narrow},
        }
    )
    return config
"""


def test_a_data_set_is_restored_once_and_then_is_one_of_its_own(launch, config, folder):
    (folder / "restored_net.py").write_text(RESTORED_NET)
    flags = [x.replace("pixel_net.py", "restored_net.py") for x in config]
    ended = launch(*flags, "--config.data.val_ids=2", "--workdir=wrong")
    assert ended.returncode == 1 and "no held-out identities, found 2" in ended.stderr
    assert not (folder / "wrong").exists()

    for flag, message in (
        ("--config.init.backbone=nowhere.pth", "No such file"),
        ("--config.data.tuples=synthetic", "a restorer learns from synthetic tuples"),
    ):
        ended = launch(*flags, flag, "--workdir=wrong")
        assert ended.returncode == 1 and message in ended.stderr
        assert not (folder / "wrong").exists()  # before anything is trained

    ended = launch(*flags, "--workdir=restored_run")
    assert ended.returncode == 0, ended.stderr
    top = folder / "restored_run"
    results = json.loads((top / "results.json").read_text())
    manifest = json.loads((top / "manifest.json").read_text())
    assert results["protocol"] == "mlr_pedestrians_tiny"
    assert results["manifest_sha256"] == manifest["sha256"]
    restored = json.loads((top / "restored" / "manifest.json").read_text())
    assert results["restored_sha256"] == restored["sha256"]
    assert restored["source"] == manifest
    of_method = json.loads((top / "sixth.pixel_net" / "results.json").read_text())
    assert of_method["protocol"] == "paired_folder"
    restorer = json.loads((top / "restorer" / "results.json").read_text())
    assert {"psnr", "psnr_bicubic"} <= restorer["sr"].keys()

    # Again: nothing is trained or restored anew.
    before = {path: path.stat().st_mtime_ns for path in (top / "restored").rglob("*")}
    shutil.rmtree(top / "restorer")
    again = launch("--workdir=restored_run")
    assert again.returncode == 0, again.stderr
    assert json.loads((top / "results.json").read_text()) == results
    assert before == {p: p.stat().st_mtime_ns for p in (top / "restored").rglob("*")}

    # The pictures serve any other run.
    flags = [x.replace("mlr_pedestrians_tiny", "paired_folder") for x in config]
    flags += [f"--config.data.dir={top / 'restored'}", "--config.method.epochs=1"]
    ended = launch(*flags, "--workdir=on_restored")
    assert ended.returncode == 0, ended.stderr

    (top / "restored").rename(folder / "moved")
    ended = launch("--workdir=restored_run", "--mode=evaluate")
    assert ended.returncode == 1 and "found no restored images" in ended.stderr


def test_no_split_begins_where_a_later_one_cannot(launch, config, folder):
    (folder / "half" / "split-1").mkdir(parents=True)
    (folder / "half" / "split-1" / "chapter1.tex").write_text("Introduction")
    ended = launch(*config, "--num_splits=2", "--workdir=half")
    assert ended.returncode != 0
    assert "split-1 is not empty and holds no run" in ended.stderr
    assert not (folder / "half" / "split-0").exists()


def test_a_run_of_another_protocol_is_left_alone(finished, launch, config, folder):
    manifest = folder / "finished" / "manifest.json"
    text = manifest.read_text()
    changed = json.loads(text)
    changed["counts"]["query"]["images"] = 99
    manifest.write_text(json.dumps(changed))
    ended = launch(*config, "--workdir=finished")
    assert ended.returncode != 0
    assert "was begun under another protocol" in ended.stderr
    assert "manifest.counts.query.images: the run has 99, now it is 8" in ended.stderr
    assert json.loads(manifest.read_text()) == changed
    manifest.write_text(text)


def test_an_unknown_option_of_a_config_is_named(launch):
    ended = launch(f"--config={ROOT / 'configs' / 'ps_hrnet.py'}:mlr_viper,id_st")
    assert ended.returncode != 0
    assert "unknown config option id_st; expected" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_workdir_that_holds_something_else_is_refused(launch, config, folder):
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_text("Introduction")
    ended = launch(*config, "--workdir=thesis")
    assert ended.returncode != 0
    assert "is not empty and holds no run" in ended.stderr
    assert [p.name for p in (folder / "thesis").iterdir()] == ["chapter1.tex"]


@pytest.fixture(scope="module")
def baseline(folder, narrow_resnet):
    """The flags of a baseline whose backbone is read from a file."""
    weights = folder / "resnet.pth"
    weights.write_bytes(narrow_resnet.read_bytes())
    return (
        f"--config={ROOT / 'configs' / 'baseline.py'}:mlr_pedestrians_tiny,narrow",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.data.image_size=(32, 16)",
        "--config.data.num_ids=4",
        "--config.data.num_instances=2",
        "--config.data.eval_batch_size=8",
        "--config.method.width=4.0",
        "--config.method.epochs=1",
        f"--config.init.backbone={weights}",
    )


def test_weights_of_a_file_are_evaluated_without_a_run(launch, baseline, folder):
    weights, workdir = folder / "resnet.pth", folder / "imported"
    ended = launch(*baseline, "--workdir=imported", "--mode=evaluate")
    assert ended.returncode == 0, ended.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert (results["phase"], results["step"]) == ("start", 0)
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert json.loads((workdir / "config.json").read_text())["weights"] == digest
    card = read_export(workdir / "export").card
    assert card["started_from_sha256"] == digest and card["training_data"] is None

    # It can be trained from the file, which is not needed any more then.
    ended = launch(*baseline, "--workdir=imported")
    assert ended.returncode == 0, ended.stderr
    trained = json.loads((workdir / "results.json").read_text())
    assert trained["phase"] == "identity" and trained["step"] > 0
    weights.unlink()
    ended = launch("--workdir=imported", "--mode=evaluate")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((workdir / "results.json").read_text()) == trained
    weights.write_bytes(content)


def test_a_run_that_has_trained_is_not_mistaken_for_its_start(tmp_path):
    assert not has_trained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not has_trained(tmp_path)
    (tmp_path / "checkpoints" / "6.damaged").mkdir()
    assert has_trained(tmp_path)
    (tmp_path / "checkpoints" / "6.damaged").rmdir()
    (tmp_path / "metrics.jsonl").touch()  # killed before its first checkpoint
    assert has_trained(tmp_path)


def test_a_run_needs_its_weights_only_until_its_first_checkpoint(tmp_path):
    start, digest = read_start(str(tmp_path / "gone.pth"), None, None, begun=True)
    assert digest is None
    with pytest.raises(ValueError, match=r"gone.pth: no such file, and no checkpoint"):
        start({})
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        read_start(str(tmp_path / "gone.pth"), None, None, begun=False)
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"cut\.pth: .* a zip archive that is cut off"):
        read_start(str(tmp_path / "cut.pth"), None, None, begun=False)


def test_weights_of_another_network_are_refused_by_name(narrow_resnet):
    method = methods.load("baseline")(3, width=8, num_blocks=(1, 1, 1, 1))
    image = jax.ShapeDtypeStruct((1, 32, 16, 3), np.float32)
    shapes = jax.eval_shape(method.init, jax.random.key(0), {"lr": image})
    with pytest.raises(ValueError) as error:
        read_start(str(narrow_resnet), method, shapes, begun=False)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"config.init.backbone={narrow_resnet}: the weights do not")
    assert "has shape (7, 7, 3, 8), found (7, 7, 3, 4)" in "".join(lines)
