"""The threshold below which `predict` answers "none of these", as the verb `unknown` leaves it in a run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.answering import unknown_scores
from pipeline.answering.unknown_scores import Logits, Score
from pipeline.common import arrays
from pipeline.common.errors import DataError
from pipeline.inference.features import Features
from pipeline.runs.directory import RunDirectory

AGAIN = "run `plumage unknown RUN` again"
NONE_OF_THESE = "none of these"
ORIGIN = ("score", "lowest", "kept", "checkpoint_sha256", "tta")


@dataclass(frozen=True)
class UnknownThreshold:
    """A score of a checkpoint's outputs, and the lowest one of a picture of a known class.

    kept: the share of pictures of known classes that reach it, as promised, 0..1. tta: the crops that were averaged.
    """

    score: Score
    lowest: float
    kept: float
    checkpoint_sha256: str
    tta: str

    def refuses(self, logits: Logits, features: Features) -> npt.NDArray[np.bool_]:
        """Whether each picture is of no known class: logits [n, C], features [n, D] -> bool [n]."""
        return self.score.of(logits, features) < self.lowest

    def write(self, path: Path) -> None:
        origin = {name: np.array(getattr(self, name)) for name in ORIGIN[1:]}
        arrays.write_npz(path, {"score": np.array(self.score.name), **origin, **self.score.arrays})

    @classmethod
    def read(cls, path: Path) -> "UnknownThreshold":
        """Raises: `DataError` where the file is damaged."""
        score, lowest, kept, checkpoint, tta = arrays.read_npz(path, ORIGIN, AGAIN)
        name = next((name for name in unknown_scores.NAMES if name == str(score)), None)
        if name is None or not np.isfinite(float(lowest)):
            raise DataError(f"{path}: damaged: a score {score} with the threshold {lowest}; {AGAIN}")
        needed = unknown_scores.ARRAYS[name]
        stored = arrays.read_npz(path, needed, AGAIN)
        learned = {
            key: array.astype(np.float64) for key, array in zip(needed, stored, strict=True)
        }  # once, not each time
        return cls(Score(name, learned), float(lowest), float(kept), str(checkpoint), str(tta))


def of_run(run: RunDirectory, checkpoint_sha256: str, tta: str) -> UnknownThreshold | None:
    """The threshold of a run; None without one, or where it is of another checkpoint or of other crops.

    Raises:
        DataError: the file is damaged.
    """
    if not run.unknown_threshold_file.is_file():
        return None
    found = UnknownThreshold.read(run.unknown_threshold_file)
    return found if (found.checkpoint_sha256, found.tta) == (checkpoint_sha256, tta) else None
