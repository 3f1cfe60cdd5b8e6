"""The pictures of a training: what is marked in them."""

from typing import Any

from matplotlib.figure import Figure

from pipeline.report import curves


def epochs(lrs: list[float]) -> list[dict[str, Any]]:
    return [{"epoch": number, "lr": lr, "phase": "sgd"} for number, lr in enumerate(lrs, start=1)]


def marked(lrs: list[float]) -> list[float]:
    axes = Figure().subplots()
    curves._mark_drops(axes, epochs(lrs))
    return [float(line.get_xdata()[0]) for line in axes.lines]  # type: ignore[index, arg-type]


def test_a_drop_is_marked_at_the_end_of_the_last_epoch_before_it() -> None:
    assert marked([1, 1, 1, 0.1, 0.1, 0.05, 0.05]) == [3, 5]


def test_a_rate_that_falls_all_the_time_has_no_drops() -> None:
    assert marked([1, 0.6, 0.3, 0.1, 0.03, 0.01]) == []


def test_a_small_step_down_is_not_marked() -> None:
    assert marked([1, 1, 0.9, 0.9]) == []


def test_each_switch_has_a_line_with_the_name_of_what_begins() -> None:
    axes = Figure().subplots()
    switch = {"kind": "phase", "epoch": 4.0, "phase": "sgd"}
    curves.mark_phases(axes, [{"kind": "epoch", "epoch": 4}, switch], "red")
    assert [line.get_xdata()[0] for line in axes.lines] == [4.0]  # type: ignore[index]
    assert [text.get_text() for text in axes.texts] == ["sgd from here"]
