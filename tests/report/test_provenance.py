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
from tests.helpers import tiny


@pytest.fixture
def tmp(confirmed: Path, tmp_path: Path) -> Path:
    shutil.copytree(confirmed / "runs", tmp_path / "runs")
    return tmp_path


def said(config: Config, **changed: Any) -> dict[str, list[str]]:
    folder = RunDirectory(config.run_dir).evaluation("test")
    metrics = {**json.loads(folder.metrics_file.read_text()), **changed}
    return {row.name: row.sentences for row in provenance.rows(config, folder, metrics)}


def test_a_confirmatory_number_has_its_registration_its_one_reading_its_epoch_and_its_seed(tmp: Path) -> None:
    found = said(tiny.config(tmp))
    assert list(found) == ["Protocol", "Readings of test", "Epoch", "Seed", "Certificate"]
    assert found["Protocol"][0].startswith("Confirmatory: as arm tiny of ")
    assert found["Protocol"][0].endswith("its primary number is top1.")
    one, reading = found["Readings of test"]
    assert one == "1, each listed in test_reads.jsonl before it began:"
    assert reading.endswith(", eval, confirmatory, best.pt")
    assert found["Epoch"] == [
        "3 of 3: the highest top-1 on the validation images, drawn from train; of equals, the lowest loss."
    ]
    assert found["Seed"] == ["0, of the registered 0."]
    assert found["Certificate"][0].startswith("None: `plumage verify`")


def test_reasons_interruptions_and_the_way_of_choosing_are_said(tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    run.test_readings_file.write_text(
        json.dumps({"time": "T", "purpose": "eval", "checkpoint": "a/last.pt", "top1": None}) + "\nbroken\n"
    )
    exploratory = {"status": "exploratory", "reasons": ["its seed 7 is not registered", "another"]}
    found = said(tiny.config(tmp, "data.val_fraction=0"), protocol=exploratory)
    assert found["Protocol"] == ["Exploratory: its seed 7 is not registered; another."]
    assert found["Readings of test"][1:] == ["T, eval, last.pt, interrupted", "one whose line is damaged"]
    assert found["Epoch"] == ["3 of 3: the last one, as nothing validates."]
    assert found["Seed"][0].startswith("0; one run does not tell")
    assert said(tiny.config(tmp), checkpoint="x/last.pt")["Epoch"][0].startswith("3 of 3: last.pt, which")


def test_a_certificate_is_told_with_its_faults_and_whether_it_is_of_these_numbers(tmp: Path) -> None:
    config = tiny.config(tmp)
    run = RunDirectory(config.run_dir)
    verify(config, Effort(images=0, steps=0))
    (verdict,) = said(config)["Certificate"]
    assert "every claim that was checked holds (7 hold, 1 could not be checked)" in verdict
    table = run.evaluation("test").table("coverage")
    table.write_text(table.read_text() + "1,2,3\n")
    verify(config, Effort(images=0, steps=0))
    verdict, *faults = said(config)["Certificate"]
    assert "1 of its claims fails" in verdict
    assert faults == ["numbers of test: coverage.csv: the table has 19 rows instead of 18"]
    metrics = run.evaluation("test").metrics_file
    files.write_json(metrics, {**json.loads(metrics.read_text()), "top1": 0.5})
    assert said(config)["Certificate"][1] == "It is of other numbers than these: run `plumage verify` again."
    run.certificate_file.write_text("{}")
    with pytest.raises(DataError, match=r"certificate\.json: damaged .*; run `verify` again"):
        said(config)
