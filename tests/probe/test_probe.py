import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from pipeline.cli.main import run
from pipeline.common import arrays
from pipeline.data import prepare
from pipeline.inference import features
from pipeline.probe import probe as probe_module
from tests.helpers import own_pictures, ranks, tiny

NAMES = ["linear", "knn", "nearest_mean"]


def probed(tmp: Path, *more: str) -> dict[str, Any]:
    """Probe the backbone of the tiny job; the content of probe.json."""
    assert tiny.do("probe", tmp, *more) == 0
    content: dict[str, Any] = json.loads((tmp / "runs/tiny/probe/probe.json").read_text())
    return content


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that pass the backbone, a pass each, from now on."""
    counted: list[int] = []
    extract = features.extract_features

    def counting(*arguments: Any) -> features.Features:
        counted.append(len(arguments[3]))
        return extract(*arguments)

    monkeypatch.setattr(features, "extract_features", counting)
    return counted


def relabelled(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """Have `probe` read the data with the next class as the label of each image of a split."""
    load = prepare.load

    def changed(config: Any) -> prepare.Prepared:
        data = load(config)
        samples = data.samples.copy()
        of_split = samples["split"] == split
        names = dict(zip(samples["label"], samples["class_name"], strict=True))
        samples.loc[of_split, "label"] = (samples.loc[of_split, "label"] + 1) % len(names)
        samples["class_name"] = samples["label"].map(names)
        return prepare.Prepared(samples, data.store)

    monkeypatch.setattr(probe_module.prepare, "load", changed)


def test_each_classifier_has_its_accuracy_on_test_with_wilsons_interval(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = probed(tmp_path)
    said = capsys.readouterr()
    assert json.loads(said.out) == content
    assert content["images"] == {"train": 36, "val": 6, "test": 18}
    assert content["features"] == 96
    assert [row["name"] for row in content["classifiers"]] == NAMES
    for row in content["classifiers"]:
        folder = tmp_path / "runs/tiny/probe" / row["name"] / "eval/test"
        predicted = pd.read_csv(folder / "predictions.csv")
        right = int((predicted["label"] == predicted["predicted"]).sum())
        assert len(predicted) == 18
        assert row["top1"] == right / 18
        interval = binomtest(right, 18).proportion_ci(method="wilson")
        assert [row["top1_low"], row["top1_high"]] == pytest.approx([interval.low, interval.high])
        assert row["name"] in said.err


def test_compare_takes_two_classifiers_for_runs_and_runs_does_not_list_them(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = probed(tmp_path)
    folders = [str(tmp_path / "runs/tiny/probe" / name) for name in ("linear", "nearest_mean")]
    capsys.readouterr()
    assert run(["compare", *folders]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [group["top1"] for group in compared["groups"]] == [
        [content["classifiers"][0]["top1"]],
        [content["classifiers"][2]["top1"]],
    ]
    assert run(["runs", str(tmp_path / "runs")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_test_chooses_nothing_and_validation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = own_pictures.class_folders(tmp_path / "birds", ["a", "b", "c", "d"], count=15)
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0

    def probed_own() -> tuple[list[dict[str, Any]], list[float]]:
        """What was chosen, and the accuracies on test."""
        assert own_pictures.do("probe", tmp_path, "folder", birds) == 0
        rows = json.loads((tmp_path / "runs/own/probe/probe.json").read_text())["classifiers"]
        chosen = [{key: row[key] for key in row if not key.startswith("top1")} for row in rows]
        return chosen, [row["top1"] for row in rows]

    chosen, top1 = probed_own()
    assert top1 == [1.0] * 3  # the classes are of another brightness each
    with monkeypatch.context() as patch:
        relabelled(patch, "test")
        assert probed_own() == (chosen, [0.0] * 3)
    with monkeypatch.context() as patch:
        relabelled(patch, "val")
        of_other_validation, _ = probed_own()
    for before, after in zip(chosen[:2], of_other_validation[:2], strict=True):
        setting = "weight_decay" if before["name"] == "linear" else "k"
        assert after[setting] != before[setting]


def test_each_probe_is_one_reading_of_test_that_the_run_counts(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/tiny/eval", ignore_errors=True)
    content = probed(tmp_path)
    assert content["test_reads"] == 1
    (line,) = (tmp_path / "runs/tiny/probe/test_reads.jsonl").read_text().splitlines()
    reading = json.loads(line)
    assert reading["purpose"] == "probe"
    assert reading["top1"] == content["classifiers"][0]["top1"]
    assert probed(tmp_path)["test_reads"] == 2
    assert tiny.do("eval", tmp_path) == 0
    assert json.loads((tmp_path / "runs/tiny/eval/test/metrics.json").read_text())["test_reads"] == 3
    assert run(["compare", str(tmp_path / "runs/tiny"), str(tmp_path / "runs/tiny/probe/linear")]) == 0


def test_a_reading_is_counted_before_test_is_predicted(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_: Any) -> Any:
        raise KeyboardInterrupt

    fit_all = probe_module.fit_all
    monkeypatch.setattr(
        probe_module,
        "fit_all",
        lambda *arguments: [probe_module.Fitted(f.name, ended, {}, None) for f in fit_all(*arguments)],
    )
    assert tiny.do("probe", tmp_path) == 75
    (line,) = (tmp_path / "runs/tiny/probe/test_reads.jsonl").read_text().splitlines()
    assert json.loads(line)["top1"] is None


def test_images_pass_the_backbone_once_for_its_weights_and_their_crops(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = passes(monkeypatch)
    first = probed(tmp_path)
    again = probed(tmp_path)
    assert counted == [60]
    assert again["classifiers"] == first["classifiers"]
    probed(tmp_path, f"model.weights={weights_file(tmp_path)}", "model.pretrained=true")
    assert counted == [60] * 2
    probed(tmp_path, "data.image_px=40")
    probed(tmp_path, "data.image_px=40", "model.pool=max")
    assert counted == [60] * 4


def weights_file(tmp: Path) -> Path:
    """Weights of another seed."""
    model, _ = probe_module.build_model(tiny.config(tmp).model, 3)
    path = tmp / "weights.pth"
    torch.save(model.backbone.state_dict(), path)
    return path


def test_the_cache_has_the_features_of_each_image_and_a_damaged_one_is_made_anew(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probed(tmp_path)
    path = tmp_path / "runs/tiny/probe/features.npz"
    ids, stored = arrays.read_npz(path, ["id", "features"])
    samples = pd.read_csv(tiny.samples_file())
    assert ids.tolist() == samples["id"].tolist()
    assert stored.shape == (60, 96)
    assert len(np.unique(stored, axis=0)) > 50
    path.write_bytes(path.read_bytes()[:1000])
    counted = passes(monkeypatch)
    assert probed(tmp_path)["classifiers"] == first["classifiers"]
    assert counted == [60]


def test_without_test_images_one_sentence_says_so_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = own_pictures.class_folders(tmp_path / "birds", ["a", "b"])
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.test_fraction=0") == 0
    capsys.readouterr()
    assert own_pictures.do("probe", tmp_path, "folder", birds, "data.test_fraction=0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: probe: the data set has no test images")
    assert "data.test_fraction" in line
    assert not (tmp_path / "runs").exists()


def test_without_validation_it_is_said_that_nothing_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = own_pictures.class_folders(tmp_path / "birds", ["a", "b", "c"])
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.val_fraction=0") == 0
    assert own_pictures.do("probe", tmp_path, "folder", birds, "data.val_fraction=0") == 0
    said = capsys.readouterr()
    assert "nothing was chosen" in said.err
    content = json.loads(said.out.splitlines()[-1])
    assert [row["val_top1"] for row in content["classifiers"]] == [None] * 3
    assert not (tmp_path / "runs/own/probe/linear/eval/test/validation.npz").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.weights=missing.pth model.pretrained=true", "missing.pth"),
        ("model.name=no_such_network", "model.name"),
        ("data.resize_px=48", "store-squash48-packed"),
    ],
)
def test_what_is_missing_is_named_and_no_reading_is_counted(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, named: str
) -> None:
    assert tiny.do("probe", tmp_path, *override.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error
    assert not (tmp_path / "runs/tiny/probe/test_reads.jsonl").exists()


def test_features_that_are_not_finite_are_an_error_of_the_weights(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "extract_features", lambda *_: np.full((60, 96), np.nan, np.float32))
    assert tiny.do("probe", tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in error
    assert "model.weights" in error
    assert not (tmp_path / "runs/tiny/probe/features.npz").exists()


def test_a_training_begins_in_the_folder_of_a_probe_and_leaves_it(birds: Path, tmp_path: Path) -> None:
    content = probed(tmp_path)
    more = ("train.epochs=1", "train.resume=never")
    assert tiny.do("train", tmp_path, *more) == 0
    assert (tmp_path / "runs/tiny/checkpoints/last.pt").is_file()
    assert json.loads((tmp_path / "runs/tiny/probe/probe.json").read_text()) == content


def test_two_ranks_find_what_one_finds(birds: Path, tmp_path: Path) -> None:
    alone = probed(tmp_path / "1", "eval.batch_size=8")
    ended = ranks.run(ranks.run_verb, 2, "probe", tmp_path / "2", "eval.batch_size=8")
    assert [(end.value, end.code) for end in ended] == [(0, 0)] * 2
    together = json.loads((tmp_path / "2/runs/tiny/probe/probe.json").read_text())
    assert together["classifiers"] == alone["classifiers"]
    assert together["test_reads"] == 1
