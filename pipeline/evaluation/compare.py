"""Runs on the same images are compared: how far apart they are, and whether that is more than noise.

Runs of one recipe are one group, shown as mean +- sd: their configurations differ in the seed and in keys that
change no number. A folder of `plumage repeat` is one group, too. Each group is compared with the first one; if there is
only one group, each run with the first run. Groups with the same seeds are compared seed by seed, whether their runs
were named by a folder or one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, tables
from pipeline.common.errors import DataError
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, flatten, read_tree
from pipeline.evaluation import (
    compare_otherwise,
    comparison_table,
    registered_comparison,
    statistics,
    training_state,
    verdict,
)
from pipeline.evaluation.registered_comparison import Reading
from pipeline.runs import predictions, repeats
from pipeline.runs.directory import RunDirectory
from pipeline.runs.repeats import Repeat


@dataclass(frozen=True)
class ComparedRun:
    """A run's stored evaluation of a split; `recipe` is a digest of what determines its numbers, but for the seed."""

    name: str
    path: Path
    """its predictions.csv"""
    table: pd.DataFrame
    """the predictions, sorted by image id"""
    class_names: list[str]
    seed: int | None
    recipe: str
    reading: Reading
    """whether it was registered"""
    repeat: str | None = None
    """the folder of `plumage repeat` that it was named with; None: it was named itself"""

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """1 where the prediction is right, float64 [n]."""
        return np.asarray(self.table["label"] == self.table["predicted"], np.float64)


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, or of one folder of `plumage repeat`."""

    name: str
    runs: list[ComparedRun]

    @cached_property
    def by_seed(self) -> dict[int, ComparedRun] | None:
        """The runs by their seeds; None where a seed is not known, or is that of two."""
        found = {run.seed: run for run in self.runs if run.seed is not None}
        return found if len(found) == len(self.runs) else None

    @cached_property
    def right(self) -> npt.NDArray[np.float64]:
        """The share of the runs that predict an image right, float64 [n]."""
        return np.asarray(np.mean([run.right for run in self.runs], axis=0), np.float64)

    @cached_property
    def rights(self) -> npt.NDArray[np.float64]:
        """`right` of each run: [S, n]."""
        return np.stack([run.right for run in self.runs])

    def with_seeds_of(self, other: "Group") -> "Group | None":
        """The runs in the order of the seeds of the other; None where these are not the same, two or more."""
        a, b = other.by_seed, self.by_seed
        if a is None or b is None or len(a) < 2 or a.keys() != b.keys():
            return None
        return Group(self.name, [b[seed] for seed in a])

    @property
    def predictions(self) -> tuple[str, list[pd.DataFrame]]:
        """The name, and the predictions of each run."""
        return self.name, [run.table for run in self.runs]

    @property
    def readings(self) -> list[Reading]:
        """Of each run."""
        return [run.reading for run in self.runs]

    def summary(self) -> dict[str, Any]:
        """name; runs, seeds and top1, one a run; top1_mean; top1_sd, the standard deviation (None for one run)."""
        top1 = [float(run.right.mean()) for run in self.runs]
        return {
            "name": self.name,
            "runs": [run.name for run in self.runs],
            "seeds": [run.seed for run in self.runs],
            "top1": top1,
            "top1_mean": float(np.mean(top1)),
            "top1_sd": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
        }


def compare_runs(paths: Sequence[Path], split: str, out: Path | None) -> dict[str, Any]:
    """Compare the stored evaluations of run directories; show the result and return it as plain types.

    Args:
        out: a folder for comparison.json, comparisons.tex and .csv, classes.csv and changed.csv; None writes nothing.

    Raises:
        UserError: fewer than two runs, or a run twice; evaluations that are missing, damaged, or of
            different images or classes.
    """
    runs, directories = _read_all(paths, split)
    groups = grouped(runs)
    _warn_of_equal_seeds(groups)
    base, *rest = groups if len(groups) > 1 else [Group(run.name, [run]) for run in runs]
    by_seed = [group.with_seeds_of(base) for group in rest]
    pairs = [(paired or group, paired is not None) for paired, group in zip(by_seed, rest, strict=True)]
    comparisons = [_compare_groups(base, group, paired) for group, paired in pairs]
    p_values = [comparison["p"] for comparison in comparisons]
    for comparison, p in zip(comparisons, statistics.holm(p_values), strict=True):
        comparison["p_adjusted"] = p
        comparison["verdict"] = verdict.sentence(comparison, len(runs[0].right), seeds_only=len(groups) == 1)
    measures = compare_otherwise.measures(directories, split, runs[0].class_names)
    result = {
        "split": split,
        "n": len(runs[0].right),
        "protocol": registered_comparison.judge(
            [group.readings for group in groups], split, [comparison["test"] for comparison in comparisons]
        ),
        "groups": [group.summary() for group in groups],
        "comparisons": comparisons,
        "otherwise": [
            compare_otherwise.compare(measure, base.predictions, group.predictions, paired=paired)
            for group, paired in pairs
            for measure in measures
        ],
    }
    classes = pd.concat([_classes(base, group) for group in rest], ignore_index=True)
    verdict.show(result, classes)
    if out is not None:
        changed = pd.concat([_changed(base, group) for group in rest], ignore_index=True)
        tables.write_csv(classes, out / "classes.csv")
        tables.write_csv(changed, out / "changed.csv")
        files.write_json(out / "comparison.json", result)
        comparison_table.write(result, out)
    return result


def _read_all(paths: Sequence[Path], split: str) -> tuple[list[ComparedRun], list[RunDirectory]]:
    """The runs that are named, or lie in the repeats that are, and their folders.

    Raises:
        UserError: see `compare_runs`.
    """
    repeated = [repeats.read(path) for path in paths]
    runs = [run for path, repeat in zip(paths, repeated, strict=True) for run in _runs_of(path, repeat)]
    if len(paths) < 2 or len({run.resolve() for run, _ in runs}) < len(runs):
        raise DataError(f"compare: {' '.join(map(str, paths))}: give two or more different run directories")
    short = len({run.resolve().name for run, _ in runs}) == len(runs)
    found = [read(run, split, run.resolve().name if short else str(run), repeat) for run, repeat in runs]
    for run in found[1:]:
        check_same_data(found[0], run)
    return found, [RunDirectory(run) for run, _ in runs]


def _runs_of(path: Path, repeat: Repeat | None) -> list[tuple[Path, str | None]]:
    """The run of a path, or those of its repeat, with the repeat's folder."""
    return [(path, None)] if repeat is None else [(run, str(path)) for run in repeat.runs]


