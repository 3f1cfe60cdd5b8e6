"""What `eval` leaves of a split, written and read back: every reader of stored predictions checks them here.

RUN/eval/SPLIT/predictions.csv    the predictions table (`pipeline.evaluation.metrics`)
RUN/eval/SPLIT/outputs.npz        id int64 [n], logits float32 [n, C], features float32 [n, D]
RUN/eval/SPLIT/validation.npz     the same of the validation images, with label int64 [n]; may be absent
RUN/eval/SPLIT/metrics.json       all scalar numbers
"""

import zipfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import files, tables
from pipeline.common.errors import DataError

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
NAMED_AT_MOST = 5
AGAIN = "run `eval` for this split again"

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outputs:
    """What the model said of n images: id int64 [n], logits float32 [n, C], features float32 [n, D]."""

    id: Ids
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Validation:
    """What it said of the validation images: logits float32 [n, C], label int64 [n]."""

    logits: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]


def folder_of(run: Path, split: str) -> Path:
    """Where the evaluation of a split stands in a run directory."""
    return run / "eval" / split


def write(
    folder: Path, predicted: pd.DataFrame, outputs: Outputs, validation: Validation | None = None
) -> None:
    """Write predictions and outputs; what an earlier evaluation left of validation goes away with it."""
    tables.write_csv(predicted, folder / "predictions.csv")
    _write_arrays(folder / "outputs.npz", vars(outputs))
    if validation is None:
        (folder / "validation.npz").unlink(missing_ok=True)
    else:
        _write_arrays(folder / "validation.npz", vars(validation))


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of `metrics.json`; a `DataError` says when it is missing or damaged."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    content: Any = files.read_json(path)
    if not isinstance(content, dict) or "split" not in content:
        raise DataError(f"{path}: does not hold the numbers of an evaluation; {AGAIN}")
    return content


def read_class_names(folder: Path) -> list[str]:
    """The names of the classes in the order of their labels, [C], as `per_class.csv` has them."""
    classes = _read_csv(folder / "per_class.csv", ["label", "class_name"])
    if classes["label"].tolist() != list(range(len(classes))):
        raise DataError(f"{folder / 'per_class.csv'}: its labels do not run from 0 to C-1; {AGAIN}")
    return classes["class_name"].tolist()


def read_predictions(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """The predictions table of an evaluation.

    Args:
        names: of the classes, [C].

    Raises:
        DataError: it is missing, has an image twice, a class that `names` does not hold, or a value
            that is not a number in its range.
    """
    path = folder / "predictions.csv"
    predicted = _read_csv(path, COLUMNS)
    if predicted.empty:
        raise DataError(f"{path}: no image stands there; {AGAIN}")
    _no_doubles(predicted["id"], path)
    for label, name in (("label", "class_name"), ("predicted", "predicted_name")):
        known = dict(enumerate(names))
        unknown = predicted[predicted[label].map(known) != predicted[name]]
        if len(unknown):
            said = list(
                dict.fromkeys(f"{a} ({b})" for a, b in zip(unknown[label], unknown[name], strict=True))
            )
            raise DataError(
                f"{path}: unknown class {_some(said)} in the columns {label} and {name}; there are {len(names)} "
                f"classes, 0 ({names[0]}) to {len(names) - 1} ({names[-1]}); {AGAIN}"
            )
    for column in ("confidence", "probability"):
        values = pd.to_numeric(predicted[column], errors="coerce")
        if len(bad := predicted["id"][~values.between(0, 1 + 1e-9)]):
            raise DataError(f"{path}: {column} is no number in 0..1 for image ids {_some(bad)}; {AGAIN}")
    return predicted


def read_outputs(folder: Path, predicted: pd.DataFrame, classes: int) -> Outputs:
    """The outputs that belong to a predictions table, in its order.

    Raises:
        DataError: they are missing or damaged, of other images, not finite, or say another class.
    """
    path = folder / "outputs.npz"
    outputs = Outputs(**_read_arrays(path, ["id", "logits", "features"]))
    check_outputs(outputs, path, classes)
    same_images(predicted["id"], path.with_name("predictions.csv"), pd.Series(outputs.id), path)
    if not np.array_equal(outputs.id, predicted["id"]):
        raise DataError(f"{path}: has its images in another order than predictions.csv; {AGAIN}")
    other = outputs.logits.argmax(axis=1) != predicted["predicted"].to_numpy()
    if other.any():
        raise DataError(
            f"{path}: says another class than predictions.csv for image ids {_some(outputs.id[other])}; {AGAIN}"
        )
    return outputs


def read_validation(folder: Path, classes: int) -> Validation | None:
    """What the evaluation kept of the validation images; None when there were none."""
    path = folder / "validation.npz"
    if not path.is_file():
        return None
    found = Validation(**_read_arrays(path, ["logits", "label"]))
    if found.logits.shape != (len(found.label), classes) or not np.isfinite(found.logits).all():
        raise DataError(f"{path}: its logits are not finite numbers [{len(found.label)}, {classes}]; {AGAIN}")
    return found


def check_outputs(outputs: Outputs, where: Path | str, classes: int) -> None:
    """Raise a `DataError` unless ids are unique and there are C finite logits for each."""
    _no_doubles(pd.Series(outputs.id), where)
    if outputs.logits.shape != (len(outputs.id), classes) or len(outputs.features) != len(outputs.id):
        raise DataError(
            f"{where}: holds logits {list(outputs.logits.shape)} and features {list(outputs.features.shape)} for "
            f"{len(outputs.id)} images of {classes} classes; {AGAIN}"
        )
    finite = np.isfinite(outputs.logits).all(axis=1) & np.isfinite(outputs.features).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{where}: the model's outputs are not finite for image ids {_some(outputs.id[~finite])}; "
            "its weights have diverged or the file is damaged: evaluate another checkpoint"
        )


