"""What `eval` has left in a run directory, for W&B."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runs import predictions
from pipeline.sync.place import Place

FILES = (
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "confused_pairs.csv",
    "predictions.csv",
    "report.html",
)


@dataclass(frozen=True)
class Evaluation:
    """What `eval` has left of one split."""

    split: str
    folder: Path
    metrics: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The numbers as `eval/SPLIT/NAME`."""
        return {
            f"eval/{self.split}/{name}": value
            for name, value in self.metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def files(self) -> list[Path]:
        """The tables and the page that there are."""
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]


def evaluations(place: Place) -> list[Evaluation]:
    """The evaluations in a run directory, by the name of their split.

    Raises:
        DataError: one of them is damaged.
    """
    folders = sorted(path.parent for path in place.run_dir.glob("eval/*/metrics.json"))
    return [Evaluation(folder.name, folder, predictions.read_metrics(folder)) for folder in folders]
