"""Cases, the processes they run in, and what counts as right.

A case is a hostile input and a call of the program on it. Each runs in processes of its own, forked from one
that has imported the program, with limits of time, memory and file size, in an empty folder. It ends in one of
three ways: refused in one sentence; taken, and the result checked; failed.
"""

import atexit
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60.0  # of one call, on a machine at work
MEMORY_BYTES = 12 << 30  # of address space: torch alone maps several GiB
FILE_BYTES = 2 << 30
GRACE_S = 15.0  # for helpers of a process (its fork server, its trackers) to follow it
USER_ERROR, STOPPED, BROKEN_CASE = 2, 75, 99
DESTRUCTIVE = re.compile(r"\b(delete|remove|rm -)\b", re.IGNORECASE)


class Failed(Exception):
    """The program did with an input what it must not do."""


@dataclass(frozen=True)
class Outcome:
    """How a call of the program ended."""

    argv: Sequence[str]
    code: int | None
    """exit code, the negative number of a signal, or None: still running when its time was over"""
    stdout: str
    stderr: str
    survivors: bool
    """whether it left a process behind"""

    @property
    def sentences(self) -> list[str]:
        """What it said as an error."""
        return [line for line in self.stderr.splitlines() if re.match(r"(plumage[^:]*: )?error: ", line)]

    def explain(self) -> str:
        """The call and the end of its output."""
        tail = "\n".join(self.stderr.splitlines()[-25:])
        return f"plumage {' '.join(self.argv)}\nexit code {self.code}\n{tail}"


