"""The doctor on the tiny job, in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.findings import Findings


@pytest.fixture
def ask(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Findings]:
    """`ask(*overrides, go=...)`: the findings by name; `go` is the expected verdict."""

    def run(*overrides: str, go: bool) -> Findings:
        capsys.readouterr()
        code = tiny.do("doctor", tmp_path, *overrides)
        out = capsys.readouterr().out
        result = json.loads(out)
        assert out.count("\n") == 1
        assert (code, result["go"]) == ((0, True) if go else (2, False))
        return {check["name"]: check for check in result["checks"]}

    return run
