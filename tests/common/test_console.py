"""What a person reads goes to standard error: plain lines in a log file, bars on a terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.common import console


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a log file gets to see."""
    stream = io.StringIO()
    # its stream was chosen at import, and nothing else has to change it
    monkeypatch.setattr(console._console, "_file", stream)
    monkeypatch.setattr(console._console, "quiet", False)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_all_of_it_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    console.say("one")
    console.warn("two")
    console.fail("three")
    console.show_table("four", ["a"], [["b"]])
    with console.bar("five", 0):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("one\nwarning: two\nerror: three\nfour\na\nb\nfive  0/0 images")


def test_lines_are_neither_wrapped_nor_read_as_markup(log: io.StringIO) -> None:
    text = "[red]" + "a long path/" * 30 + " [/] :smile:"
    console.say(text)
    console.warn(text)
    assert log.getvalue() == f"{text}\nwarning: {text}\n"


def test_a_table_is_aligned_numbers_to_the_right(log: io.StringIO) -> None:
    rows = [["Wren", 1402, 0.5, "-1"], ["[b]Heermann Gull", 7, 0.98765, "+20"]]
    console.show_table("worst [classes]", ["class", "images", "accuracy", "change"], rows)
    assert log.getvalue().splitlines() == [
        "worst [classes]",
        "class             images  accuracy  change",
        "Wren               1,402    0.5000      -1",
        "[b]Heermann Gull       7    0.9877     +20",
    ]


def test_text_is_aligned_to_the_left_and_wide_letters_count_double(log: io.StringIO) -> None:
    console.show_table("names", ["n", "name", "also"], [[1, "翠鳥", "a"], [20, "gull", "b"]])
    assert log.getvalue().splitlines()[1:] == ["n   name  also", "1   翠鳥  a", "20  gull  b"]


def test_a_table_wider_than_80_columns_is_shown_in_full(log: io.StringIO) -> None:
    names = ["Yellow_bellied_Flycatcher_of_the_north", "Yellow_bellied_Flycatcher_of_the_south"]
    console.show_table("pairs", ["class a", "class b", "images"], [[*names, 1_234_567]])
    assert log.getvalue().splitlines()[2] == f"{names[0]}  {names[1]}  1,234,567"


def test_a_table_without_rows_has_its_columns(log: io.StringIO) -> None:
    console.show_table("none", ["class", "images"], [])
    assert log.getvalue() == "none\nclass  images\n"


def test_a_bar_in_a_log_file_is_a_line_now_and_then_and_one_at_the_end(
    log: io.StringIO, clock: Clock
) -> None:
    with console.bar("store", 1402) as bar:
        for _ in range(1402):
            clock.now += 0.0101
            bar.advance()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "store  991/1402 images  99 images/s  ETA 0:00:04"
    assert lines[1] == "store  1402/1402 images  99 images/s  in 0:00:14"


def test_a_bar_counts_what_was_done_before_but_not_as_its_own_speed(log: io.StringIO, clock: Clock) -> None:
    with console.bar("download", 10 << 20, "bytes", done=4 << 20) as bar:
        clock.now += 2
        bar.advance(2 << 20)
        assert bar.rate == 1 << 20
        assert bar.figures() == "6.0 MiB/10.0 MiB  1.0 MiB/s  ETA 0:00:04"
    assert log.getvalue() == "download  6.0 MiB/10.0 MiB  1.0 MiB/s  in 0:00:02\n"


def test_notes_stand_behind_the_figures(log: io.StringIO, clock: Clock) -> None:
    with console.bar("epoch 1", 96) as bar:
        clock.now += 4
        bar.advance(32, loss=5.298317, best="none")
        assert bar.figures() == "32/96 images  8 images/s  ETA 0:00:08  loss 5.298  best none"
        bar.advance(64)
    assert log.getvalue() == "epoch 1  96/96 images  24 images/s  in 0:00:04  loss 5.298  best none\n"


def test_an_item_counts_once_the_next_is_asked_for(log: io.StringIO, clock: Clock) -> None:
    done = []
    with console.bar("epoch 1", 70) as bar:
        for _ in bar.count("abc", [32, 32, 6]):
            clock.now += 1
            done.append(bar.done)
    assert done == [0, 32, 64]
    assert log.getvalue() == "epoch 1  70/70 images  23.3 images/s  in 0:00:03\n"


def test_a_bar_on_a_terminal_leaves_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, color_system=None, soft_wrap=True)
    monkeypatch.setattr(console, "_console", terminal)
    monkeypatch.setattr(console, "REDRAW_SECONDS", 0.0)
    with console.bar("store", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert "\r" in screen.getvalue()
    last = screen.getvalue().splitlines()[-1]
    assert "store  3/3 images" in last and "in 0:00:00" in last


def test_muted_nothing_is_said_but_failures(log: io.StringIO) -> None:
    console.mute()
    console.say("one")
    console.show_table("two", ["a"], [["b"]])
    with console.bar("three", 1) as bar:
        bar.advance()
    assert log.getvalue() == ""
    console.fail("it broke")
    assert log.getvalue() == "error: it broke\n"
