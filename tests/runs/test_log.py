import json
import time
from pathlib import Path

import pytest

from pipeline.common.errors import DataError
from pipeline.runs.log import ALL, CLOCKS, FIELDS, HEADER, LogWriter, best_record, read_log

EPOCH = {
    "kind": "epoch",
    "step": 4,
    "epoch": 1,
    "phase": "sgd",
    "lr": 0.1,
    "train_loss": 1.5,
    "train_top1": 0.5,
}
HISTOGRAM = {"kind": "gradients", "step": 1}
STEP = {"lr": 0.1, "momentum": 0.9, "loss": 1.5, "grad_norm": 2.0}


def step(number: int, **values: float) -> dict[str, object]:
    return {"kind": "step", "step": number, **STEP, **values}


def test_a_log_begins_with_its_schema_and_version(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log.jsonl", 0)
    log.append(step(1))
    log.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first == {"kind": "log", "step": 0, "schema": "plumage/log", "version": 1}
    assert second.items() >= step(1).items()
    assert second.keys() - step(1).keys() == {"time", "seconds", "cpu_seconds"}
    assert read_log(tmp_path / "log.jsonl") == [second]


def test_the_clocks_go_on_from_the_last_record_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, cpu = iter([100.0, 101.5, 104.0, 9000.0, 9002.0]), iter([1.0, 1.25, 2.0, 50.0, 50.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(cpu))
    path = tmp_path / "log.jsonl"
    first = LogWriter(path, 0)
    for number in (1, 2):  # the second step was not saved, and is taken again
        first.append(step(number))
    first.close()
    later = LogWriter(path, 1)
    assert [record["step"] for record in read_log(path)] == [1]
    later.append(step(2))
    later.close()
    assert [(line["step"], line["seconds"], line["cpu_seconds"]) for line in read_log(path)] == [
        (1, 1.5, 0.25),
        (2, 3.5, 0.75),
    ]


@pytest.mark.parametrize("half", ['{"kind": "step", "st', "{", '{"kind": "step", "step": 3}'])
def test_a_half_line_is_not_read_and_is_cut_off(tmp_path: Path, half: str) -> None:
    path = tmp_path / "log.jsonl"
    log = LogWriter(path, 0)
    log.append(step(1))
    log.append(step(2))
    log.close()
    whole = path.read_text()
    path.write_text(whole + half)
    assert [record["step"] for record in read_log(path)] == [1, 2]
    LogWriter(path, 2).close()
    assert path.read_text() == whole


def test_a_log_that_begins_anew_keeps_its_header(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogWriter(path, 0)
    log.append({"kind": "val", "step": 0, "epoch": 0.0, "val_loss": 1.0, "val_top1": 0.5})
    log.append(step(1))
    log.close()
    LogWriter(path, -1).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [HEADER]


def test_without_steps_the_last_record_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogWriter(path, 0)
    for record in (step(1), {**dict.fromkeys(FIELDS["epoch"]), **EPOCH, "step": 1}, step(2), step(3)):
        log.append(record)
    log.close()
    assert [(one["kind"], one["step"]) for one in read_log(path, steps=False)] == [("epoch", 1), ("step", 3)]
    path.write_text(path.read_text() + '{"kind": "st')
    assert [one["step"] for one in read_log(path, steps=False)] == [1, 3]


def test_a_log_of_before_there_were_headers_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(step(1)) + "\n" + json.dumps(step(2)) + "\n")
    assert [record["step"] for record in read_log(path)] == [1, 2]
    LogWriter(path, 1).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [HEADER, step(1)]


def test_a_value_that_is_not_finite_is_null(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log.jsonl", 0)
    assert log.append(step(1, grad_norm=float("inf")))["grad_norm"] is None
    log.close()
    assert read_log(tmp_path / "log.jsonl")[0]["grad_norm"] is None


def test_a_field_that_the_schema_does_not_have_is_a_bug(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log.jsonl", 0)
    with pytest.raises(AssertionError, match="colour"):
        log.append({**step(1), "colour": "red"})
    log.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"kind": "log", "step": 0, "schema": "plumage/log", "version": 2}\n',
            "has version 2 .* knows 1; update",
        ),
        (f"{json.dumps(step(1))}\nnonsense\n{json.dumps(step(2))}\n", "line 2: no record"),
        ("[1]\n", "line 1: no record"),
        ("3\n", "line 1: no record"),
        ("null\n", "line 1: no record"),
        ("[" * 100_000 + "\n", "line 1: no record"),
        (f"{json.dumps(step(1))}\n\n", "line 2: no record"),
        (f"{json.dumps(HEADER)}\n\udcff\n", "line 2: no record"),
        (json.dumps({**HEADER, "version": "two"}) + "\n", "line 1: no record"),
        (json.dumps({"kind": "step", "step": 1}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"step": None}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"step": -1}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"step": True}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"lr": None}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"loss": "1.5"}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"loss": float("nan")}) + "\n", "line 1: no record"),
        (json.dumps(step(1) | {"seconds": None}) + "\n", "line 1: no record"),
        (json.dumps(EPOCH | {"epoch": 0}) + "\n", "line 1: no record"),
        (json.dumps(EPOCH | {"phase": 3}) + "\n", "line 1: no record"),
        (json.dumps(EPOCH | {"train_loss": None}) + "\n", "line 1: no record"),
        (json.dumps({"kind": "gradients", "step": 1, "histograms": [1]}) + "\n", "line 1: no record"),
        (
            json.dumps(HISTOGRAM | {"histograms": {"w": {"counts": [1], "edges": [0]}}}) + "\n",
            "line 1: no record",
        ),
        (json.dumps(HISTOGRAM | {"histograms": {"w": {"counts": [1]}}}) + "\n", "line 1: no record"),
        (
            json.dumps(HISTOGRAM | {"histograms": {"w": {"counts": ["1"], "edges": [0, 1]}}}) + "\n",
            "line 1: no record",
        ),
    ],
)
def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=words):
        read_log(path)
    with pytest.raises(DataError, match=words):
        LogWriter(path, 5)
    assert path.read_bytes() == content.encode(errors="surrogateescape")


