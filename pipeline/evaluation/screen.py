"""An evaluation on one screen of the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.tables import read_csv
from pipeline.runs import predictions

WORST = 10


def show(folder: Path) -> None:
    """Print the worst classes, the most confused pairs, the headline, and where the files of RUN/eval/SPLIT are."""
    metrics_json = predictions.read_metrics(folder)
    per_class, pairs = (read_csv(folder / name) for name in ("per_class.csv", "confused_pairs.csv"))
    seen = per_class[per_class["n"] > 0]
    worst = seen.sort_values(["accuracy", "n"], ascending=[True, False]).head(WORST)
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
    for line in headline(metrics_json):
        console.say(line)
    report = folder / "report.html"
    console.say(f"report  {report if report.is_file() else folder}")


def headline(numbers: Mapping[str, Any]) -> Iterator[str]:
    """The numbers in a few lines, the accuracy and its interval first; what is no result is called so."""
    views = "" if numbers["tta"] == "none" else f", views: {numbers['tta']}"
    yield f"{numbers['split']}  {numbers['n']:,} images, {numbers['classes']} classes{views}"
    yield f"  top-1 {numbers['top1']:.4f}  (95 % interval {numbers['top1_low']:.4f} .. {numbers['top1_high']:.4f})"
    yield (
        f"  top-3 {numbers['top3']:.4f}  top-5 {numbers['top5']:.4f}  "
        f"mean per-class accuracy {numbers['per_class_mean']:.4f}  macro F1 {numbers['macro_f1']:.4f}"
    )
    yield f"  NLL {numbers['nll']:.4f}  Brier {numbers['brier']:.4f}  ECE {numbers['ece']:.4f}"
    if numbers["temperature"] is None:
        yield "  no validation images outside this split: no temperature was fitted"
    else:
        bound = ", a bound: validation does not determine it" if numbers["temperature_at_bound"] else ""
        fitted = f"fitted on {numbers['temperature_images']} validation images{bound}"
        yield (
            f"  at temperature {numbers['temperature']:.3f} ({fitted}): "
            f"NLL {numbers['nll_scaled']:.4f}  Brier {numbers['brier_scaled']:.4f}  ECE {numbers['ece_scaled']:.4f}"
        )
    yield f"  answering only the most confident 80 %: top-1 {numbers['top1_at_80_coverage']:.4f}"
    if "test_reads" in numbers:
        yield f"  the test split has been read {numbers['test_reads']} time(s) by this run"
    if "peek_gap" in numbers:
        gap = numbers["peek_gap"]
        yield f"  peek gap {gap['gap']:.4f} over {len(gap['top1'])} checkpoint(s): {gap['note']}"
