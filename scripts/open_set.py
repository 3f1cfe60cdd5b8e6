"""The scores of unknown classes on an open-set split of a data set: frozen features, a linear head of the known classes.

    plumage data  --config configs/cub200_mobilenetv2_cpu.yaml
    plumage probe --config configs/cub200_mobilenetv2_cpu.yaml model.weights=WEIGHTS.pth
    python scripts/open_set.py SPLIT.json --config configs/cub200_mobilenetv2_cpu.yaml

SPLIT.json: {"known": [labels from 0], "unknown": [labels] or {"easy": [labels], ...}}, as the Semantic Shift Benchmark
has them (Vaze et al. 2022, arXiv:2110.06207); labels that the data have not are left out. The features are those that
`plumage probe` keeps in the run. Learned from are training images of the known classes; their validation images set the
thresholds, and folds over known classes promise. Test images of both are measured on, which counts as one reading of
test. The draws of other validation images, as many of each class, say how far a promise varies.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.answering import unknown_scores
from pipeline.common import arrays, console, seeding
from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.evaluation import evaluation_lock, readings
from pipeline.inference.linear_head import Images
from pipeline.runs.directory import ProbeDirectory, RunDirectory
from pipeline.unknown import find_threshold, folds, measures
from pipeline.unknown.measuring import Measured, Seen

KEPT = 0.95
DRAWS = 20


class OpenSet:
    """The images of an open-set split by what they are for; classes are counted anew, the known ones first."""

    def __init__(
        self, features: np.ndarray, data: prepare.Prepared, known: Iterable[int], unknown: Iterable[int]
    ):
        """features: of each row of the sample table, float32 [n, D]."""
        labels, split = data.labels, data.samples["split"].to_numpy()
        given = set(labels.tolist())
        self.known, self.unknown = (sorted(given.intersection(names)) for names in (known, unknown))
        place = {label: at for at, label in enumerate([*self.known, *self.unknown])}
        self.groups = np.array([place.get(label, -1) for label in labels])
        self.features = features
        is_known = (self.groups >= 0) & (self.groups < len(self.known))
        self.train, self.val = (np.flatnonzero(is_known & (split == name)) for name in ("train", "val"))
        self.test = np.flatnonzero(is_known & (split == "test"))
        self.strange = np.flatnonzero((self.groups >= len(self.known)) & (split == "test"))

    def images(self, rows: np.ndarray) -> Images:
        return Images(self.features[rows], self.groups[rows])

    def drawn(self, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Other training and validation rows, with as many of each class."""
        random, rows = seeding.generator("open set", draw), np.concatenate([self.train, self.val])
        counts = np.bincount(self.groups[self.val], minlength=len(self.known))
        val = [random.permutation(rows[self.groups[rows] == c])[:n] for c, n in enumerate(counts)]
        chosen = np.sort(np.concatenate(val))
        return np.setdiff1d(rows, chosen), chosen


def measure(
    split: OpenSet, train_rows: np.ndarray, val_rows: np.ndarray
) -> tuple[list[dict[str, Any]], float]:
    """What each score promises and shows, a row a score, and the top-1 of the head on test images of known classes."""
    train, val = split.images(train_rows), split.images(val_rows)
    find_threshold.check(train.labels, val.labels, KEPT)
    head = folds.head_of(train)

    def seen(rows: np.ndarray) -> Seen:
        images = split.images(rows)
        return Seen(head(images.features), images.features, images.labels)

    measured = Measured(seen(val_rows), seen(split.test), seen(split.strange))
    unseen = split.images(
        np.concatenate([train_rows, val_rows])
    )  # a frozen backbone has learned from none of these
    promises = folds.promises(train, val, unseen, 0, KEPT)
    rows = []
    for name in unknown_scores.NAMES:
        score = unknown_scores.fit(name, train)
        lowest = measures.threshold(measured.val.by(score).score, KEPT)
        rows.append({"name": name, **promises[name].as_object(), **measured.by(score, lowest)})
    return rows, float((measured.test.logits.argmax(axis=1) == measured.test.group).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("split", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS, help="of validation images; default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    data = prepare.load(config)
    folder = ProbeDirectory(RunDirectory(config.run_dir).probe_folder)
    ids, features = arrays.read_npz(folder.features_file, ["id", "features"], "run `plumage probe` first")
    if ids.tolist() != data.samples["id"].tolist():
        raise DataError(f"{folder.features_file}: features of other images; run `plumage probe` again")
    labels = json.loads(arguments.split.read_text())
    unknown = labels["unknown"]
    if isinstance(unknown, dict):
        unknown = [label for of_kind in unknown.values() for label in of_kind]
    split = OpenSet(features, data, labels["known"], unknown)
    with evaluation_lock.held(folder.evaluation("test")):
        complete = readings.begin(folder, SimpleNamespace(path=folder.features_file, step=0), "open set")
        rows, top1 = measure(split, split.train, split.val)
        complete(top1)
        draws = [measure(split, *split.drawn(draw))[0] for draw in range(arguments.draws)]
    result = {
        "classes": {"known": len(split.known), "unknown": len(split.unknown)},
        "images": {name: len(getattr(split, name)) for name in ("train", "val", "test", "strange")},
        "top1": top1,
        "kept": measures.promised(len(split.val), KEPT)._asdict(),
        "scores": [row | {"draws": over_draws([draw[at] for draw in draws])} for at, row in enumerate(rows)],
    }
    show(result, arguments.draws)
    console.put_out(json.dumps(result))


def over_draws(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, lowest and highest of the values over draws."""
    values = {
        "auroc": [row["unknown"]["auroc"]["value"] for row in rows],
        "test_kept": [row["test_kept"]["value"] for row in rows],
        "promised": [row["left_out"]["refused"]["value"] for row in rows],
        "refused": [row["unknown"]["refused"]["value"] for row in rows],
    }
    return {
        name: {"mean": float(np.mean(v)), "low": min(v), "high": max(v)} for name, v in values.items() if v
    }


def estimates(row: dict[str, Any]) -> list[dict[str, float]]:
    """What was found of a score on the data's own validation images, in the order of the table."""
    unknown = row["unknown"]
    return [
        *row["left_out"].values(),
        unknown["auroc"],
        unknown["fpr95"],
        row["test_kept"],
        unknown["refused"],
    ]


def show(result: dict[str, Any], draws: int) -> None:
    words = find_threshold.words
    console.show_table(
        f"{result['classes']} classes, {result['images']} images; top-1 of the known {result['top1']:.3f}",
        ["score", "left out: AUROC", "left out: refused", "AUROC", "FPR95", "test kept", "unknown refused"],
        [[row["name"], *map(words, estimates(row))] for row in result["scores"]],
    )
    if draws:
        columns = ["auroc", "test_kept", "promised", "refused"]
        cells = [[row["draws"][column] for column in columns] for row in result["scores"]]
        rows = [
            [row["name"], *(f"{c['mean']:.3f} ({c['low']:.3f} .. {c['high']:.3f})" for c in of_row)]
            for row, of_row in zip(result["scores"], cells, strict=True)
        ]
        console.show_table(
            f"over {draws} draws of validation: mean (lowest .. highest)", ["score", *columns], rows
        )
    console.say(f"promised to keep: {words(result['kept'])}")


if __name__ == "__main__":
    main()
