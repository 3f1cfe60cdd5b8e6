"""An evaluation on one screen of the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.common import console
from pipeline.common.errors import name_some
from pipeline.common.tables import read_csv
from pipeline.evaluation import thresholds
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory

WORST = 10


def show(folder: EvaluationDirectory) -> None:
    """Print the worst classes, the most confused pairs, the headline, and the path of the report."""
    per_class, pairs = read_csv(folder.table("per_class")), read_csv(folder.table("confused_pairs"))
    with_images = per_class[per_class["n"] > 0]
    worst = with_images.sort_values(["accuracy", "n"], ascending=[True, False]).head(WORST)
    console.show_table(
        "worst classes",
        ["class", "images", "correct", "accuracy", "95 % interval"],
        [
            [
                row.class_name,
                row.n,
                row.correct,
                row.accuracy,
                f"{row.accuracy_low:.2f} .. {row.accuracy_high:.2f}",
            ]
            for row in worst.itertuples()
        ],
    )
    if len(pairs):
        console.show_table(
            "most confused pairs",
            ["class a", "class b", "images", "a as b", "b as a"],
            [list(row[1:]) for row in pairs.head(WORST).itertuples()],
        )
    if len(untaught := per_class.loc[per_class["train_images"] == 0, "class_name"]):
        console.warn(
            f"no training image of {name_some(untaught)}: these classes were never taught, and what is said of them "
            "means nothing"
        )
    for line in headline(predictions.read_metrics(folder)):
        console.say(line)
    for line in thresholds.in_words(folder):
        console.say(line)
    report = folder.report_file
    console.say(f"report  {report if report.is_file() else folder.path}")


def headline(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The metrics in a few lines, accuracy and its interval first; a peek gap with its warning."""
    shown = predictions.views(metrics)
    views = "" if shown == "none" else f", views: {shown}"
    yield f"{metrics['split']}  {metrics['n']:,} images, {metrics['classes']} classes{views}"
    if "training" in metrics:
        yield f"  of a training that had not finished ({metrics['training']}): epoch {metrics['epoch']}"
    if "refit" in metrics:
        yield f"  learned from train and validation, as a refit of {metrics['refit']}"
    if "ties" in metrics:
        yield f"  {metrics['ties']:,} images have several classes in first place; the lowest label counts"
    yield f"  top-1 {metrics['top1']:.4f}  (95 % interval {metrics['top1_low']:.4f} .. {metrics['top1_high']:.4f})"
    for name, by in metrics.get("label_sets", {}).items():
        yield (
            f"  top-1 {by['top1']:.4f}  ({by['top1_low']:.4f} .. {by['top1_high']:.4f}) by the labels of {name}: "
            f"{by['relabelled']:,} other labels, {by['left_out']:,} images left out, {by['n']:,} scored"
        )
    yield (
        f"  top-3 {metrics['top3']:.4f}  top-5 {metrics['top5']:.4f}  "
        f"mean per-class accuracy {metrics['per_class_mean']:.4f}  macro F1 {metrics['macro_f1']:.4f}"
    )
    yield f"  NLL {metrics['nll']:.4f}  Brier {metrics['brier']:.4f}  ECE {metrics['ece']:.4f}"
    if metrics["temperature"] is None:
        yield "  no validation images outside this split: no temperature was fitted"
    else:
        bound = ", a bound: validation does not determine it" if metrics["temperature_at_bound"] else ""
        fitted = f"fitted on {metrics['temperature_images']} validation images{bound}"
        yield (
            f"  at temperature {metrics['temperature']:.3f} ({fitted}): "
            f"NLL {metrics['nll_scaled']:.4f}  Brier {metrics['brier_scaled']:.4f}  ECE {metrics['ece_scaled']:.4f}"
        )
    yield f"  answering only the most confident 80 %: top-1 {metrics['top1_at_80_coverage']:.4f}"
    yield from _sets(metrics.get("prediction_sets", {}))
    yield from _mistakes(metrics.get("mistakes"))
    if "test_reads" in metrics:
        yield f"  the test split has been read {metrics['test_reads']} time(s) by this run"
    if "protocol" in metrics:
        yield f"  {protocol_in_words(metrics['protocol'])}"
    if "peek_gap" in metrics:
        gap = metrics["peek_gap"]
        yield f"  peek gap {gap['gap']:.4f} over {len(gap['top1'])} checkpoint(s): {gap['note']}"


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """`confirmatory: as arm a of ..., registered ...`, or `exploratory: ...` with the reasons."""
    if protocol["reasons"]:
        return f"{protocol['status']}: {'; '.join(protocol['reasons'])}"
    return (
        f"{protocol['status']}: as arm {protocol['arm']} of {protocol['registration']} "
        f"({protocol['digest'][:12]}), registered {protocol['written']}; its primary number is {protocol['number']}"
    )


def _sets(rules: Mapping[str, Any]) -> Iterator[str]:
    for method, rule in rules.items():
        if rule["threshold"] is None:
            yield f"  prediction sets: {rule['n']} validation images are too few for {rule['coverage']:.0%}"
            return
        yield (
            f"  prediction sets for {rule['coverage']:.0%} ({method}): {rule['size']:.2f} classes, "
            f"{rule['covered']:.4f} covered  ({rule['covered_low']:.4f} .. {rule['covered_high']:.4f})"
        )


def _mistakes(mistakes: Mapping[str, Any] | None) -> Iterator[str]:
    if mistakes is None:
        return
    ranks = mistakes["ranks"][1:]
    yield "  right " + ", ".join(f"{row['rank']} {row['accuracy']:.4f}" for row in ranks)
    if mistakes["height"] is not None:
        yield (
            f"  mean height of a mistake in the hierarchy {mistakes['height']:.2f} of {len(ranks) + 1}  "
            f"({mistakes['height_low']:.2f} .. {mistakes['height_high']:.2f})"
        )
