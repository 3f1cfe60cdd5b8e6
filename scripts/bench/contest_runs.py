"""The runs of a contest: who runs with which settings, in which order, and one run as a process. Each leaves a JSON."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import contest_ours
from contest_scores import Clock, Point, Result, epoch_seconds, epochs_within, score
from contest_world import DRIVERS, MODEL, hub, photographs, python_of
from measuring import Options, machine

from pipeline.common import files

OURS = "plumage"
SEEDS = (0, 1, 2)
IDLE = 0.5
"""load below which a machine is taken for idle"""


@dataclass(frozen=True)
class Contestant:
    """A way to fine-tune, as one of contestants/run_DRIVER.py does it."""

    name: str
    driver: str
    rates: tuple[float, ...]
    """learning rates; the first is the default of its documentation"""
    environment: str = ""
    """of contestants/ENVIRONMENT.txt; empty: that of this program"""
    tuned: bool = False

    @property
    def first(self) -> tuple[float, int, int]:
        """Rate, seed and epochs of the run that shows how long an epoch takes."""
        return self.rates[0], SEEDS[0], 1


CONTESTANTS = (
    Contestant("timm, tuned", "timm", (0.02, 0.06, 0.007), tuned=True),
    Contestant("fastai", "fastai", (2e-3, 6e-3, 7e-4), "fastai"),
    Contestant("torchvision, tuned", "torchvision", (0.0125, 0.004, 0.04), tuned=True),
    Contestant("timm", "timm", (0.05, 0.15, 0.017)),
    Contestant("the article's script", "article", (2e-3, 6e-3, 7e-4)),
    Contestant("torchvision", "torchvision", (0.0125, 0.004, 0.04)),
    Contestant("Hugging Face Trainer", "huggingface", (5e-5, 5e-4, 1.5e-4), "huggingface"),
    Contestant("AutoGluon, medium_quality", "autogluon", (1e-4, 1e-3, 3e-4), "autogluon"),
)
ABSENT = "Ultralytics cannot take these weights: its YAML takes networks of torchvision, and this one is not among them"


class Run(NamedTuple):
    """What is run; of ours the recipe has the rate and the epochs, and here are zeros."""

    contestant: str
    lr: float
    seed: int
    epochs: int


def plan(
    contestants: Sequence[Contestant], results: Mapping[str, Sequence[Result]], clock: Clock, horizon_s: float
) -> Iterator[Run]:
    """What has not been run, the most telling first; to be asked anew after each run, for validation chooses the rate.

    Ours; each contestant's default rate, first for one epoch, which says how many fit into the horizon; the other
    rates; then the other seeds of what validation has chosen.
    """

    def due(name: str, lr: float, seed: int, epochs: int) -> Iterator[Run]:
        done = {(one.lr, one.seed, one.epochs) for one in results.get(name, ())}
        if (lr, seed, epochs) not in done:
            yield Run(name, lr, seed, epochs)

    whole = {}
    for one in contestants:
        first = [run for run in results.get(one.name, ()) if (run.lr, run.seed, run.epochs) == one.first]
        if pace := epoch_seconds(first, clock):
            whole[one.name] = epochs_within(horizon_s, *pace)
    yield from due(OURS, 0.0, SEEDS[0], 0)
    for one in contestants:
        yield from due(one.name, *one.first)
        if one.name in whole:
            yield from due(one.name, one.rates[0], SEEDS[0], whole[one.name])
    for one in contestants:
        for lr in one.rates[1:] if one.name in whole else ():
            yield from due(one.name, lr, SEEDS[0], whole[one.name])
    for seed in SEEDS[1:]:
        yield from due(OURS, 0.0, seed, 0)
        for one in contestants:
            if chosen := score(results.get(one.name, ()), clock):
                yield from due(one.name, chosen.lr, seed, chosen.epochs)


class Contest:
    """A contest's folder, and what is run there.

    Results lie in `folder`, one JSON a run; they hold for these photographs and these weights.
    """

    def __init__(self, options: Options, recipe: Path, clock: Clock, horizon_s: float) -> None:
        """Make photographs and weights ready.

        Args:
            options: of the bench.
            recipe: the YAML file of ours.
            clock: wall seconds; or processor seconds, for a machine that is busy otherwise.
            horizon_s: seconds of that clock that a run may take; its schedule is made for them.
        """
        self.options, self.recipe, self.clock, self.horizon_s = options, recipe, clock, horizon_s
        self.photographs, self.hub = photographs(options), hub(options)
        self.folder = (
            options.folder / "contest" / f"results-{self.photographs.name[-8:]}-{self.hub.name[-8:]}"
        )
        self.folder.mkdir(exist_ok=True)
        self.digest = files.digest_of_file(recipe)[:8]
        self.problems: dict[str, str] = {}
        """contestant: why it could not be run"""
        self.contestants = CONTESTANTS
        if options.tiny:  # nothing is installed for a trial of the bench itself
            self.contestants = tuple(one for one in CONTESTANTS if one.driver == "article")

    def results(self) -> list[Result]:
        """Finished runs, and of ours those of the recipe as it is now."""
        return [one for one in read_results(self.folder) if one.recipe in ("", self.digest)]

    def missing(self) -> Iterator[Run]:
        """What has not been run, the most telling first."""
        contestants = [one for one in self.contestants if one.name not in self.problems]
        runs = plan(contestants, by_contestant(self.results()), self.clock, self.horizon_s)
        return itertools.islice(runs, 2) if self.options.tiny else runs

    def run(self, run: Run, until: float) -> bool:
        """Run it, unless it is not expected to end by `until` (time.monotonic()); whether it is finished."""
        left_s = until - time.monotonic()
        expected_s = self.expected_wall_s(run)
        if expected_s > left_s:
            return False
        idle = is_idle()
        try:
            content = self._run_ours(run) if run.contestant == OURS else self._run_driver(run, left_s)
        except subprocess.CalledProcessError as error:
            self.problems[run.contestant] = last_line(error.stderr)
            return False
        except subprocess.TimeoutExpired:
            return False
        about = {"is_idle": idle, "threads": len(os.sched_getaffinity(0)), "machine": machine()}
        words = [run.contestant.replace(" ", "_"), f"lr{run.lr:g}", f"{run.epochs}epochs", f"seed{run.seed}"]
        with files.replacing(self.folder / ("-".join(words) + ".json")) as part:
            part.write_text(json.dumps({**run._asdict(), **content, **about}, indent=1), encoding="utf-8")
        return True

    def expected_wall_s(self, run: Run) -> float:
        """By earlier runs of the contestant; 0: there is none."""
        results = by_contestant(self.results()).get(run.contestant, [])
        if run.contestant == OURS:
            return max((one.points[-1].wall_s for one in results), default=0.0)
        known = epoch_seconds(results, "wall_s")
        return 0.0 if known is None else known[0] + known[1] * run.epochs

    def _run_ours(self, run: Run) -> dict[str, Any]:
        weights = [word for word in self.options.overrides if word.startswith("model.weights=")]
        words = ["data.source=folder", f"data.path={self.photographs}", *weights, f"seed={run.seed}"]
        if self.options.tiny:
            words += ["train.epochs=1", "schedule.warmup_epochs=0"]
        folder = self.options.folder / "contest" / "ours"
        return {
            "ready": None,
            "points": contest_ours.run(self.recipe, words, folder),
            "recipe": self.recipe.name,
        }

    def _run_driver(self, run: Run, left_s: float) -> dict[str, Any]:
        contestant = next(one for one in self.contestants if one.name == run.contestant)
        python = python_of(contestant.environment, self.options)
        work = self.options.folder / "contest" / "work"
        work.mkdir(exist_ok=True)
        out, task, log = (work / f"{contestant.driver}.{end}" for end in ("out", "task", "log"))
        out.unlink(missing_ok=True)
        fields = asdict(contestant) | run._asdict() | {"photographs": str(self.photographs), "model": MODEL}
        task.write_text(json.dumps(fields | {"out": str(out), "started": time.time()}))
        environment = os.environ | {
            "HF_HUB_CACHE": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        }
        command = [python, DRIVERS / f"run_{contestant.driver}.py", task]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=work, start_new_session=True
            )
            try:
                process.wait(left_s)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, stderr=log.read_text())
        return dict(json.loads(out.read_text()))


def is_idle() -> bool:
    """Whether nothing else runs now, and this process may use every core."""
    return os.getloadavg()[0] < IDLE and len(os.sched_getaffinity(0)) == os.cpu_count()


def read_results(folder: Path) -> list[Result]:
    """The results in a folder, one JSON each, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(Point(**point) for point in content["points"])
        ready = None if content["ready"] is None else tuple(content["ready"])
        fields = (content[name] for name in ("contestant", "lr", "epochs", "seed"))
        found.append(Result(*fields, ready, points, content["is_idle"], content.get("recipe", "")))
    return found


def last_line(text: str | None) -> str:
    """What a failed process said last, as far as a line of a table goes."""
    lines = (text or "").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def run_missing(contest: Contest, minutes: float) -> int:
    """Run what is missing, as long as it is expected to end in time; how many runs are missing then."""
    until = time.monotonic() + 60 * minutes
    left_out: set[Run] = set()
    while run := next((run for run in contest.missing() if run not in left_out), None):
        print(
            f"contest: {run.contestant}, lr {run.lr:g}, epochs {run.epochs}, seed {run.seed}", file=sys.stderr
        )
        if not contest.run(run, until):
            left_out.add(run)
    return len(left_out)


def by_contestant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Contestant -> its results; ours first."""
    names = [OURS, *(one.name for one in CONTESTANTS)]
    grouped = {name: [one for one in results if one.contestant == name] for name in names}
    return {name: found for name, found in grouped.items() if found}
