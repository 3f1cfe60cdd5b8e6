"""A trained run that was exported and is served answers as `plumage predict` does."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from pipeline.cli.main import run
from tests.helpers.serving import Process, picture, sent


@pytest.mark.slow
def test_a_served_run_answers_as_predict_does(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    folder, contents = tmp_path / "runs/tiny", [picture(n, 90, 70) for n in range(12)]
    (tmp_path / "pictures").mkdir()
    for n, content in enumerate(contents):
        (tmp_path / f"pictures/{n:02}.png").write_bytes(content)
    assert run(["export", str(folder)]) == 0
    answers = tmp_path / "answers.json"
    assert run(["predict", str(folder), str(tmp_path / "pictures"), "--json", str(answers)]) == 0
    wanted = [json.loads(line)["classes"] for line in answers.read_text().splitlines()]
    with Process(folder) as server:
        got = httpx.post(f"{server.url}/predict", files=sent(*contents), timeout=60).json()["pictures"]
    assert [[one["class"] for one in each["classes"]] for each in got] == [
        [one["class"] for one in each] for each in wanted
    ]
    for ours, theirs in zip(got, wanted, strict=True):
        assert [one["probability"] for one in ours["classes"]] == pytest.approx(
            [one["probability"] for one in theirs], abs=1e-5
        )
