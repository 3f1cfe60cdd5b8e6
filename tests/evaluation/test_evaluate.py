import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from pipeline.common.errors import DataError
from pipeline.data import prepare
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import evaluation_lock
from pipeline.evaluation.evaluate import Evaluator
from pipeline.inference import predict
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to evaluate and write into."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/tiny/eval", ignore_errors=True)
    return tmp_path


def test_every_test_image_is_predicted_once_and_the_numbers_follow_from_the_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("eval", run) == 0
    said = capsys.readouterr()
    folder = run / "runs/tiny/eval/test"
    numbers = json.loads((folder / "metrics.json").read_text())
    assert json.loads(said.out.splitlines()[-1]) == numbers
    predicted = pd.read_csv(folder / "predictions.csv")
    assert predicted["id"].is_unique
    assert numbers["n"] == len(predicted) == 18
    assert numbers["split"] == "test"
    assert numbers["top1"] == pytest.approx((predicted["label"] == predicted["predicted"]).mean())
    assert numbers["top5"] == pytest.approx((predicted["rank"] <= 5).mean())
    per_class = pd.read_csv(folder / "per_class.csv")
    assert per_class["n"].tolist() == [3] * 6
    assert numbers["per_class_mean"] == pytest.approx(per_class["accuracy"].mean())
    confusion = pd.read_csv(folder / "confusion.csv", index_col="class_name")
    assert confusion.to_numpy().sum() == 18
    assert np.diag(confusion.to_numpy()).tolist() == per_class["correct"].tolist()
    assert list(confusion.columns) == per_class["class_name"].tolist()
    assert "worst classes" in said.err
    assert "95 % interval" in said.err


def test_no_result_depends_on_the_batch_size(run: Path) -> None:
    results = []
    for size in (1, 7, 64):
        assert tiny.do("eval", run, f"eval.batch_size={size}") == 0
        results.append(pd.read_csv(run / "runs/tiny/eval/test/predictions.csv"))
    for other in results[1:]:
        pd.testing.assert_frame_equal(results[0], other, rtol=1e-4)


def test_each_reading_of_test_is_counted_and_none_of_val(run: Path) -> None:
    for count in (1, 2, 3):
        assert tiny.do("eval", run) == 0
        assert json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())["test_reads"] == count
    assert tiny.do("eval", run, "eval.split=val") == 0
    numbers = json.loads((run / "runs/tiny/eval/val/metrics.json").read_text())
    assert numbers["n"] == 6
    assert "test_reads" not in numbers
    assert len((run / "runs/tiny/test_reads.jsonl").read_text().splitlines()) == 3


def test_a_reading_is_counted_before_the_split_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_rows", killed)
    assert tiny.do("eval", run) == 75
    (line,) = (run / "runs/tiny/test_reads.jsonl").read_text().splitlines()
    assert (json.loads(line)["purpose"], json.loads(line)["top1"]) == ("eval", None)
    monkeypatch.undo()
    assert tiny.do("eval", run) == 0
    numbers = json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())
    lines = (run / "runs/tiny/test_reads.jsonl").read_text().splitlines()
    assert numbers["test_reads"] == len(lines) == 2
    assert json.loads(lines[1])["top1"] == pytest.approx(numbers["top1"])


def test_readings_are_counted_on_behind_a_damaged_line(run: Path) -> None:
    path = run / "runs/tiny/test_reads.jsonl"
    path.write_bytes(b'{"time": "2026-01-01"}\n{"ti\xff')
    assert tiny.do("eval", run) == 0
    lines = path.read_bytes().splitlines()
    assert lines[:2] == [b'{"time": "2026-01-01"}', b'{"ti\xff']
    assert json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())["test_reads"] == len(lines) == 3