class Call:
    """A process of the program, at work in a folder."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """before: done in the process ahead of the program, such as to mount a disk."""
        self.folder, self.argv = folder, argv
        self._output = folder / f".out.{time.monotonic_ns()}", folder / f".err.{time.monotonic_ns()}"
        for path in self._output:
            path.touch()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_the_program(environment or {}, before)

    def _become_the_program(self, environment: Mapping[str, str], before: Callable[[], None] | None) -> None:
        code = BROKEN_CASE
        try:
            os.setsid()
            atexit._clear()  # what the parent has to tidy up at its end
            for descriptor, path in zip((1, 2), self._output, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(n, "w", closefd=False), "utf-8") for n in (1, 2)
            )
            os.chdir(self.folder)
            os.environ.update(environment)
            if before is not None:
                before()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = _run(self.argv)
            atexit._run_exitfuncs()
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether it still runs; its exit code is kept."""
        if not hasattr(self, "_status"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return True
            self._status = status
        return False

    def end(self, seconds: float = SECONDS) -> Outcome:
        """Wait for its end, at most so long; nothing of it is left running."""
        deadline = time.monotonic() + seconds
        while running := self.running():
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        survivors = False if running else not self._group_is_gone()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if running:
            os.waitpid(self.pid, 0)
        code = None if running else os.waitstatus_to_exitcode(self._status)
        text = [path.read_text("utf-8", errors="replace") for path in self._output]
        return Outcome(self.argv, code, *text, survivors)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the program's process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _group_is_gone(self) -> bool:
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


def _run(argv: Sequence[str]) -> int:
    """As the entry point of `plumage` does: a bug prints its traceback and ends with 1."""
    from pipeline.cli.main import run

    try:
        return run(list(argv))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def call(folder: Path, *argv: str, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run the program to its end."""
    return Call(folder, argv, environment).end()


def must_succeed(folder: Path, *argv: str) -> Outcome:
    """Run the program on good input."""
    outcome = call(folder, *argv)
    if outcome.code != 0:
        raise Failed(f"good input was not taken: {outcome.explain()}")
    return outcome


def judge(
    outcome: Outcome, check: Callable[[Outcome], str | None] = lambda _: None, mine: bool = True
) -> str:
    """`refused` or `right`; anything else is `Failed`.

    Args:
        check: what is wrong with the result of a call that ended with 0, or None.
        mine: whether the input belongs to the user, who must never be told to delete it.
    """
    if outcome.code is None:
        raise Failed(f"still running after {SECONDS:.0f} s: {outcome.explain()}")
    if outcome.code == BROKEN_CASE:
        raise RuntimeError(f"the case itself is broken: {outcome.explain()}")
    if outcome.survivors:
        raise Failed(f"left a process behind: {outcome.explain()}")
    if outcome.code not in {0, USER_ERROR} or "Traceback (most recent call last)" in outcome.stderr:
        raise Failed(outcome.explain())
    if outcome.code == USER_ERROR:
        if len(outcome.sentences) != 1:
            raise Failed(f"{len(outcome.sentences)} sentences where one is due: {outcome.explain()}")
        if mine and DESTRUCTIVE.search(outcome.sentences[0]):
            raise Failed(f"advice that destroys: {outcome.explain()}")
        return "refused"
    if wrong := check(outcome):
        raise Failed(f"{wrong}: {outcome.explain()}")
    return "right"


@dataclass(frozen=True)
class Case:
    """A hostile input."""

    what: str
    """what is done, in words"""
    body: Callable[[Path], str]
    """folder -> `refused` or `right`; raises `Failed`"""


@dataclass
class Count:
    """What came of the cases of a class."""

    tried: int = 0
    refused: int = 0
    right: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, verdict: str, why: str) -> None:
        """Count one case."""
        self.tried += 1
        setattr(self, verdict, getattr(self, verdict) + 1)
        if verdict == "failed":
            self.failures.append(why)


def run_cases(name: str, cases: Iterator[Case], folder: Path, at_once: int) -> Count:
    """Run the cases, some of them at a time; the folders of those that failed stay."""
    count, working = Count(), dict[int, tuple[Case, Path]]()
    for number, case in enumerate(cases):
        if len(working) >= at_once:
            _collect(count, working)
        place = folder / f"{name}-{number}"
        place.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _work(case, place)
        working[pid] = case, place
    while working:
        _collect(count, working)
    return count


def _work(case: Case, place: Path) -> None:
    try:
        verdict, why = case.body(place), ""
    except Failed as failure:
        verdict, why = "failed", str(failure)
    except BaseException:
        verdict, why = "failed", f"the case itself is broken: {traceback.format_exc()}"
    (place / ".verdict").write_text(json.dumps([verdict, why]))
    os._exit(0)


def _collect(count: Count, working: dict[int, tuple[Case, Path]]) -> None:
    pid, _ = os.wait()
    case, place = working.pop(pid)
    verdict, why = json.loads((place / ".verdict").read_text())
    count.add(verdict, f"{place.name}  {case.what}\n{why}")
    if verdict != "failed":
        shutil.rmtree(place)


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A damaged copy of a file's content, and what was done to it."""
    ways: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "cut short": lambda: content[: draw.randrange(len(content))],
        "one byte less": lambda: content[:-1],
        "longer": lambda: content + draw.randbytes(draw.choice([1, 512])),
        "a byte changed": lambda: _changed(content, draw, 1),
        "many bytes changed": lambda: _changed(content, draw, 200),
        "a hole of zeros": lambda: _overwritten(content, draw, b"\0"),
        "a stretch of noise": lambda: _overwritten(content, draw, draw.randbytes(64)),
        "noise": lambda: draw.randbytes(len(content)),
        "another kind of file": lambda: b"\x89PNG\r\n\x1a\n" + content[:100],
    }
    way = draw.choice(sorted(ways))
    return way, ways[way]()


def _changed(content: bytes, draw: random.Random, times: int) -> bytes:
    changed = bytearray(content)
    for _ in range(times):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwritten(content: bytes, draw: random.Random, pattern: bytes) -> bytes:
    start = draw.randrange(len(content))
    length = min(len(content) - start, draw.choice([16, 1024, 65536]))
    return content[:start] + (pattern * length)[:length] + content[start + length :]
