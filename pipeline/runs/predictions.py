"""The predictions of a split as `eval` stores them: whoever reads them reads and checks them here."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel

from pipeline.common import arrays, files, tables
from pipeline.common.errors import DataError, name_some
from pipeline.config.evaluation import views_in_words
from pipeline.data import sample_table
from pipeline.runs.directory import EvaluationDirectory

TYPES: dict[Hashable, Any] = {
    "id": "int64",
    "path": str,
    "label": "int64",
    "class_name": str,
    "predicted": "int64",
    "predicted_name": str,
    "rank": "int64",
}
COLUMNS = [*map(str, TYPES), "confidence", "probability"]
AGAIN = "run `eval` for this split again"

Logits = npt.NDArray[np.float32]


class Validation(NamedTuple):
    """Logits float32 [v, C] and labels int64 [v] of the validation images; a temperature is fitted on them."""

    logits: Logits
    label: npt.NDArray[np.int64]


class _Metrics(BaseModel):
    """What the readers of metrics.json take for granted; earlier versions wrote fewer numbers."""

    split: str
    top1: float
    n: int = 0
    epoch: int = 0
    tta: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""


@dataclass(frozen=True)
class StoredPredictions:
    """The predictions of n images of a split.

    table: a row an image (`pipeline.evaluation.metrics`), in predictions.csv.
    logits: float32 [n, C], and features: float32 [n, D], in the order of the table, in outputs.npz; large ones that were
    read are mapped (`pipeline.common.arrays`).
    validation: in validation.npz; None when the split is val itself, or nothing is held out.
    """

    table: pd.DataFrame
    logits: Logits
    features: npt.NDArray[np.float32]
    validation: Validation | None = None

    def write(self, folder: EvaluationDirectory) -> None:
        """Write the files; a validation.npz of an earlier evaluation is deleted when there is no validation."""
        tables.write_csv(self.table, folder.predictions_file)
        outputs = {"id": self.table["id"].to_numpy("int64"), "logits": self.logits, "features": self.features}
        arrays.write_npz(folder.outputs_file, outputs)
        if self.validation is None:
            folder.validation_file.unlink(missing_ok=True)
        else:
            arrays.write_npz(folder.validation_file, self.validation._asdict())

    @classmethod
    def read(cls, folder: EvaluationDirectory, samples: pd.DataFrame) -> "StoredPredictions":
        """Read the files.

        Args:
            samples: the whole sample table.

        Raises:
            DataError: a file is missing or damaged, or the files do not fit each other or the sample table.
        """
        names = sample_table.class_names(samples)
        table = read_table(folder, names)
        check_against_samples(table, samples[samples["split"] == folder.split], folder.predictions_file)
        logits, features = _read_outputs(folder, table, len(names))
        return cls(table, logits, features, _read_validation(folder, len(names)))


def read_metrics(folder: EvaluationDirectory) -> dict[str, Any]:
    """The content of metrics.json; a `DataError` says that it is missing or damaged."""
    path = folder.metrics_file
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    files.read_json(path, _Metrics, AGAIN)
    return files.read_json(path, dict[str, Any], AGAIN)


def views(metrics: Mapping[str, Any]) -> str:
    """What an evaluation showed of each picture (`Config.views`), from the content of its metrics.json."""
    return views_in_words(metrics.get("tta", "none"), metrics.get("image_px"), metrics.get("resize_px"))


def read_class_names(folder: EvaluationDirectory) -> list[str]:
    """The names of the classes in the order of their labels, [C], from per_class.csv."""
    path = folder.table("per_class")
    classes = _read_csv(path, ["label", "class_name"])
    if classes["label"].tolist() != list(range(len(classes))):
        raise DataError(f"{path}: its labels do not run from 0 to C-1; {AGAIN}")
    return classes["class_name"].tolist()


def read_table(folder: EvaluationDirectory, names: Sequence[str]) -> pd.DataFrame:
    """The predictions table of an evaluation alone, without logits and features.

    Args:
        names: of the classes, [C].

    Raises:
        DataError: the table is missing, has an image twice, a class that is not in `names`, or a value
            that is not a number in its range.
    """
    path = folder.predictions_file
    table = _read_csv(path, COLUMNS)
    if table.empty:
        raise DataError(f"{path}: the table has no image; {AGAIN}")
    _refuse_doubles(table["id"], path)
    for label, name in (("label", "class_name"), ("predicted", "predicted_name")):
        known = dict(enumerate(names))
        unknown = table[table[label].map(known) != table[name]]
        if len(unknown):
            entries = list(
                dict.fromkeys(f"{a} ({b})" for a, b in zip(unknown[label], unknown[name], strict=True))
            )
            raise DataError(
                f"{path}: unknown class {name_some(entries)} in the columns {label} and {name}; there are {len(names)} "
                f"classes, 0 ({names[0]}) to {len(names) - 1} ({names[-1]}); {AGAIN}"
            )
    for column in ("confidence", "probability"):
        values = pd.to_numeric(table[column], errors="coerce")
        if len(bad := table["id"][~values.between(0, 1 + 1e-9)]):
            raise DataError(f"{path}: {column} is no number in 0..1 for image ids {name_some(bad)}; {AGAIN}")
    return table


def check_outputs(
    ids: npt.NDArray[np.int64], logits: Logits, features: npt.NDArray[np.float32], path: Path, classes: int
) -> None:
    """Raise a `DataError` unless ids are unique and each has C finite logits and finite features.

    Args:
        ids: int64 [n].
        path: of the file or the checkpoint that the outputs come from.
    """
    _refuse_doubles(pd.Series(ids), path)
    if logits.shape != (len(ids), classes) or len(features) != len(ids):
        raise DataError(
            f"{path}: holds logits {list(logits.shape)} and features {list(features.shape)} for "
            f"{len(ids)} images of {classes} classes; {AGAIN}"
        )
    finite = _finite_rows(logits) & _finite_rows(features)
    if not finite.all():
        raise DataError(
            f"{path}: the model's outputs are not finite for image ids {name_some(ids[~finite])}; "
            "its weights have diverged or the file is damaged: evaluate another checkpoint"
        )


def check_same_images(ids_a: "pd.Series[int]", path_a: Path, ids_b: "pd.Series[int]", path_b: Path) -> None:
    """Raise a `DataError` unless two columns of ids name the same images."""
    problems = [
        f"image ids {name_some(sorted(missing))} of {present_in} are missing in {missing_in}"
        for missing, present_in, missing_in in (
            (set(ids_a) - set(ids_b), path_a, path_b),
            (set(ids_b) - set(ids_a), path_b, path_a),
        )
        if missing
    ]
    if problems:
        raise DataError(f"{'; '.join(problems)}; evaluate both on the same images")


def check_against_samples(table: pd.DataFrame, samples: pd.DataFrame, path: Path) -> None:
    """Raise a `DataError` unless a predictions table has exactly the images of these samples, with their labels.

    Args:
        samples: rows of the sample table.
        path: of the predictions table.
    """
    missing = set(samples["id"]) - set(table["id"])
    foreign = set(table["id"]) - set(samples["id"])
    if missing or foreign:
        problems = [f"no prediction for image ids {name_some(sorted(missing))}"] * bool(missing)
        problems += [f"image ids {name_some(sorted(foreign))} are not in the split"] * bool(foreign)
        raise DataError(f"{path}: {', and '.join(problems)}; {AGAIN}")
    labels = table["id"].map(samples.set_index("id")["label"])
    if len(differing := table["id"][labels != table["label"]]):
        raise DataError(
            f"{path}: other labels than in the data for image ids {name_some(differing)}; {AGAIN}"
        )


def _read_outputs(
    folder: EvaluationDirectory, table: pd.DataFrame, classes: int
) -> tuple[Logits, npt.NDArray[np.float32]]:
    """Logits and features, in the order of the predictions table that they belong to."""
    path = folder.outputs_file
    ids, logits, features = _read_arrays(path, ["id", "logits", "features"])
    check_outputs(ids, logits, features, path, classes)
    check_same_images(table["id"], folder.predictions_file, pd.Series(ids), path)
    if not np.array_equal(ids, table["id"]):
        raise DataError(f"{path}: has its images in another order than predictions.csv; {AGAIN}")
    predicted = np.concatenate([block.argmax(axis=1) for _, block in arrays.blocks(logits)])
    differing = predicted != table["predicted"].to_numpy()
    if differing.any():
        raise DataError(
            f"{path}: says another class than predictions.csv for image ids {name_some(ids[differing])}; {AGAIN}"
        )
    return logits, features


def _finite_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    rows = [np.isfinite(block).all(axis=1) for _, block in arrays.blocks(values)]
    return np.concatenate([np.empty(0, np.bool_), *rows])


def _read_validation(folder: EvaluationDirectory, classes: int) -> Validation | None:
    path = folder.validation_file
    if not path.is_file():
        return None
    logits, label = _read_arrays(path, ["logits", "label"])
    if logits.shape != (len(label), classes) or not _finite_rows(logits).all():
        raise DataError(f"{path}: its logits are not finite numbers [{len(label)}, {classes}]; {AGAIN}")
    return Validation(logits, label)


def _refuse_doubles(ids: "pd.Series[int]", path: Path) -> None:
    if len(doubled := ids[ids.duplicated()].unique()):
        raise DataError(f"{path}: duplicate image ids {name_some(doubled)}; {AGAIN}")


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    try:
        table = pd.read_csv(path, dtype=TYPES, keep_default_na=False)
    except (ValueError, OverflowError) as error:  # pandas' own errors of reading are ValueErrors
        raise DataError(f"{path}: not a readable table ({' '.join(str(error).split())}); {AGAIN}") from error
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: the columns {missing} are missing; {AGAIN}")
    return table


def _read_arrays(path: Path, names: Sequence[str]) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    return arrays.read_npz(path, names, AGAIN)
