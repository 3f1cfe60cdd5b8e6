"""What several test files share."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import tiny


@pytest.fixture(scope="session", autouse=True)
def _test_data_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PLUMAGE_TEST_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared tiny data set."""
    assert tiny.do("data", tmp_path_factory.mktemp("prepare")) == 0
    return tiny.data_root()


@pytest.fixture(scope="session")
def trained(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished tiny run in runs/tiny: tests read it and do not write it."""
    tmp = tmp_path_factory.mktemp("trained")
    assert tiny.do("train", tmp) == 0
    return tmp


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, or of the size that the test's parameter says."""
    size = getattr(request, "param", "1m")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount program here")
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
