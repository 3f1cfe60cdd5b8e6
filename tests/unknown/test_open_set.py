"""scripts/open_set.py: an open-set split of pictures whose features `probe` has kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import own_pictures

SCRIPT = Path(__file__).parents[2] / "scripts/open_set.py"
KNOWN = [0, 1, 2, 4, 5]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the probe of seven classes in runs/own."""
    tmp = tmp_path_factory.mktemp("open_set")
    birds = own_pictures.class_folders(tmp / "birds", list("abcdefg"), count=30)
    for verb in ("data", "probe"):
        assert own_pictures.do(verb, tmp, "folder", birds, "data.val_fraction=0.2") == 0
    return tmp


def measured(tmp: Path, split: dict[str, Any]) -> dict[str, Any]:
    """What the script says of a split."""
    (tmp / "split.json").write_text(json.dumps(split))
    config = tmp / "runs/own/probe/linear/config.yaml"
    words = [sys.executable, str(SCRIPT), str(tmp / "split.json"), "--config", str(config), "--draws", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
    assert ended.returncode == 0, ended.stderr
    content: dict[str, Any] = json.loads(ended.stdout)
    return content


def test_it_measures_test_images_of_known_and_unknown_classes_and_counts_one_reading(probed: Path) -> None:
    readings = probed / "runs/own/probe/test_reads.jsonl"
    before = len(readings.read_text().splitlines())
    found = measured(probed, {"known": [*KNOWN, 150], "unknown": {"easy": [3], "hard": [6, 99]}})
    assert found["classes"] == {"known": 5, "unknown": 2}
    test = found["images"]["test"]
    assert found["images"]["strange"] * 5 == test * 2  # as many of each class
    for row in found["scores"]:
        drawn = row["draws"]["test_kept"]
        assert 0 <= drawn["low"] == drawn["mean"] == drawn["high"] <= 1  # one draw
        assert 0 <= row["unknown"]["auroc"]["value"] <= 1
    lines = readings.read_text().splitlines()
    assert len(lines) == before + 1
    assert json.loads(lines[-1])["top1"] == found["top1"]
