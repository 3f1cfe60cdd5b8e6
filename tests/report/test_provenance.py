"""The section that says how the numbers were made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.protocol.verify import Effort, verify
from pipeline.report import provenance
from pipeline.runs.directory import RunDirectory
from tests.helpers import own_pictures, tiny


@pytest.fixture
def tmp(confirmed: Path, tmp_path: Path) -> Path:
    shutil.copytree(confirmed / "runs", tmp_path / "runs")
    return tmp_path


def said(config: Config, **changed: Any) -> dict[str, list[str]]:
    folder = RunDirectory(config.run_dir).evaluation("test")
    metrics = {**json.loads(folder.metrics_file.read_text()), **changed}
    return {row.name: row.sentences for row in provenance.rows(config, folder, metrics)}


def best_epoch(tmp: Path) -> int:
    """The epoch of the best validation: processors and versions of torch differ in it."""
    lines = RunDirectory(tmp / "runs/tiny").log_file.read_text().splitlines()
    validations = [record for record in map(json.loads, lines) if record.get("val_top1") is not None]
    best = max(validations, key=lambda record: (record["val_top1"], -record["val_loss"]))
    return int(best["epoch"])


def test_a_confirmatory_number_has_its_registration_its_one_reading_its_epoch_and_its_seed(tmp: Path) -> None:
    found = said(tiny.config(tmp))
    assert list(found) == ["Protocol", "Readings of test", "Epoch", "Seed", "Certificate"]
    assert found["Protocol"][0].startswith("Confirmatory: as arm tiny of ")
    assert found["Protocol"][0].endswith("its primary number is top1.")
    one, reading = found["Readings of test"]
    assert one == "1, each listed in test_reads.jsonl before it began:"
    assert reading.endswith(", eval, confirmatory, best.pt")
    assert found["Epoch"] == [
        f"{best_epoch(tmp)} of 3: the highest top-1 on the validation images, drawn from train; of equals, the "
        "lowest loss."
    ]
    assert found["Seed"] == ["0, of the registered 0."]
    assert found["Certificate"][0].startswith("None: `plumage verify`")


def test_reasons_interruptions_and_the_way_of_choosing_are_said(tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    run.test_readings_file.write_text(
        json.dumps({"time": "T", "purpose": "eval", "checkpoint": "a/last.pt", "top1": None}) + "\nbroken\n"
    )
    exploratory = {"status": "exploratory", "reasons": ["its seed 7 is not registered", "another"]}
    found = said(tiny.config(tmp), protocol=exploratory)
    assert found["Protocol"] == ["Exploratory: its seed 7 is not registered; another."]
    assert found["Readings of test"][1:] == ["T, eval, last.pt, interrupted", "one whose line is damaged"]
    assert found["Seed"][0].startswith("0; one run does not tell")
    (epoch,) = said(tiny.config(tmp), checkpoint="x/last.pt")["Epoch"]
    assert epoch.startswith(f"{best_epoch(tmp)} of 3: last.pt, which")


def test_the_choice_of_the_epoch_is_told_as_the_log_has_it(tmp: Path) -> None:
    log = RunDirectory(tmp / "runs/tiny").log_file
    best = best_epoch(tmp)
    chosen = f"{best} of 3: the highest top-1 on the validation images, drawn from train; of equals, the lowest loss."
    assert said(tiny.config(tmp, "data.val_fraction=0"))["Epoch"] == [chosen]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    unvalidated = [
        {**record, "val_top1": None, "val_loss": None} for record in records if "val_top1" in record
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in (records[0], *unvalidated)))
    assert said(tiny.config(tmp))["Epoch"] == [f"{best} of 3: the last one, as nothing validates."]
    log.rename(log.with_suffix(".gone"))
    assert said(tiny.config(tmp))["Epoch"] == [
        f"{best} of 3: best.pt; the log that tells how it was chosen, log.jsonl, is gone."
    ]


@pytest.mark.parametrize(("own", "fraction"), [(True, 0.0), (True, 0.1), (False, 0.25)])
def test_validation_that_the_data_set_brings_is_no_part_of_train(
    tmp_path: Path, own: bool, fraction: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val", "test") if own else ("train", "test"):
        own_pictures.class_folders(tmp_path / "birds" / split, ["crow", "gull"], count=4)
    keys = [f"data.val_fraction={fraction}", "train.early_stop_epochs=3"]
    for verb in ("data", "train", "eval"):
        assert own_pictures.do(verb, tmp_path, "folder", tmp_path / "birds", *keys) == 0
    assert "early_stop" not in capsys.readouterr().err
    whose = "validation images that the data set has" if own else "validation images, drawn from train"
    page = " ".join((tmp_path / "runs/own/eval/test/report.html").read_text().split())
    sentence = f"1 of 1: the highest top-1 on the {whose}; of equals, the lowest loss."
    assert page.count(sentence) == 2 and f"Epoch {sentence}" in page
    assert "no validation" not in page


def test_early_stopping_without_validation_is_refused_once_the_data_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        own_pictures.class_folders(tmp_path / "birds" / split, ["crow", "gull"], count=4)
    keys = ["data.val_fraction=0", "train.early_stop_epochs=3"]
    assert own_pictures.do("data", tmp_path, "folder", tmp_path / "birds", *keys) == 0
    assert own_pictures.do("train", tmp_path, "folder", tmp_path / "birds", *keys) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "train.early_stop_epochs needs validation, and no image of the data set validates; hold" in said
    assert not (tmp_path / "runs/own/checkpoints").exists()


def test_a_certificate_is_told_with_its_faults_and_whether_it_is_of_these_numbers(tmp: Path) -> None:
    config = tiny.config(tmp)
    run = RunDirectory(config.run_dir)
    verify(config, Effort(images=0, steps=0))
    (verdict,) = said(config)["Certificate"]
    assert "every claim that was checked holds (8 hold, 1 could not be checked)" in verdict
    table = run.evaluation("test").table("coverage")
    table.write_text(table.read_text() + "1,2,3\n")
    verify(config, Effort(images=0, steps=0))
    verdict, *faults = said(config)["Certificate"]
    assert "1 of its claims fails" in verdict
    assert faults == ["numbers of test: coverage.csv: the table has 19 rows instead of 18"]
    metrics = run.evaluation("test").metrics_file
    files.write_json(metrics, {**json.loads(metrics.read_text()), "top1": 0.5})
    assert (
        said(config)["Certificate"][1] == "It is about other numbers than these: run `plumage verify` again."
    )
    run.certificate_file.write_text("{}")
    with pytest.raises(DataError, match=r"certificate\.json: damaged .*; run `verify` again"):
        said(config)


def test_seed_and_epochs_are_those_of_the_run_and_not_of_the_evaluation(tmp: Path) -> None:
    other, exploratory = (
        tiny.config(tmp, "seed=7", "train.epochs=57"),
        {"status": "exploratory", "reasons": ["x"]},
    )
    found = said(other, protocol=exploratory)
    assert found["Epoch"][0].startswith(f"{best_epoch(tmp)} of 3: ")
    assert found["Seed"][0].startswith("0; one run does not tell")
    RunDirectory(other.run_dir).config_file.unlink()
    found = said(other, protocol=exploratory)
    assert found["Epoch"][0].startswith(f"{best_epoch(tmp)} of 57: ") and found["Seed"][0].startswith("7; ")
