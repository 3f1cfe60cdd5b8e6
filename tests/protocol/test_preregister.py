"""What is fixed before test is read, and what `eval` says of a run that kept to it, or did not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import run
from pipeline.common.errors import ConfigError, DataError, WeightsError
from pipeline.config.load import dump_departures
from pipeline.data import prepare, sample_table
from pipeline.evaluation import confirmatory, readings, results, screen
from pipeline.models.build import build_model
from pipeline.protocol.preregister import preregister
from pipeline.runs import registration
from pipeline.runs.directory import RunDirectory
from pipeline.runs.registration import DataDigests, Registration
from pipeline.wandb_sync.tracked_run import EvaluationFiles
from tests.helpers import tiny


@pytest.fixture
def tmp(trained: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the finished tiny run, and its configuration as tiny.yaml."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (tmp_path / "tiny.yaml").write_text(dump_departures(tiny.config(tmp_path)))
    return tmp_path


def register(tmp: Path, *, number: str = "top1", out: Path | None = None) -> Path:
    return Path(preregister([tmp / "tiny.yaml"], [0], [], [], number, out, [])["registration"])


def judged(tmp: Path, *more: str, training: dict[str, str] | None = None) -> dict[str, Any]:
    config = tiny.config(tmp, *more)
    return confirmatory.judge(config, prepare.load(config), training or {}).protocol


def rewritten(path: Path, change: Callable[[Registration], Registration]) -> None:
    """Write a registration of something else, as `preregister` would have."""
    changed = change(registration.read(path))
    registration.write(path, replace(changed, digest=changed.computed_digest()))


def test_first_weights_of_a_package_are_registered_and_missing_ones_refused(tmp: Path) -> None:
    named = ["model.name=tf_efficientnet_lite0", "model.pretrained=true", "run.name=lite"]
    words = [*named, "model.weights=package"]
    found = preregister([tmp / "tiny.yaml"], [0], [], [], "top1", None, words)
    (arm,) = registration.read(Path(found["registration"])).arms
    _, origin = build_model(tiny.config(tmp, *words).model, 6)
    assert arm.weights_sha256 == origin["sha256"]
    with pytest.raises(WeightsError, match=r"absent\.pth: no such weights file"):
        preregister(
            [tmp / "tiny.yaml"], [0], [], [], "top1", tmp / "a.json", [*named, "model.weights=absent.pth"]
        )


def test_a_first_reading_as_registered_is_confirmatory_and_a_second_is_not(
    tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = register(tmp)
    assert path == tmp / "runs/protocols/tiny.json"
    found, directory = registration.read(path), RunDirectory(tmp / "runs/tiny")
    assert tiny.do("eval", tmp) == 0
    protocol = json.loads(capsys.readouterr().out.splitlines()[-1])["protocol"]
    assert protocol == {
        "status": "confirmatory",
        "reasons": [],
        "registration": str(path),
        "digest": found.digest,
        "written": found.written,
        "arm": "tiny",
        "number": "top1",
    }
    metrics = json.loads(directory.evaluation("test").metrics_file.read_text())
    assert metrics["protocol"] == protocol
    assert any("confirmatory: as arm tiny of" in line for line in screen.headline(metrics))
    summary = EvaluationFiles(directory.evaluation("test"), metrics).summary()
    assert summary["eval/test/protocol"] == "confirmatory"
    assert registration.read(directory.registration_file) == found
    assert [json.loads(line)["purpose"] for line in directory.test_readings_file.open()] == [
        "eval, confirmatory"
    ]

    data = prepare.load(tiny.config(tmp))
    again, _ = results.compute_metrics(
        directory.evaluation("test"), data.samples, data.training_rows(tiny.config(tmp))
    )  # as `report` does, from what is stored: the reading is the same
    assert again["protocol"] == protocol

    assert tiny.do("eval", tmp) == 0
    metrics = json.loads(directory.evaluation("test").metrics_file.read_text())
    assert metrics["protocol"]["status"] == "exploratory"
    assert metrics["protocol"]["reasons"][0].startswith(
        "the run has read test before, 1 time(s), first at 20"
    )
    assert any("exploratory: the run has read test before" in line for line in screen.headline(metrics))


def test_validation_is_no_matter_of_a_protocol(tmp: Path) -> None:
    assert tiny.do("eval", tmp, "eval.split=val") == 0
    assert "protocol" not in json.loads((tmp / "runs/tiny/eval/val/metrics.json").read_text())


def test_the_file_says_what_is_fixed(tmp: Path) -> None:
    content = json.loads(register(tmp, number="macro_f1").read_text())
    assert content["number"] == "macro_f1"
    assert content["seeds"] == [0]
    assert content["comparison"] is None
    (arm,) = content["arms"]
    assert arm["configuration"]["optim"]["lr"] == 0.02
    assert arm["configuration"]["train"]["epochs"] == 3  # resolved: also what the file leaves out
    assert arm["configuration"]["optim"]["momentum"] == 0.9
    samples = sample_table.read(tiny.samples_file())
    assert arm["data"]["0"]["samples"] == sample_table.digest(samples)
    assert (
        content["code"]["sha256"]
        == json.loads((tmp / "runs/tiny/environment.json").read_text())["code_sha256"]
    )


def test_a_comparison_names_its_arms_its_test_and_holm(tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lr in (("low", 0.001), ("high", 0.1)):
        (tmp / f"{name}.yaml").write_text(
            dump_departures(tiny.config(tmp, f"optim.lr={lr}", f"run.name={name}"))
        )
    files = [str(tmp / f"{name}.yaml") for name in ("tiny", "low", "high")]
    words = ["--seeds", "0", "--compare", "tiny", "high", "low", "train.device=cpu"]  # the last is no arm
    assert run(["preregister", *files, *words]) == 0
    path = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["registration"])
    assert path.name == "tiny-high-low.json"
    comparison = registration.read(path).comparison
    assert comparison is not None
    assert (comparison.arms, comparison.alpha, comparison.adjustment) == (
        ["tiny", "high", "low"],
        0.05,
        "Holm",
    )
    assert "McNemar" in comparison.test
    assert judged(tmp)["arm"] == "tiny"


def with_other_data(found: Registration, **digests: str) -> Registration:
    arm = found.arms[0]
    return replace(found, arms=[replace(arm, data={"0": replace(arm.data["0"], **digests)})])


def with_other_settings(found: Registration) -> Registration:
    arm = found.arms[0]
    optim = {**arm.configuration["optim"], "lr": 0.5}
    return replace(found, arms=[replace(arm, configuration={**arm.configuration, "optim": optim})])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            with_other_settings,
            "its configuration is not that of arm tiny: optim.lr 0.02 instead of 0.5 (1 in all)",
        ),
        (lambda found: replace(found, seeds=[1, 2]), "its seed 0 is not registered (1, 2 are)"),
        (
            lambda found: with_other_data(found, samples="0"),
            "its sample table (images, labels, splits) is not",
        ),
        (
            lambda found: with_other_data(found, pictures="0"),
            "its pictures are not those that were registered",
        ),
        (
            lambda found: replace(found, arms=[replace(found.arms[0], weights_sha256="0")]),
            "its first weights are not those of arm tiny",
        ),
        (
            lambda found: replace(found, code=replace(found.code, sha256="0", commit="abc", dirty=True)),
            "it is trained by other code than was registered (commit abc, with changes)",
        ),
    ],
)
def test_each_departure_makes_a_reading_exploratory_and_is_named(
    change: Callable[[Registration], Registration], reason: str, tmp: Path
) -> None:
    path = register(tmp)
    assert judged(tmp)["status"] == "confirmatory"
    rewritten(path, change)
    protocol = judged(tmp)
    assert protocol["status"] == "exploratory"
    assert any(clause.startswith(reason) for clause in protocol["reasons"]), protocol["reasons"]


def test_an_evaluation_with_other_views_departs_and_so_does_one_of_an_unfinished_training(tmp: Path) -> None:
    register(tmp)
    assert "eval.tta flip instead of none" in judged(tmp, "eval.tta=flip")["reasons"][0]
    assert judged(tmp, training={"training": "stopped"})["reasons"] == [
        "its training had not finished (stopped)"
    ]


def test_places_of_a_machine_and_its_speed_are_no_departure(tmp: Path) -> None:
    register(tmp)
    file = tmp / "runs/tiny/config.yaml"
    file.write_text(file.read_text().replace("workers: ", "workers: 1  # "))
    config = tiny.config(tmp, "eval.batch_size=7")
    assert confirmatory.judge(config, prepare.load(config), {}).is_confirmatory


def test_an_edited_registration_counts_for_nothing(tmp: Path) -> None:
    path = register(tmp)
    path.write_text(path.read_text().replace('"lr": 0.02', '"lr": 0.03'))
    (reason,) = judged(tmp)["reasons"]
    assert reason.startswith(f"{path}: has been edited since it was written")
    assert run(tiny.arguments("eval", tmp, f"eval.protocol={path}")) == 2
    assert not (tmp / "runs/tiny/test_reads.jsonl").exists()


def test_a_spoilt_file_beside_the_right_registration_is_no_harm(tmp: Path) -> None:
    path = register(tmp)
    path.with_name("notes.json").write_text("[]")
    assert judged(tmp)["status"] == "confirmatory"


def test_without_a_registration_it_is_said_where_one_was_looked_for(tmp: Path) -> None:
    assert judged(tmp)["reasons"] == ["no registration was found in run.root/protocols"]


def test_a_registration_elsewhere_is_named_by_a_key(tmp: Path) -> None:
    path = register(tmp, out=tmp / "elsewhere.json")
    assert judged(tmp)["status"] == "exploratory"
    assert judged(tmp, f"eval.protocol={path}")["status"] == "confirmatory"
    with pytest.raises(DataError, match=r"none\.json: no such registration"):
        judged(tmp, f"eval.protocol={tmp / 'none.json'}")


def test_runs_of_studies_and_repeats_have_the_registrations_of_their_root() -> None:
    for root in ("runs", "runs/studies/residual", "runs/repeats/strong", "runs/repeats"):
        assert registration.folder_of(Path(root)) == Path("runs/protocols")


def test_what_has_been_read_cannot_be_registered(tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.do("eval", tmp) == 0
    assert run(["preregister", str(tmp / "tiny.yaml"), "--seeds", "0"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp / 'runs/tiny'}: has read test 1 time(s) with the configuration of tiny and seed 0" in said
    assert not (tmp / "runs/protocols").exists()
    arguments = ["preregister", str(tmp / "tiny.yaml"), "--seeds", "0", "optim.lr=0.3"]
    assert run(arguments) == 0  # another configuration


def test_the_same_run_under_another_name_is_a_second_reading(tmp: Path, trained: Path) -> None:
    register(tmp)
    assert tiny.do("eval", tmp) == 0
    shutil.copytree(trained / "runs/tiny", tmp / "runs/repeats/tiny/twin")
    more = f"run.root={tmp / 'runs/repeats/tiny'}", "run.name=twin"
    (reason,) = judged(tmp, *more)["reasons"]
    assert reason.startswith(
        f"{tmp / 'runs/tiny'} has read test with the same configuration and seed, first at 20"
    )
    other = tmp / "runs/tiny/config.yaml"
    other.write_text(other.read_text().replace("lr: 0.02", "lr: 0.03"))
    assert judged(tmp, *more)["status"] == "confirmatory"
    other.write_text("[]")
    assert judged(tmp, *more)["status"] == "confirmatory"


def test_a_reading_before_counts_unless_it_was_interrupted(tmp: Path) -> None:
    register(tmp)
    directory = RunDirectory(tmp / "runs/tiny")
    interrupted = {"time": "2026-01-01T00:00:00+00:00", "top1": None}
    directory.test_readings_file.write_text(json.dumps(interrupted) + "\n")
    assert judged(tmp)["status"] == "confirmatory"
    directory.test_readings_file.write_text(json.dumps(interrupted) + "\n" + '{"time": "20')
    assert readings.completed(directory) == ["a time that is damaged"]
    assert judged(tmp)["status"] == "exploratory"


def test_a_registration_is_never_replaced(tmp: Path) -> None:
    path = register(tmp)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"tiny\.json: is there already.*name another one with --out"):
        register(tmp)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("compared", "number", "sentence"),
    [
        (["tiny", "other"], "top1", "--compare other: is none of the arms, tiny"),
        (["tiny"], "top1", "name two or more different arms"),
        (["tiny", "tiny"], "top1", "name two or more different arms"),
    ],
)
def test_a_wrong_comparison_is_a_sentence(compared: list[str], number: str, sentence: str, tmp: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        preregister([tmp / "tiny.yaml"], [0], compared, [], number, None, [])


def test_arms_need_names_of_their_own_and_a_test_for_their_number(tmp: Path) -> None:
    twin = shutil.copyfile(tmp / "tiny.yaml", tmp / "twin.yaml")
    with pytest.raises(ConfigError, match="two configurations have the name tiny"):
        preregister([tmp / "tiny.yaml", twin], [0], [], [], "top1", None, [])
    twin.write_text(dump_departures(tiny.config(tmp, "run.name=twin")))
    with pytest.raises(ConfigError, match="tests top1 alone, and the primary number is nll"):
        preregister([tmp / "tiny.yaml", twin], [0], ["tiny", "twin"], [], "nll", None, [])


def test_digests_of_data_follow_the_seed(birds: Path, tmp_path: Path) -> None:  # they are drawn
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_departures(tiny.config(tmp_path, tiny.own_data(tmp_path))))
    result = preregister([config], [0, 1], [], [], "top1", None, [])
    digests = registration.read(Path(result["registration"])).arms[0].data
    assert digests.keys() == {"0", "1"}
    assert isinstance(digests["0"], DataDigests)
    assert digests["0"].samples != digests["1"].samples  # another validation split
    assert digests["0"].pictures == digests["1"].pictures is not None
