import subprocess
from types import SimpleNamespace

import pytest

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
