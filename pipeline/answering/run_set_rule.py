"""The rule of prediction sets that an evaluation of a run's checkpoint has calibrated on validation."""

from pydantic import BaseModel

from pipeline.common import files
from pipeline.evaluation.set_rule import Method, SetRule
from pipeline.runs.directory import RunDirectory
from pipeline.runs.predictions import AGAIN, views

METHOD: Method = "lac"
"""of the answers: the one whose sets are the smallest on average"""
COLUMN = "prediction_set"


class _Calibrated(BaseModel):
    """What metrics.json says of prediction sets."""

    checkpoint_sha256: str = ""
    tta: str = "none"
    image_px: int | None = None
    resize_px: int | None = None
    prediction_sets: dict[Method, SetRule] = {}


def of_run(run: RunDirectory, checkpoint_sha256: str, tta: str) -> SetRule | None:
    """The rule of a run; None without one of this checkpoint and these crops, or with too few validation images.

    Raises:
        DataError: metrics.json is damaged.
    """
    for split in ("test", "train"):
        path = run.evaluation(split).metrics_file
        if not path.is_file():
            continue
        found = files.read_json(path, _Calibrated, AGAIN)
        rule = found.prediction_sets.get(METHOD)
        if (found.checkpoint_sha256, views(found.model_dump())) != (checkpoint_sha256, tta) or rule is None:
            continue
        return None if rule.threshold is None else rule
    return None