def same_images(one: "pd.Series[int]", where: Path, other: "pd.Series[int]", where_other: Path) -> None:
    """Raise a `DataError` unless two columns of ids name the same images."""
    problems = [
        f"image ids {_some(sorted(missing))} of {have} are missing in {lack}"
        for missing, have, lack in (
            (set(one) - set(other), where, where_other),
            (set(other) - set(one), where_other, where),
        )
        if missing
    ]
    if problems:
        raise DataError(f"{'; '.join(problems)}; evaluate both on the same images")


def check_against(predicted: pd.DataFrame, samples: pd.DataFrame, where: Path) -> None:
    """Raise a `DataError` unless a predictions table has each of these rows of the sample table, and no others.

    Its labels have to be those of the sample table.
    """
    missing = set(samples["id"]) - set(predicted["id"])
    foreign = set(predicted["id"]) - set(samples["id"])
    if missing or foreign:
        what = [f"no prediction for image ids {_some(sorted(missing))}"] * bool(missing)
        what += [f"image ids {_some(sorted(foreign))} are not in the split"] * bool(foreign)
        raise DataError(f"{where}: {', and '.join(what)}; {AGAIN}")
    labels = predicted["id"].map(samples.set_index("id")["label"])
    if len(other := predicted["id"][labels != predicted["label"]]):
        raise DataError(f"{where}: other labels than in the data for image ids {_some(other)}; {AGAIN}")


def _no_doubles(ids: "pd.Series[int]", where: Path | str) -> None:
    if len(doubled := ids[ids.duplicated()].unique()):
        raise DataError(f"{where}: image ids {_some(doubled)} stand there twice; {AGAIN}")


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    try:
        found = pd.read_csv(path, dtype=TYPES, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a readable table ({' '.join(str(error).split())}); {AGAIN}") from error
    if missing := [name for name in columns if name not in found.columns]:
        raise DataError(f"{path}: the columns {missing} are missing; {AGAIN}")
    return found


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with files.replacing(path) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged, or without one of {list(names)} ({error}); {AGAIN}") from error


def _some(values: "Sequence[Any] | npt.NDArray[Any] | pd.Series[Any]") -> str:
    """`17, 23 (2 in all)`, with a few of the values when there are many."""
    shown = [str(value) for value in list(values)[:NAMED_AT_MOST]]
    more = ", ..." if len(values) > NAMED_AT_MOST else ""
    return f"{', '.join(shown)}{more} ({len(values):,} in all)"
