import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
