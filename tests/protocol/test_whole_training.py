"""A reading is confirmatory only where every process that trained the run had the registered code and configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli.main import run as run_verb
from pipeline.common import files
from pipeline.config.load import dump_departures, load_config
from pipeline.data import prepare
from pipeline.evaluation import confirmatory
from pipeline.protocol.preregister import preregister
from pipeline.protocol.verify import Effort, verify
from pipeline.runs import checkpoints, environment, history
from pipeline.runs.directory import RunDirectory
from pipeline.training.trainer import train
from tests.helpers import tiny
from tests.helpers.soup_runs import write_run

OTHER_CODE = "0" * 64


def register(tmp: Path, *more: str) -> None:
    (tmp / "tiny.yaml").write_text(dump_departures(tiny.config(tmp, *more)))
    preregister([tmp / "tiny.yaml"], [0], [], [], "top1", None, [])


def judged(tmp: Path) -> dict[str, Any]:
    config = tiny.config(tmp)
    return confirmatory.judge(config, prepare.load(config), {}).protocol


def claims(tmp: Path) -> dict[str, dict[str, Any]]:
    verify(tiny.config(tmp), Effort(images=0, steps=0))
    content = json.loads((tmp / "runs/tiny/certificate.json").read_text())
    return {claim["about"]: claim for claim in content["claims"]}


def rewrite_histories(run: RunDirectory, starts: list[dict[str, Any]]) -> None:
    """As one would who makes up all of them together."""
    files.write_json(run.history_file, starts)
    for path in (run.checkpoint("best"), run.checkpoint("last")):
        checkpoints.save(path, checkpoints.read(path) | {"history": starts})


@pytest.fixture
def tmp(trained: Path, tmp_path: Path) -> Path:
    """A registered run, which has not read test."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    register(tmp_path)
    return tmp_path


