import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.common import hardware, nvidia
from pipeline.runs import environment


@pytest.mark.parametrize(
    ("changes", "expected"),
    [("", None), ("+ short", "+ short\n"), ("é" * 8, "é" * 5 + "\n[cut after 10 bytes]\n")],
)
def test_the_difference_of_the_code_is_cut_where_it_is_long(
    monkeypatch: pytest.MonkeyPatch, changes: str, expected: str | None
) -> None:
    monkeypatch.setattr(environment, "DIFF_BYTES", 10)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=changes + "\n"))
    assert environment.diff() == expected


def test_a_git_that_does_not_answer_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(environment, "GIT_WAIT_S", 0.2)
    assert environment.diff() is None
    assert environment.describe(torch.device("cpu"))["git"] is None


@pytest.mark.parametrize("tf32", [False, True])
def test_what_a_gpu_computes_with_is_written_down(monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(nvidia, "driver", lambda: "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    try:
        hardware.configure(deterministic=False, tf32=tf32)
        about = environment.describe(torch.device("cuda", 0))
    finally:
        hardware.configure(deterministic=False)
    expected = {
        "device": "Tesla T4",
        "cuda": "13.0",
        "cudnn": 91900,
        "driver": "580.65.06",
        "tf32": tf32,
    }
    assert {key: about[key] for key in expected} == expected
    on_cpu = environment.describe(torch.device("cpu"))
    assert [on_cpu[key] for key in ("cuda", "cudnn", "driver", "tf32")] == [None] * 4


def test_what_may_change_bits_is_named() -> None:
    here = environment.describe(torch.device("cpu"))
    assert environment.other_bits(here, here) == []
    assert environment.other_bits({**here, "host": "another", "time": "another"}, here) == []
    packages = {**here["packages"], "torch": "1.0", "wandb": "1.0"}
    other = {**here, "cpu": "another", "packages": packages, "code_sha256": "0"}
    assert environment.other_bits(other, here) == ["code", "cpu", "torch"]
    unnamed = {key: value for key, value in here.items() if key != "cpu"}
    assert environment.other_bits({**unnamed, "host": "another"}, here) == ["host"]


def test_another_cudnn_may_change_bits_where_both_name_theirs() -> None:
    here = {**environment.describe(torch.device("cpu")), "cudnn": 91900}
    assert environment.other_bits({**here, "cudnn": 92400}, here) == ["cudnn"]
    by_an_earlier_version = {key: value for key, value in here.items() if key != "cudnn"}
    assert environment.other_bits(by_an_earlier_version, here) == []


def test_the_digest_of_the_code_is_of_what_makes_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("training", "report"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("one")
    monkeypatch.setattr(environment, "CODE", tmp_path)
    before = environment.code_sha256()
    (tmp_path / "report/a.py").write_text("two")
    assert environment.code_sha256() == before
    (tmp_path / "training/a.py").rename(tmp_path / "training/b.py")
    renamed = environment.code_sha256()
    (tmp_path / "training/b.py").write_text("two")
    assert len({before, renamed, environment.code_sha256()}) == 3


def test_files_beside_the_code_do_not_make_it_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = tmp_path / "pipeline" / "runs"
    code.mkdir(parents=True)
    (code / "environment.py").write_text("x = 1\n")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "code"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "CODE", tmp_path / "pipeline")
    monkeypatch.setattr(environment, "__file__", str(code / "environment.py"))

    def is_dirty() -> bool:
        found = environment.git()
        assert found is not None
        return bool(found["dirty"])

    (tmp_path / "answers.csv").write_text("image\n")
    assert not is_dirty()
    (code / "new.py").write_text("y = 1\n")
    assert is_dirty()
    (code / "new.py").unlink()
    (code / "environment.py").write_text("x = 2\n")
    assert is_dirty()
