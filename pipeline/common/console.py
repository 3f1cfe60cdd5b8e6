"""What a person reads while the program runs: lines, tables and progress bars.

All of it goes to standard error; standard output is for results. On a terminal a bar is drawn
in place; anywhere else (a log file, CI, a cluster) it becomes a plain line every few seconds.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipeline.common.errors import named
from pipeline.common.files import size_in_words

Item = TypeVar("Item")
PLAIN_LINE_SECONDS = 10.0
REDRAW_SECONDS = 0.2

_console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_signature = [""]  # in front of what any rank may say


def sign(name: str) -> None:
    """Print the name of this rank in front of its warnings and errors."""
    _signature[0] = f"{name}: "


def mute() -> None:
    """Print nothing more: every rank but the first is muted."""
    _console.quiet = True


def say(text: str, style: str | None = None) -> None:
    """Print one line; style: a style of rich, such as "yellow", used on a terminal only."""
    with named("standard error"):
        _console.print(text, style=style, markup=False)


def warn(text: str) -> None:
    """Print a warning."""
    say(f"warning: {_signature[0]}{text}", style="yellow")


def fail(text: str) -> None:
    """Print the error that ends the program; also a muted rank prints it."""
    _console.quiet = False
    with contextlib.suppress(OSError):  # the exit code says it where standard error cannot
        say(f"error: {_signature[0]}{text}", style="bold red")


def put_out(text: str) -> None:
    """Print a result to standard output; its reader may close the pipe early, as `head` does."""
    try:
        print(text, flush=True)
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:  # else Python complains once more as it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in full."""
    _console.print(title, style="bold", markup=False)
    for number, line in enumerate(table(columns, rows)):
        _console.print(line, style=None if number else "bold", markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; columns after the first are aligned to the right when they hold numbers.

    rich's own tables are cut to the width of the terminal, and to 80 columns in a log file.
    """
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    padded = []
    for position, column in enumerate(zip(*lines, strict=True)):
        width = max(map(cell_len, column))
        numeric = position > 0 and all(text[:1] in "0123456789-+." for text in column[1:])
        spaces = [" " * (width - cell_len(text)) for text in column]
        padded.append([s + t if numeric else t + s for s, t in zip(spaces, column, strict=True)])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


class Bar:
    """The progress of one pass: units done, units per second, time left."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.first, self.done, self.notes = done, done, ""
        self.started = self.printed = time.monotonic()
        self._live: Progress | None = None
        self._task = TaskID(0)

    def advance(self, count: int = 1, **notes: float | str) -> None:
        """Count `count` more units as done; `notes` (a loss, say) are shown behind the figures."""
        self.done += count
        if notes:
            self.notes = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in notes.items()
            )
        now = time.monotonic()
        if self._live is not None and now - self.printed >= REDRAW_SECONDS:
            self.printed = now
            self._live.update(self._task, completed=self.done, text=self.figures())
        elif self._live is None and now - self.printed >= PLAIN_LINE_SECONDS:
            self.printed = now
            say(f"{self.label}  {self.figures()}")

    def count(self, items: Iterable[Item], counts: Iterable[int]) -> Iterator[Item]:
        """Yield the items; an item counts, with its number of units, when the next one is requested."""
        for item, count in zip(items, counts, strict=True):
            yield item
            self.advance(count)

    @property
    def seconds(self) -> float:
        """Seconds since the bar appeared."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def rate(self) -> float:
        """Units per second since the bar appeared."""
        return (self.done - self.first) / self.seconds

    def figures(self) -> str:
        """`600/1402 images  210 images/s  ETA 0:00:04`."""
        if self.unit == "bytes":
            count = f"{size_in_words(self.done)}/{size_in_words(self.total)}"
            rate = f"{size_in_words(self.rate)}/s"
        else:
            count = f"{self.done}/{self.total} {self.unit}"
            rate = f"{self.rate:.3g} {self.unit}/s" if self.rate < 100 else f"{self.rate:.0f} {self.unit}/s"
        left = (self.total - self.done) / self.rate if self.rate else 0.0
        return f"{count}  {rate}  ETA {timedelta(seconds=round(left))}  {self.notes}".rstrip()


@contextmanager
def bar(label: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Bar]:
    """Show the progress of a pass over `total` units; `done` of them were done before."""
    current = Bar(label, total, unit, done)
    if not _console.is_terminal or _console.quiet:
        yield current
    else:
        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}")
        with Progress(*columns, console=_console, transient=True, refresh_per_second=5) as live:
            current._live = live
            current._task = live.add_task(label, total=total, completed=done, text="")
            yield current
    took = timedelta(seconds=round(current.seconds))
    say(f"{label}  {current.figures().split('  ETA')[0]}  in {took}  {current.notes}".rstrip())
