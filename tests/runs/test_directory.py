"""RunDirectory is the one place that names the files of a run."""

import ast
from pathlib import Path

import pytest

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.runs.directory import EvaluationDirectory, RunDirectory, find_run_directories

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "pipeline/runs/directory.py"


def strings(path: Path) -> set[str]:
    """The text constants of a file, but for docstrings and parts of messages."""
    tree = ast.parse(path.read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in statements | parts
    }


def file_names() -> set[str]:
    """Names of a run's files; those of W&B's folder and the sample table have other rooms."""
    names = {name for name in strings(DIRECTORY) if "." in name and " " not in name}
    return names | {f"{name}.pt" for name in ("best", "last")} | {"per_class.csv", "confused_pairs.csv"}


def test_names_of_a_runs_files_are_in_one_place() -> None:
    names = file_names()
    assert {"log.jsonl", "config.yaml", "environment.json", "predictions.csv", "metrics.json"} < names
    assert {"status.json", "test_reads.jsonl", "curves.png", "diverged.json", "outputs.npz"} < names
    elsewhere = {
        (str(path.relative_to(ROOT)), text)
        for path in (ROOT / "pipeline").rglob("*.py")
        if path != DIRECTORY
        for text in strings(path)
        if text.rpartition("/")[2] in names
    }
    assert not elsewhere


def test_a_finished_run_is_read_through_its_directory(trained: Path) -> None:
    run = RunDirectory(trained / "runs/tiny")
    assert run.is_run()
    assert [record["epoch"] for record in run.read_log().epochs()] == [1, 2, 3]
    best, status = run.read_log().best(), run.read_status()
    assert best is not None
    assert status is not None
    assert (status.state, run.count_test_readings()) == ("finished", 0)
    assert run.read_environment()["ranks"] == 1
    assert all(run.checkpoint(name).is_file() for name in ("best", "last"))
    expected = {path.name for path in (run.config_file, run.environment_file, run.log_file, run.status_file)}
    assert expected <= {path.name for path in run.path.iterdir()}
    assert [directory.path for directory in find_run_directories(trained)] == [run.path]


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.is_run()
    assert (run.read_log(), run.read_status(), run.read_environment()) == ([], None, {})
    assert run.evaluation("val").path == tmp_path / "eval/val"


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_knows_its_split(tmp_path: Path, split: str) -> None:
    folder = EvaluationDirectory(tmp_path / split)
    assert folder.split == split
    assert folder.table("per_class") == tmp_path / split / "per_class.csv"


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b"{}",
        b'{"packages": null}',
        b'{"packages": {"torch": 3}}',
        b'{"packages": {}, "command": "train"}',
        b'{"packages": {}, "git": "4c65971"}',
    ],
)
def test_a_damaged_environment_is_named(content: bytes, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_environment() == {}
    run.environment_file.write_bytes(content)
    with pytest.raises(DataError, match=r"environment\.json: damaged \(.*\); restore it from a copy"):
        run.read_environment()


def test_an_environment_keeps_what_another_version_wrote(tmp_path: Path) -> None:
    run, about = (
        RunDirectory(tmp_path),
        {"packages": {"torch": "2.11", "wandb": None}, "weather": {"rain": [1, 2.5]}},
    )
    files.write_json(run.environment_file, about)
    assert run.read_environment() == about
