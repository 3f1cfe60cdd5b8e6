from pathlib import Path

import numpy as np
import pytest

from pipeline.answering import unknown_scores, unknown_threshold
from pipeline.answering.unknown_threshold import UnknownThreshold
from pipeline.common import arrays
from pipeline.common.errors import DataError
from pipeline.inference.linear_head import Images
from pipeline.runs.directory import RunDirectory

RANDOM = np.random.default_rng(0)
TRAIN = Images(RANDOM.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 4)
LOGITS, FEATURES = (
    RANDOM.normal(size=(30, 4)).astype(np.float32),
    RANDOM.normal(size=(30, 6)).astype(np.float32),
)


def threshold(name: unknown_scores.Name) -> UnknownThreshold:
    """That refuses the lowest ten of thirty pictures."""
    score = unknown_scores.fit(name, TRAIN)
    lowest = float(np.sort(score.of(LOGITS, FEATURES))[10])
    return UnknownThreshold(score, lowest, 0.95, "abc", "none")


@pytest.mark.parametrize("name", unknown_scores.NAMES)
def test_a_threshold_that_is_read_again_refuses_the_same_pictures(
    name: unknown_scores.Name, tmp_path: Path
) -> None:
    written = threshold(name)
    written.write(tmp_path / "threshold.npz")
    found = UnknownThreshold.read(tmp_path / "threshold.npz")
    assert found.refuses(LOGITS, FEATURES).tolist() == written.refuses(LOGITS, FEATURES).tolist()
    assert found.refuses(LOGITS, FEATURES).sum() == 10
    assert (found.score.name, found.lowest, found.kept) == (name, written.lowest, 0.95)
    one_by_one = [bool(found.refuses(LOGITS[i : i + 1], FEATURES[i : i + 1])[0]) for i in range(30)]
    assert one_by_one == found.refuses(LOGITS, FEATURES).tolist()


def test_only_a_threshold_of_the_same_checkpoint_and_crops_counts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert unknown_threshold.of_run(run, "abc", "none") is None
    threshold("msp").write(run.unknown_threshold_file)
    assert unknown_threshold.of_run(run, "abc", "none") is not None
    assert unknown_threshold.of_run(run, "other", "none") is None
    assert unknown_threshold.of_run(run, "abc", "flip") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": np.array("guess")},
        {"lowest": np.array(np.nan)},
        {"score": np.array("knn")},  # without its neighbours
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    path = tmp_path / "threshold.npz"
    good = {
        name: np.array(value) for name, value in (("kept", 0.95), ("checkpoint_sha256", "a"), ("tta", "none"))
    }
    arrays.write_npz(path, good | {"score": np.array("msp"), "lowest": np.array(0.5)} | wrong)
    with pytest.raises(DataError, match="damaged.*plumage unknown RUN"):
        UnknownThreshold.read(path)
