"""What every way into the program does first."""

import subprocess
import sys

import pytest

ON_WINDOWS = """
import runpy, sys
sys.platform, sys.modules["fcntl"], sys.modules["resource"] = "win32", None, None
sys.argv = ["plumage", "train", "--standalone"]
"""


@pytest.mark.parametrize(
    "entrance",
    [
        "runpy.run_module('pipeline', run_name='__main__')",
        "runpy.run_module('pipeline.launch', run_name='__main__')",
        "from pipeline.cli.main import main; main()",
    ],
)
def test_windows_is_one_sentence(entrance: str) -> None:
    words = [sys.executable, "-c", ON_WINDOWS + entrance]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run it in WSL" in done.stderr