@pytest.mark.parametrize("small_disk", ["16m"], indirect=True)
def test_a_run_folder_that_cannot_be_written_is_said_before_the_test_split_is_read(
    trained: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", small_disk / "runs", ignore=shutil.ignore_patterns("eval"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    served: list[int] = []
    monkeypatch.setattr(predict, "predict_rows", lambda *_arguments, **_options: served.append(1))
    assert tiny.do("eval", small_disk) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written (Read-only file system)" in said
    assert "copy the run to a folder of your own" in said
    assert not served


def test_two_evaluations_of_one_split_do_not_mix(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunDirectory(run / "runs/tiny").evaluation("test")
    with evaluation_lock.held(folder):
        assert tiny.do("eval", run) == 2
    assert "another process evaluates this split" in capsys.readouterr().err.splitlines()[-1]
    assert not (run / "runs/tiny/test_reads.jsonl").exists()


def test_a_split_without_images_is_refused_with_what_to_do(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare.load(tiny.config(run))
    without = replace(data, samples=data.samples.assign(split="train"))
    evaluator = Evaluator(tiny.config(run), without, Ranks.single(torch.device("cpu")))
    for split, what_next in (("test", "take eval.split=val"), ("val", "train anew")):
        with pytest.raises(DataError, match=f"{split} has no image; .*{what_next}"):
            evaluator.predict_split(split, None)  # type: ignore[arg-type]


def test_validation_chose_the_number_that_evaluation_of_val_gives(run: Path) -> None:
    assert tiny.do("eval", run, "eval.split=val") == 0
    best = torch.load(run / "runs/tiny/checkpoints/best.pt", weights_only=True)["best"]
    assert json.loads((run / "runs/tiny/eval/val/metrics.json").read_text())["top1"] == best["top1"]


def test_training_never_reads_the_test_split(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: set[int] = set()
    original = Batch.to

    def noted(batch: Batch, device: torch.device) -> Batch:
        served.update(batch.row.tolist())
        return original(batch, device)

    monkeypatch.setattr(Batch, "to", noted)
    assert tiny.do("train", tmp_path) == 0
    samples = pd.read_csv(tiny.samples_file())
    assert set(samples["split"].iloc[sorted(served)]) == {"train", "val"}
    assert len(served) == (samples["split"] != "test").sum()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["run.name=other"],
            "best.pt: no such checkpoint; run `plumage train` with the same --config and keys",
        ),
        (["model.mean=[0.1,0.1,0.1]"], "was trained with another model (model.mean None -> [0.1, 0.1, 0.1])"),
        (["model.name=resnet18"], "was trained with another model (model.name test_resnet -> resnet18)"),
        (["seed=1"], "was trained on another sample table"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    more = [*more, tiny.own_data(run)]
    assert tiny.do("data", run, *more) == 0
    assert tiny.do("eval", run, *more) == 2
    assert sentence in capsys.readouterr().err
    assert not (run / "runs/tiny/eval").exists()


def test_a_row_predicted_twice_or_not_at_all_is_an_error() -> None:
    ranks = Ranks.single(torch.device("cpu"))

    def batch(*rows: int) -> Batch:
        row = torch.tensor(rows)
        return Batch(torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8), row, row)

    class Constant(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 4)

    wanted = np.arange(4)
    looked = predict.predict_batches(Constant(), [batch(3, 1), batch(0, 2)], wanted, "fp32", ranks)
    assert looked.rows.tolist() == [0, 1, 2, 3]
    for batches in ([batch(0, 1, 2)], [batch(0, 1, 2, 3), batch(3)], [batch(0, 1, 2, 2)]):
        with pytest.raises(DataError, match="4 images were to be predicted"):
            predict.predict_batches(Constant(), batches, wanted, "fp32", ranks)


def test_outputs_are_kept_in_the_order_of_the_predictions(run: Path) -> None:
    assert tiny.do("eval", run) == 0
    folder = run / "runs/tiny/eval/test"
    predicted = pd.read_csv(folder / "predictions.csv")
    with np.load(folder / "outputs.npz") as outputs, np.load(folder / "validation.npz") as validation:
        assert outputs["id"].tolist() == predicted["id"].tolist()
        assert outputs["logits"].dtype == outputs["features"].dtype == np.float32
        probability = softmax(outputs["logits"].astype(np.float64), axis=1)
        assert probability.max(axis=1) == pytest.approx(predicted["confidence"].to_numpy())
        weights = tiny.weights(run / "runs/tiny/checkpoints/best.pt")
        head = outputs["features"] @ weights["backbone.fc.weight"].numpy().T
        assert head + weights["backbone.fc.bias"].numpy() == pytest.approx(outputs["logits"], abs=1e-4)
        assert validation["logits"].shape == (6, 6)
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["temperature_images"] == 6
    reliability = pd.read_csv(folder / "reliability.csv")
    assert reliability["n"].sum() == reliability["n_scaled"].sum() == 18
    assert pd.read_csv(folder / "coverage.csv")["accuracy"].iloc[-1] == pytest.approx(numbers["top1"])
    assert pd.read_csv(folder / "per_class.csv")["train_images"].tolist() == [6] * 6


def test_without_validation_no_temperature_is_fitted_and_that_is_said(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["data.val_fraction=0", "train.epochs=1", "train.max_steps=1", tiny.own_data(tmp_path)]
    assert all(tiny.do(verb, tmp_path, *more) == 0 for verb in ("data", "train", "eval"))
    numbers = json.loads((tmp_path / "runs/tiny/eval/test/metrics.json").read_text())
    assert numbers["temperature"] is None
    assert "ece" in numbers and "ece_scaled" not in numbers
    assert "no temperature was fitted" in capsys.readouterr().err


def test_views_are_averaged_as_probabilities(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, served = {}, []
    original = predict.predict_rows

    def noted(*arguments: Any, **options: Any) -> predict.Predictions:
        served.append(original(*arguments, **options))
        return served[-1]

    monkeypatch.setattr(predict, "predict_rows", noted)
    for tta, views in (("none", 1), ("flip", 2), ("ten_crop", 10)):
        served.clear()
        assert tiny.do("eval", run, f"eval.tta={tta}", "eval.split=val") == 0
        tables[tta] = pd.read_csv(run / "runs/tiny/eval/val/predictions.csv")
        assert len(served) == views
        mean = np.mean([softmax(look.logits.astype(np.float64), axis=1) for look in served], axis=0)
        assert tables[tta]["confidence"].to_numpy() == pytest.approx(mean.max(axis=1), abs=1e-6)
        with np.load(run / "runs/tiny/eval/val/outputs.npz") as outputs:
            features = np.mean([look.features for look in served], axis=0)
            assert outputs["features"] == pytest.approx(features, abs=1e-6)
            if views > 1:
                assert np.exp(outputs["logits"]).sum(axis=1) == pytest.approx(np.ones(6), abs=1e-5)
        assert json.loads((run / "runs/tiny/eval/val/metrics.json").read_text())["tta"] == tta
    assert not np.allclose(tables["none"]["confidence"], tables["flip"]["confidence"], atol=1e-4)
    assert not np.allclose(tables["ten_crop"]["confidence"], tables["flip"]["confidence"], atol=1e-4)


def test_the_peek_gap_is_marked_and_each_checkpoint_is_a_reading(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, checkpoints = run / "runs/tiny", run / "runs/tiny/checkpoints"
    torch.save({**torch.load(checkpoints / "best.pt", weights_only=True), "step": 1}, checkpoints / "old.pt")
    expected = {}
    for name in ("best", "last"):
        assert tiny.do("eval", run, f"eval.checkpoint={name}") == 0
        expected[f"{name}.pt"] = json.loads((folder / "eval/test/metrics.json").read_text())["top1"]
    steps = {name: torch.load(checkpoints / name, weights_only=True)["step"] for name in expected}
    assert tiny.do("eval", run, "eval.peek_gap=true") == 0
    numbers = json.loads((folder / "eval/test/metrics.json").read_text())
    gap = numbers["peek_gap"]
    differing = {"best.pt", "old.pt"} | ({"last.pt"} if len(set(steps.values())) == 2 else set())
    assert gap["top1"].keys() == differing
    assert gap["top1"]["old.pt"] == expected["best.pt"]
    assert gap["best_on_test"] == max(gap["top1"].values())
    assert gap["gap"] == gap["best_on_test"] - numbers["top1"]
    assert gap["note"].startswith("not a result")
    assert numbers["top1"] == expected["best.pt"]
    assert numbers["test_reads"] == 2 + len(differing)
    reads = [json.loads(line) for line in (folder / "test_reads.jsonl").read_text().splitlines()]
    assert [line["purpose"] for line in reads] == ["eval"] * 3 + ["peek gap"] * (len(differing) - 1)
    assert "not a result" in capsys.readouterr().err


def test_a_peek_gap_of_another_split_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.do("eval", run, "eval.peek_gap=true", "eval.split=val") == 2
    assert "peek_gap is about the test split" in capsys.readouterr().err


def test_a_model_without_finite_outputs_is_refused_and_its_reading_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "runs/tiny/checkpoints/best.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["backbone.fc.bias"][2] = float("nan")
    torch.save(content, path)
    assert tiny.do("eval", run) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {path}: the model's outputs are not finite for image ids 4, ")
    assert not (run / "runs/tiny/eval/test").exists()
    assert len((run / "runs/tiny/test_reads.jsonl").read_text().splitlines()) == 1