def read(path: Path, split: str, name: str, repeat: str | None = None) -> ComparedRun:
    """The stored evaluation of a split in a run directory; a `UserError` names what is missing or damaged."""
    run = RunDirectory(path)
    folder = run.evaluation(split)
    training_state.warn_of_unfinished(run)
    names = predictions.read_class_names(folder)
    table = predictions.read_table(folder, names).sort_values("id", ignore_index=True)
    settings = read_tree(run.config_file)
    metrics = predictions.read_metrics(folder)
    evaluation = [Path(metrics.get("checkpoint", "")).name, predictions.views(metrics)]
    if "soup" in run.read_environment():  # no run of the recipe, but a mean of some
        evaluation.append("soup")
    recipe = files.digest_of([_settings_of_recipe(settings), evaluation])
    seed = settings.get("seed")
    reading = Reading(run, seed, metrics.get("protocol"))
    return ComparedRun(name, folder.predictions_file, table, names, seed, recipe, reading, repeat)


def _settings_of_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys that change a number, but for the seed, with their values.

    Refits of several seeds are of one recipe: of which run each is, and so how long it is, follows from the seed.
    """
    recipe = {
        key: value
        for key, value in flatten(completed(settings))
        if key != "seed" and effect_of(key).changes_numbers
    }
    if recipe["train.refit"] is not None:
        recipe |= {"train.refit": True, "train.max_steps": None}
    return recipe


def grouped(runs: Sequence[ComparedRun]) -> list[Group]:
    """The runs by their folder of `plumage repeat` or by recipe, in the order of their first ones."""
    together: dict[tuple[str | None, str], list[ComparedRun]] = {}
    for run in runs:
        together.setdefault((run.repeat, run.recipe if run.repeat is None else ""), []).append(run)
    return [
        Group(repeat or " + ".join(run.name for run in group), group)
        for (repeat, _), group in together.items()
    ]


def _warn_of_equal_seeds(groups: Sequence[Group]) -> None:
    """Say where runs of a group have one seed: they differ by the machine alone, which is no spread of seeds."""
    for group in groups:
        seeds = [run.seed for run in group.runs if run.seed is not None]
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            console.warn(
                f"{group.name}: seed {', '.join(map(str, twice))} is that of several runs, which are not a sample of "
                "seeds; leave all but one out"
            )


def check_same_data(a: ComparedRun, b: ComparedRun) -> None:
    """Raise a `DataError` unless two runs predicted the same images of the same classes."""
    predictions.check_same_images(a.table["id"], a.path, b.table["id"], b.path)
    differing = (a.table["path"] != b.table["path"]) | (a.table["class_name"] != b.table["class_name"])
    if differing.any() or a.class_names != b.class_names:
        first = a.table["id"][differing].head(1).tolist()
        raise DataError(
            f"{b.path}: has other pictures or classes than {a.path}"
            f"{f', first for image id {first[0]}' if first else ''}; compare runs on the same data"
        )


def _compare_groups(a: Group, b: Group, paired: bool) -> dict[str, Any]:
    """b compared with a, in plain types; differences are b - a of shares of images, -1..1.

    Args:
        paired: whether the runs of both have the same seeds, in the same order.
    """
    gain, low, high = statistics.difference(a.right, b.right)
    only_a, only_b = int((a.right > b.right).sum()), int((b.right > a.right).sum())
    by_class = _classes(a, b)["difference"].dropna()
    varied = statistics.difference_varies(a.right, b.right)
    return {
        "a": a.name,
        "b": b.name,
        "difference": gain,
        "low": low if varied else None,
        "high": high if varied else None,
        "images_better_in_a": only_a,
        "images_better_in_b": only_b,
        "classes_better_in_a": int((by_class < 0).sum()),
        "classes_better_in_b": int((by_class > 0).sum()),
        "interval_over": compare_otherwise.interval_over(len(a.runs), len(b.runs)),
        **(_of_one_run_each(only_a, only_b, len(a.right)) if len(a.runs) == len(b.runs) == 1 else {}),
        **(_over_seeds(a, b, paired) if max(len(a.runs), len(b.runs)) > 1 else {}),
    }


def _of_one_run_each(only_a: int, only_b: int, images: int) -> dict[str, Any]:
    """The test over images alone; one image has no p."""
    p = statistics.mcnemar(only_a, only_b) if images > 1 else None
    return {"test": statistics.OVER_IMAGES, "p_images": p, "p_seeds": None, "p": p}


def _over_seeds(a: Group, b: Group, paired: bool) -> dict[str, Any]:
    """What several seeds of a group add: the test and the interval over seeds and images together.

    p_images, p_seeds: as if there were no other seeds, and no other images; neither decides anything.
    """
    both = statistics.difference_over_seeds(a.rights, b.rights, paired=paired)
    low, high = (None, None) if both.interval is None else np.clip(both.interval, -1, 1).tolist()
    of_seeds = statistics.p_over_paired_seeds if paired else statistics.p_over_seeds
    several = min(len(a.runs), len(b.runs)) > 1
    return {
        "test": statistics.PAIRED if paired else statistics.APART,
        "p_images": statistics.p_over_images(a.right, b.right),
        "p_seeds": of_seeds(a.rights.mean(axis=1), b.rights.mean(axis=1)) if several else None,
        "p": both.p,
        "low_over_seeds": low,
        "high_over_seeds": high,
    }


def _classes(a: Group, b: Group) -> pd.DataFrame:
    """A row a class: a, b (the groups), class_name, n, accuracy_a, accuracy_b, difference, won, lost (images)."""
    images = pd.DataFrame(
        {
            "class_name": a.runs[0].table["class_name"],
            "n": 1,
            "accuracy_a": a.right,
            "accuracy_b": b.right,
            "won": b.right > a.right,
            "lost": b.right < a.right,
        }
    )
    aggregates = {"n": "sum", "accuracy_a": "mean", "accuracy_b": "mean", "won": "sum", "lost": "sum"}
    classes = images.groupby("class_name", sort=False).agg(aggregates).reset_index()
    classes.insert(4, "difference", classes["accuracy_b"] - classes["accuracy_a"])
    classes.insert(0, "a", a.name)
    classes.insert(1, "b", b.name)
    return classes.sort_values(["difference", "class_name"], ascending=[False, True], ignore_index=True)


def _changed(a: Group, b: Group) -> pd.DataFrame:
    """The images that one group predicts right more often than the other.

    Columns: a, b (the groups), id, path, class_name; predicted_a, predicted_b: the names that the runs of a group
    predict, joined by |; right_a, right_b: the share of its runs that are right.
    """
    frame = a.runs[0].table[["id", "path", "class_name"]].copy()
    for side, group in (("a", a), ("b", b)):
        frame[f"predicted_{side}"] = list(_predicted_names(group))
        frame[f"right_{side}"] = group.right
    frame.insert(0, "a", a.name)
    frame.insert(1, "b", b.name)
    changed: pd.DataFrame = frame[a.right != b.right]
    return changed


def _predicted_names(group: Group) -> Iterator[str]:
    names = [run.table["predicted_name"] for run in group.runs]
    return ("|".join(dict.fromkeys(row)) for row in zip(*names, strict=True))
