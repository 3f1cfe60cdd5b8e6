"""Runs on the same images are compared: how far apart they are, and whether that is more than noise.

Runs of one configuration but for its seed are one group, told as mean +- sd. Each group is compared with
the first one; where all runs are of one group, each run with the first run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import files, tables
from pipeline.common.errors import DataError
from pipeline.config.key_effects import FREE
from pipeline.config.load import read_tree
from pipeline.evaluation import statistics, verdict
from pipeline.runs import predictions


@dataclass(frozen=True)
class ComparedRun:
    """A run's stored evaluation of a split; `recipe` is the digest of all but its seed."""

    name: str
    predicted: pd.DataFrame
    class_names: list[str]
    seed: int | None
    recipe: str

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """1 where the prediction is right, float64 [n]."""
        return np.asarray(self.predicted["label"] == self.predicted["predicted"], np.float64)


@dataclass(frozen=True)
class Group:
    """Runs of one configuration but for the seed."""

    name: str
    runs: list[ComparedRun]

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """The share of the runs that have an image right, float64 [n]."""
        return np.asarray(np.mean([run.right for run in self.runs], axis=0), np.float64)

    def about(self) -> dict[str, Any]:
        """name, runs, seeds, and top1 of each, its mean and its standard deviation (None for one run)."""
        each = [float(run.right.mean()) for run in self.runs]
        return {
            "name": self.name,
            "runs": [run.name for run in self.runs],
            "seeds": [run.seed for run in self.runs],
            "top1": each,
            "top1_mean": float(np.mean(each)),
            "top1_sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        }


def compare(paths: Sequence[Path], split: str, out: Path | None) -> dict[str, Any]:
    """Compare the stored evaluations of run directories; show it; return it as plain types.

    Args:
        out: a folder for comparison.json, classes.csv and changed.csv; None writes nothing.

    Raises:
        UserError: fewer than two runs, one twice, or evaluations that are missing, damaged, or of
            different images or classes.
    """
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise DataError(f"compare: {' '.join(map(str, paths))}: give two or more different run directories")
    short = len({path.resolve().name for path in paths}) == len(paths)
    runs = [read(path, split, path.resolve().name if short else str(path)) for path in paths]
    for path, run in zip(paths[1:], runs[1:], strict=True):
        _same(runs[0], paths[0], run, path, split)
    groups = grouped(runs)
    sides = groups if len(groups) > 1 else [Group(run.name, [run]) for run in runs]
    comparisons = [_against(sides[0], other) for other in sides[1:]]
    for found, p in zip(comparisons, statistics.holm([found["p"] for found in comparisons]), strict=True):
        found["p_adjusted"] = p
        found["verdict"] = verdict.words(found, len(runs[0].right), seeds_only=len(groups) == 1)
    result = {
        "split": split,
        "n": len(runs[0].right),
        "groups": [group.about() for group in groups],
        "comparisons": comparisons,
    }
    classes = pd.concat([_classes(sides[0], other) for other in sides[1:]], ignore_index=True)
    verdict.show(result, classes)
    if out is not None:
        changed = pd.concat([_changed(sides[0], other) for other in sides[1:]], ignore_index=True)
        tables.write_csv(classes, out / "classes.csv")
        tables.write_csv(changed, out / "changed.csv")
        files.write_json(out / "comparison.json", result)
    return result


def read(path: Path, split: str, name: str) -> ComparedRun:
    """The stored evaluation of a split in a run directory; a `UserError` names what is missing or damaged."""
    folder = predictions.folder_of(path, split)
    names = predictions.read_class_names(folder)
    predicted = predictions.read_predictions(folder, names).sort_values("id", ignore_index=True)
    settings = read_tree(path / "config.yaml")
    # The checkpoint and the views of an evaluation are part of what is compared.
    about = predictions.read_metrics(folder)
    seen = [Path(about.get("checkpoint", "")).name, about.get("tta", "none")]
    digest = files.digest_of([_without(settings, FREE), seen])
    return ComparedRun(name, predicted, names, settings.get("seed"), digest)


def grouped(runs: Sequence[ComparedRun]) -> list[Group]:
    """The runs by recipe, in the order of their first ones."""
    found: dict[str, list[ComparedRun]] = {}
    for run in runs:
        found.setdefault(run.recipe, []).append(run)
    return [Group(" + ".join(run.name for run in group), group) for group in found.values()]


def _without(tree: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    kept = {}
    for key, value in tree.items():
        if key not in keys:
            below = [name.removeprefix(f"{key}.") for name in keys if name.startswith(f"{key}.")]
            kept[key] = _without(value, below) if below and isinstance(value, dict) else value
    return kept


def _same(one: ComparedRun, path: Path, other: ComparedRun, path_other: Path, split: str) -> None:
    """Raise a `DataError` unless two runs predicted the same images of the same classes."""
    where, where_other = (predictions.folder_of(run, split) / "predictions.csv" for run in (path, path_other))
    predictions.same_images(one.predicted["id"], where, other.predicted["id"], where_other)
    differing = (one.predicted["path"] != other.predicted["path"]) | (
        one.predicted["class_name"] != other.predicted["class_name"]
    )
    if differing.any() or one.class_names != other.class_names:
        first = one.predicted["id"][differing].head(1).tolist()
        raise DataError(
            f"{where_other}: has other pictures or classes than {where}"
            f"{f', first for image id {first[0]}' if first else ''}; compare runs on the same data"
        )


def _against(a: Group, b: Group) -> dict[str, Any]:
    """b compared with a, in plain types; differences are b - a, shares of images 0..1."""
    gained, low, high = statistics.difference(a.right, b.right)
    single = len(a.runs) == len(b.runs) == 1
    only_a, only_b = (int((one.right > other.right).sum()) for one, other in ((a, b), (b, a)))
    by_class = _classes(a, b)["difference"].dropna()
    found: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "difference": gained,
        "low": low,
        "high": high,
        "images_better_in_a": only_a,
        "images_better_in_b": only_b,
        "classes_better_in_a": int((by_class < 0).sum()),
        "classes_better_in_b": int((by_class > 0).sum()),
        "test": "McNemar, exact" if single else "paired t-test over images",
        "p_images": statistics.mcnemar(only_a, only_b)
        if single
        else statistics.p_over_images(a.right, b.right),
        "p_seeds": None,
    }
    if min(len(a.runs), len(b.runs)) > 1:
        found["p_seeds"] = statistics.p_over_seeds(
            *([run.right.mean() for run in side.runs] for side in (a, b))
        )
    # To be more than noise, a difference has to be more than that of the images and that of the seeds.
    found["p"] = max(found["p_images"], found["p_seeds"] or 0.0)
    return found


def _classes(a: Group, b: Group) -> pd.DataFrame:
    """A row a class: a, b (the groups), class_name, n, accuracy_a, accuracy_b, difference, won, lost (images)."""
    each = pd.DataFrame(
        {
            "class_name": a.runs[0].predicted["class_name"],
            "n": 1,
            "accuracy_a": a.right,
            "accuracy_b": b.right,
            "won": b.right > a.right,
            "lost": b.right < a.right,
        }
    )
    how = {"n": "sum", "accuracy_a": "mean", "accuracy_b": "mean", "won": "sum", "lost": "sum"}
    found = each.groupby("class_name", sort=False).agg(how).reset_index()
    found.insert(4, "difference", found["accuracy_b"] - found["accuracy_a"])
    found.insert(0, "a", a.name)
    found.insert(1, "b", b.name)
    return found.sort_values(["difference", "class_name"], ascending=[False, True], ignore_index=True)


def _changed(a: Group, b: Group) -> pd.DataFrame:
    """The images that one has right more often: a, b, id, path, class_name, predicted_a, predicted_b, right_a, right_b.

    predicted_x are the names that the runs of x give, joined by |; right_x is the share of them that is right.
    """
    frame = a.runs[0].predicted[["id", "path", "class_name"]].copy()
    for side, group in (("a", a), ("b", b)):
        frame[f"predicted_{side}"] = list(_joined(group))
        frame[f"right_{side}"] = group.right
    frame.insert(0, "a", a.name)
    frame.insert(1, "b", b.name)
    changed: pd.DataFrame = frame[a.right != b.right]
    return changed


def _joined(group: Group) -> Iterator[str]:
    names = [run.predicted["predicted_name"] for run in group.runs]
    return ("|".join(dict.fromkeys(row)) for row in zip(*names, strict=True))
