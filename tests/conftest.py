"""What several test files share.

Each process of a test computes with one thread: the files run side by side, and rounding depends on the number.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import console
from pipeline.config.load import dump_departures
from pipeline.protocol.preregister import preregister
from tests.helpers import processes, tiny

shared_tables: set[str] = set()


def tables() -> set[str]:
    return {str(path) for path in tiny.data_root().glob("*/samples*.csv")}


@pytest.fixture(scope="session", autouse=True)
def _session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder of the drawn data, and the server of processes, before a test has changed the environment."""
    os.environ["PLUMAGE_TEST_DATA"] = str(tmp_path_factory.mktemp("data"))
    processes.start_server()


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """What a verb sets for the whole process is as before when the next test begins: tests pass in any order."""
    environment = dict(os.environ)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    console._console.quiet, console._signature[0] = False, ""  # there is no public way back
    added = tables() - shared_tables
    assert not added, f"the shared data keep their one sample table; take `tiny.own_data` for {added}"


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared tiny data set."""
    assert tiny.do("data", tmp_path_factory.mktemp("prepare")) == 0
    shared_tables.update(tables())
    return tiny.data_root()


@pytest.fixture(scope="session")
def trained(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished tiny run in runs/tiny: tests read it and do not write it."""
    tmp = tmp_path_factory.mktemp("trained")
    assert tiny.do("train", tmp) == 0
    return tmp


@pytest.fixture(scope="session")
def confirmed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny run, registered before it was evaluated on test: tests copy it to change it."""
    tmp = tmp_path_factory.mktemp("confirmed")
    shutil.copytree(trained / "runs", tmp / "runs")
    (tmp / "tiny.yaml").write_text(dump_departures(tiny.config(tmp)))
    preregister([tmp / "tiny.yaml"], [0], [], [], "top1", None, [])
    assert tiny.do("eval", tmp) == 0
    return tmp


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's chromium or Chrome, driven by playwright; without one of them the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = "chromium", "chromium-browser", "google-chrome"
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # root cannot have it
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        yield browser
        browser.close()


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