def test_a_run_that_was_trained_partly_by_other_code_and_at_another_rate_is_exploratory(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(environment, "code_sha256", lambda: OTHER_CODE)
        assert tiny.do("train", tmp_path, "optim.lr=0.5", "train.epochs=1") == 0
    assert tiny.do("train", tmp_path, "train.resume_force=true", "train.max_steps=8") == 0
    assert tiny.do("train", tmp_path) == 0
    first, second, third = history.read(RunDirectory(tmp_path / "runs/tiny"))
    assert [start.step for start in (first, second, third)] == [0, 5, 8]
    assert (first.code_sha256, third.code_sha256) == (OTHER_CODE, environment.code_sha256())
    assert (first.forced, second.forced, third.forced) == ([], ["optim.lr", "train.epochs"], [])
    reasons = judged(tmp_path)["reasons"]
    assert [reason.partition(" than ")[0] for reason in reasons] == [
        "from step 0 on its configuration is not that of arm tiny: optim.lr 0.5 instead of 0.02, train.epochs 1 instead "
        "of 3 (2 in all)",
        "from step 0 on it is trained by other code",
        "from step 5 on its configuration is not that of arm tiny: train.max_steps 8 instead of None, "
        "train.resume_force True instead of False (2 in all)",
    ]
    found = claims(tmp_path)
    assert found["history"]["found"] == [
        "history.json is that in the checkpoints: trained from step 0, 5, 8 on"
    ]


def test_verify_looks_at_every_process_too(confirmed: Path, tmp_path: Path) -> None:
    shutil.copytree(confirmed / "runs", tmp_path / "runs")
    run = RunDirectory(tmp_path / "runs/tiny")
    (start,) = history.plain(history.read(run))
    other = start | {"code_sha256": OTHER_CODE}
    other["configuration"] = start["configuration"] | {"optim": start["configuration"]["optim"] | {"lr": 0.5}}
    rewrite_histories(run, [other, start | {"step": 5, "resumed_from": "last.pt"}])
    found = claims(tmp_path)
    assert found["history"]["result"] == "holds"
    rate, code = found["registration"]["found"]
    assert rate.startswith(
        "from step 0 on its configuration is not that of arm tiny: optim.lr 0.5 instead of"
    )
    assert code.startswith("from step 0 on it is trained by other code than was registered (")


def test_a_run_that_was_interrupted_is_confirmatory(birds: Path, tmp_path: Path) -> None:
    register(tmp_path)
    with pytest.raises(tiny.EndOfPower):
        train(tiny.config(tmp_path), tiny.EndOfPower(6))
    assert tiny.do("train", tmp_path) == 0
    assert [start.step for start in history.read(RunDirectory(tmp_path / "runs/tiny"))] == [0, 5]
    assert judged(tmp_path)["status"] == "confirmatory"


def test_a_history_that_is_edited_in_one_place_is_found_out(tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    (start,) = history.plain(history.read(run))
    files.write_json(run.history_file, [start | {"time": "2026-01-01T00:00:00+00:00"}])
    said = [f"history.json: is not the history in {name}.pt" for name in ("best", "last")]
    assert set(judged(tmp)["reasons"]) <= set(said) and judged(tmp)["reasons"]
    assert claims(tmp)["history"]["found"] == said
    run.history_file.unlink()
    assert claims(tmp)["history"]["found"] == [
        f"history.json: missing, and {name}.pt has a history" for name in ("best", "last")
    ]
    for path in (run.checkpoint("best"), run.checkpoint("last")):
        content = checkpoints.read(path)
        del content["history"]
        checkpoints.save(path, content)
    said = ["history.json: missing, and this code, which trained the run, writes one"]
    assert judged(tmp)["reasons"] == claims(tmp)["history"]["found"] == said


def test_a_history_that_does_not_begin_with_new_weights_is_exploratory(tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    (start,) = history.plain(history.read(run))
    rewrite_histories(run, [start | {"step": 5, "resumed_from": "last.pt"}])
    said = ["history.json: begins at step 5, and does not say what trained the steps before"]
    assert judged(tmp)["reasons"] == said
    claim = claims(tmp)["history"]
    assert (claim["result"], claim["found"]) == ("not checked", said)


def test_a_damaged_history_is_a_reason(tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    run.history_file.write_text("[")
    (reason,) = judged(tmp)["reasons"]
    assert reason.startswith(f"{run.history_file}: damaged (")
    assert claims(tmp)["history"]["result"] == "fails"


def test_a_soup_of_a_run_that_was_trained_partly_at_another_rate_is_exploratory(
    trained: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    runs = [write_run(trained, root, seed, apart) for seed, apart in ((0, 1.5), (1, -1.5))]
    config = tiny.config(tmp_path, "data.split_seed=0")
    (tmp_path / "tiny.yaml").write_text(dump_departures(config))
    assert run_verb(["soup", *map(str, runs), "run.name=mean", "train.device=cpu"]) == 0
    preregister([tmp_path / "tiny.yaml"], [0, 1], [], ["tiny"], "top1", None, [])

    def judged_soup() -> dict[str, Any]:
        own = load_config(root / "mean/config.yaml")
        return confirmatory.judge(own, prepare.load(own), {}).protocol

    assert judged_soup()["status"] == "confirmatory"
    part = RunDirectory(runs[1])
    (start,) = history.plain(history.read(part))
    other = start["configuration"] | {"optim": start["configuration"]["optim"] | {"lr": 0.5}}
    rewrite_histories(part, [start | {"configuration": other}])
    (reason,) = judged_soup()["reasons"]
    assert reason.startswith(
        f"{runs[1]}, which it was chosen from: from step 0 on its configuration is not that of arm tiny: optim.lr 0.5"
    )
    shutil.rmtree(runs[1])
    assert judged_soup()["reasons"] == [
        f"{runs[1]}, which it was chosen from, is not here, and its history not known"
    ]


def test_a_process_adds_itself_to_the_history_of_the_weights_that_it_goes_on_from(
    birds: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "runs/tiny")
    assert tiny.do("train", tmp_path, "train.max_steps=5") == 0
    (first,) = history.read(run)
    assert (first.step, first.resumed_from, first.forced) == (0, None, [])
    assert first.configuration == tiny.config(tmp_path, "train.max_steps=5").model_dump(mode="json")
    history.write(run, [first, first])  # of a process that was killed before it saved anything
    assert tiny.do("train", tmp_path, "train.max_steps=10") == 0
    assert tiny.do("train", tmp_path, "train.max_steps=10") == 0  # has nothing to do
    second = history.read(run)[1]
    assert history.read(run) == (first, second)
    assert (second.step, second.resumed_from) == (5, str(run.checkpoint("last")))
    in_checkpoint = torch.load(run.checkpoint("last"), weights_only=True)["history"]
    assert in_checkpoint == history.plain([first, second])
    assert tiny.do("train", tmp_path, "train.max_steps=5", "train.resume=never") == 0
    assert [start.step for start in history.read(run)] == [0]


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_history_that_has_a_gap(
    birds: Path, tmp_path: Path
) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=5") == 0
    run = RunDirectory(tmp_path / "runs/tiny")
    run.history_file.unlink()
    for name in ("best.pt", "last.pt"):
        path = tiny.checkpoints(tmp_path) / name
        content = checkpoints.read(path)
        del content["history"]
        checkpoints.save(path, content)
    assert tiny.do("train", tmp_path) == 0
    (start,) = history.read(run)
    assert start.step == 5
    claim = claims(tmp_path)["history"]
    assert (claim["result"], claim["found"][0][:30]) == ("not checked", "history.json: begins at step 5")
