"""Every named protocol, opened on small generated files in the official layout."""

import dataclasses

import numpy as np
import pytest

from input_pipeline import protocols
from input_pipeline.pipeline import eval_batches, open_data, train_batches

NAMES = [name for name in protocols.PROTOCOLS if name != "mlr_pedestrians"]  # the demo
FEWER = {  # identities in the generated files
    "caviar": {"num_train": 3, "num_test": 3},
    "mlr_sysu": {"num_train": 4, "num_test": 2, "num_shots": 1},
}


# The first digits of the manifests' hashes on these files: a change makes the results
# of a protocol incomparable. (Own pictures are told by their pixels, which in these
# files are those of some version of Pillow.)
PINNED = {
    "mlr_pedestrians_tiny": "55ed41e540b348dc",
    "mlr_viper": "3e7eda3c2764b972",
    "viper": "5beba2b7fa81a92c",
    "caviar": "d8986ea5c9637392",
    "mlr_cuhk03": "aa2fb7236cae6d5c",
    "mlr_cuhk03_labelled": "b1ed8e6ba5b47dd7",
    "mlr_cuhk03_merged": "ce5ee4966eead391",
    "cuhk03_labelled": "b44bf2afda82f56a",
    "cuhk03_detected": "4cb07b129e29c9a4",
    "mlr_market1501": "d2468aec032eba89",
    "mlr_market1501_half": "799e89ba9c1a03f4",
    "mlr_market1501_per_id": "dd7783c4c906cf68",
    "mlr_market1501_c1": "5722ec21d17622ec",
    "market1501": "236b3057d418a772",
    "vr_market1501": "590b3d005c336f6f",
    "mlr_dukemtmc": "27e5428e82d0eb46",
    "dukemtmc": "75a66a7f4c20e59c",
    "msmt17": "2ca12dffacfe5984",
    "msmt17_v2": "52cbc415c38c97ee",
    "vr_msmt17": "f6fc31710db10181",
}


@pytest.fixture
def open_protocol(
    request, monkeypatch, make_config, tmp_path, write_files, write_cuhk03, write_folder
):
    """A function that opens a protocol on generated files of its data set."""

    def files_of(dataset):
        name, _, version = dataset.partition("/")
        if name == "msmt17":
            return request.getfixturevalue("make_msmt17")(version)
        fixture = {"market1501": "market_files", "dukemtmc": "duke_files"}
        return request.getfixturevalue(fixture.get(name, f"{name}_files"))

    def opened(name, **changes):
        protocol = protocols.PROTOCOLS[name]
        protocol = dataclasses.replace(protocol, **FEWER.get(name, {}))
        monkeypatch.setitem(protocols.PROTOCOLS, name, protocol)
        folder = tmp_path
        if protocol.dataset.startswith("cuhk03"):
            write_cuhk03(folder)
        elif protocol.dataset == "folder":
            pairs = ",scale,original" if name == "paired_folder" else ""
            folder = write_folder(f"pid,camid,path{pairs}")
        elif not protocol.dataset.startswith("pedestrians"):
            write_files("folder", folder, files_of(protocol.dataset))
        options = {"dir": str(folder), "cache_dir": str(tmp_path / "cache")}
        options |= {"num_ids": 2, "num_instances": 2}
        return open_data(make_config(protocol=name, **options | changes))

    return opened


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_trains_and_is_searched_on_files_of_the_official_layout(
    open_protocol, name
):
    data = open_protocol(name)
    protocol, plan = data.plan.protocol, data.plan
    assert data.manifest["protocol"]["name"] == name
    assert data.manifest["protocol"]["dataset"].startswith(
        protocols.PROTOCOLS[name].dataset
    )
    assert data.manifest["sha256"].startswith(PINNED.get(name, ""))
    (batch,) = train_batches(data, seed=0, start_step=0, num_steps=1)
    assert np.isfinite(batch["lr"]).all() and len(set(batch["label"])) == 2
    for side in ("query", "gallery"):
        rows = sum(batch["valid"].sum() for batch in eval_batches(data, side))
        assert rows == len(getattr(plan, side).pid) > 0
    assert set(plan.query.pid) <= set(plan.gallery.pid)
    if protocol.low_resolution in ("camera", "half", "per_identity", "real", "stored"):
        assert not plan.gallery.low.any()
        assert plan.query.low.all() == (protocol.scales != (1,))
    if protocol.low_resolution == "all":
        low = np.concatenate([plan.train.low, plan.query.low, plan.gallery.low])
        assert low.any() and plan.query.width.max() <= 32


@pytest.mark.parametrize(
    ("name", "camids"),
    [("mlr_cuhk03", {0, 2, 4, 6, 8}), ("mlr_viper", {0}), ("mlr_market1501", {3})],
)
def test_the_low_resolution_side_is_the_named_cameras(open_protocol, name, camids):
    plan = open_protocol(name).plan
    assert set(plan.query.camid) <= camids
    assert not camids & set(plan.gallery.camid)
    low = plan.train.low
    assert set(plan.train.camid[low]) <= camids
    assert not camids & set(plan.train.camid[~low])


def test_cuhk03_has_twenty_test_sets(open_protocol):
    tested = []
    for split in (0, 1, 19):
        data = open_protocol("mlr_cuhk03", split=split)
        pids = set(data.plan.query.pid.tolist())
        assert pids == {split % 11, (split + 3) % 11, (split + 7) % 11}
        assert data.plan.num_classes == 11 - 3
        tested.append(data.manifest["sha256"])
    assert len(set(tested)) == 3
    with pytest.raises(ValueError, match=r"20 official split\(s\).*found 20"):
        open_protocol("mlr_cuhk03", split=20)


def test_merged_boxes_are_both_kinds(open_protocol):
    plan = open_protocol("mlr_cuhk03_merged").plan
    for side in (plan.train, plan.query, plan.gallery):
        assert {name.partition("/")[0] for name in side.name} == {
            "labelled",
            "detected",
        }


def test_named_protocols_have_the_papers_numbers():
    sysu, caviar = (protocols.PROTOCOLS[name] for name in ("mlr_sysu", "caviar"))
    assert (sysu.num_train, sysu.num_test, sysu.num_shots) == (251, 251, 3)
    assert (caviar.num_train, caviar.num_test) == (25, 25)


def test_sysu_is_cut_down_to_a_few_shots(open_protocol):
    plan = open_protocol("mlr_sysu").plan
    for side, num_cameras in ((plan.train, 2), (plan.query, 1), (plan.gallery, 1)):
        assert len(side.pid) == num_cameras * len(set(side.pid))
    assert set(plan.query.camid) == {1}


def test_distractors_are_in_the_gallery_where_the_protocol_has_them(open_protocol):
    num_distractors = {
        name: (open_protocol(name).plan.gallery.pid == 0).sum()
        for name in ("market1501", "mlr_market1501", "mlr_market1501_c1")
    }
    assert num_distractors == {
        "market1501": 2,
        "mlr_market1501": 0,
        "mlr_market1501_c1": 2,
    }


def test_a_distractor_of_the_low_resolution_camera_is_no_query(open_protocol):
    plan = open_protocol("mlr_market1501_c1").plan
    distractors = plan.gallery.pid == 0
    assert set(plan.gallery.camid[distractors]) == {1} == set(plan.query.camid)
    assert not plan.gallery.low.any() and 0 not in plan.query.pid