def test_a_field_that_a_record_does_not_have_is_null_and_an_unknown_kind_is_taken_as_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    later = {"kind": "weather", "step": 2, "rain": {"mm": 3}}
    path.write_text(f"{json.dumps({'kind': 'step', 'step': 1, 'lr': 0.1})}\n{json.dumps(later)}\n")
    assert read_log(path) == [
        {"kind": "step", "step": 1, "lr": 0.1, "momentum": None, "loss": None, "grad_norm": None},
        later,
    ]


def test_a_validation_whose_loss_is_not_finite_can_be_the_best(tmp_path: Path) -> None:
    looks = [
        {"kind": "val", "step": step, "epoch": 1, "val_loss": loss, "val_top1": top1}
        for step, loss, top1 in ((1, 2.0, 0.1), (2, None, 0.5), (3, 9.0, 0.5))
    ]
    best = best_record(looks)
    assert best is not None
    assert best["step"] == 3
    assert best_record(looks[:2]) == looks[1]


def test_a_run_logs_what_the_schema_says(trained: Path) -> None:
    log = read_log(trained / "runs/tiny/log.jsonl")
    assert {record["kind"] for record in log} == {"step", "epoch"}
    for record in log:
        assert record.keys() == FIELDS[record["kind"]].keys() | ALL.keys() | CLOCKS.keys()


def test_the_page_about_the_log_has_every_field_with_its_meaning() -> None:
    page = (Path(__file__).parents[2] / "docs/log.md").read_text()
    tables = [ALL | CLOCKS, *FIELDS.values()]
    expected = [f"| `{name}` | {meaning} |" for fields in tables for name, meaning in fields.items()]
    shown = page[page.index("## Every record") : page.index("## The same elsewhere")].splitlines()
    assert [line for line in shown if line.startswith("| `")] == expected


def test_of_equal_accuracy_the_lower_loss_is_the_best() -> None:
    tied = [
        {"kind": "epoch", "step": 1, "val_top1": 0.5, "val_loss": 1.0},
        {"kind": "val", "step": 2, "val_top1": 0.5, "val_loss": 0.9},
        {"kind": "epoch", "step": 3, "val_top1": 0.4, "val_loss": 0.1},
        {"kind": "step", "step": 4, "loss": 0.1},
    ]
    assert best_record(tied) == tied[1]
    assert best_record(tied[3:]) is None
