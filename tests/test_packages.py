"""The packages that pyproject.toml asks for: lowest versions that are tested, and pinned ones that fulfil them."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers import tiny

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {
    re.sub(r"[-_.]+", "-", wanted.name).lower(): wanted
    for wanted in map(Requirement, PROJECT["dependencies"])
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_package_has_a_lowest_version_that_can_be_installed_exactly(name: str) -> None:
    """`make test-lowest` installs it."""
    (bound,) = NEEDED[name].specifier
    assert bound.operator in (">=", "==")


@pytest.mark.parametrize("name", NEEDED)
def test_the_pinned_and_the_installed_version_are_not_below_it(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert NEEDED[name].specifier.contains(pinned[name])
    assert NEEDED[name].specifier.contains(version(NEEDED[name].name).partition("+")[0])


def test_torch_is_one_whose_autocast_keeps_gradients_of_weights_that_it_has_cast_without_them() -> None:
    """Up to torch 2.6 at least, SnapMix's forward without gradients left the next one without them, too."""
    assert not NEEDED["torch"].specifier.contains("2.10")


def test_timm_is_one_that_runs_no_code_from_a_file_of_weights() -> None:
    """timm 1.0.24 reads a pickle whole; 1.0.27 is the first that was seen to read tensors alone."""
    assert not NEEDED["timm"].specifier.contains("1.0.26")


ONLY_FOR_MORE = ("wandb", "optuna", "cleanlab", "imagehash", "mlxtend", "pytorch_grad_cam", "tensorboard")
WITHOUT = """
import sys
sys.modules |= dict.fromkeys({names}, None)  # as if they were not installed
from pipeline.cli.main import run
codes = [run([verb, *{words}]) for verb in ("data", "train", "eval")]
sys.exit(max(codes))
"""


def test_data_train_and_eval_need_no_package_that_tracks_searches_or_explains(tmp_path: Path) -> None:
    """A cluster's image may lack them; only what asks for them needs them."""
    words = tiny.overrides(tmp_path, "train.epochs=1", tiny.own_data(tmp_path))
    script = WITHOUT.format(names=ONLY_FOR_MORE, words=words)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "runs/tiny/eval/test/metrics.json").read_text())
    assert metrics["n"] == 18
