"""The pictures of a training: what is marked in them."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pipeline.plots import style, training_curves
from pipeline.runs.directory import RunDirectory


def epochs(lrs: list[float]) -> list[dict[str, Any]]:
    return [{"epoch": number, "lr": lr, "phase": "sgd"} for number, lr in enumerate(lrs, start=1)]


def marked(lrs: list[float]) -> list[float]:
    axes = Figure().subplots()
    training_curves._mark_drops(axes, epochs(lrs))  # a whole figure does not say which line marks a drop
    return [float(line.get_xdata()[0]) for line in axes.lines]  # type: ignore[index, arg-type]


def test_a_drop_is_marked_at_the_end_of_the_last_epoch_before_it() -> None:
    assert marked([1, 1, 1, 0.1, 0.1, 0.05, 0.05]) == [3, 5]


def test_a_rate_that_falls_all_the_time_has_no_drops() -> None:
    assert marked([1, 0.6, 0.3, 0.1, 0.03, 0.01]) == []


def test_a_small_step_down_is_not_marked() -> None:
    assert marked([1, 1, 0.9, 0.9]) == []


def test_validation_within_epochs_is_drawn_at_its_place_with_the_steps_above(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*LOOKS[:2], epoch(1), LOOKS[2], epoch(2)])
    )
    drawn: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, _: drawn.append(figure))
        training_curves.draw(RunDirectory(tmp_path))
    losses, accuracies = drawn[0].axes
    train, validation = losses.lines
    assert list(train.get_xdata()) == [1, 2]
    assert list(validation.get_xdata()) == [0.25, 0.5, 1, 1.5, 2]
    assert list(validation.get_ydata()) == [3, 2, 1.5, 1, 1.2]
    (above,) = accuracies.child_axes
    assert above.get_xlabel() == "step"
    assert [text.get_text() for text in accuracies.texts] == ["90.0%, step 12"]


LOOKS = [
    {"kind": "val", "step": step, "epoch": step / 8, "val_loss": loss, "val_top1": top1}
    for step, loss, top1 in ((2, 3, 0.1), (4, 2, 0.3), (12, 1, 0.9))
]


def epoch(number: int) -> dict[str, Any]:
    values = {"train_loss": 2.0, "train_top1": 0.5, "val_loss": [1.5, 1.2][number - 1], "val_top1": 0.5}
    return {"kind": "epoch", "step": 8 * number, "epoch": number, "lr": 1, "phase": "sgd", **values}


def test_each_switch_has_a_line_with_the_name_of_what_begins() -> None:
    axes = Figure().subplots()
    switch = {"kind": "phase", "epoch": 4.0, "phase": "sgd"}
    training_curves.mark_phases(axes, [{"kind": "epoch", "epoch": 4}, switch], "red")
    assert [line.get_xdata()[0] for line in axes.lines] == [4.0]  # type: ignore[index]
    assert [text.get_text() for text in axes.texts] == ["sgd from here"]


def test_a_figure_is_gone_when_it_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(epoch(1)) + "\n")
    gc.collect()
    gc.disable()  # as in a training, whose many lasting objects put the next collection off
    try:
        training_curves.draw(RunDirectory(tmp_path))
        left = [one for one in gc.get_objects() if type(one) is Figure]
    finally:
        gc.enable()
    assert (tmp_path / "curves.png").is_file()
    assert left == []
