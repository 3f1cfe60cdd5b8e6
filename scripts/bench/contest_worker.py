"""One worker of a contest: on one core, with one thread, it runs what is missing, and leaves a JSON a run.

    python scripts/bench/contest_worker.py OPTIONS

OPTIONS: JSON of `Task`. The last line of stdout is a JSON of what could not be run, and why.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import contest_ours
from contest_runs import CONTESTANTS, OURS, SEEDS, Run, by_contestant, plan, read_results
from contest_scores import Clock, Result, epoch_seconds
from contest_world import DRIVERS, MODEL, hub, photographs, python_of
from measuring import Options, machine

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.locks import Lock

CLOCK: Clock = "cpu_s"
DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Task(NamedTuple):
    """What a worker is told."""

    overrides: tuple[str, ...]
    folder: str
    tiny: bool
    minutes: float
    recipe: str
    horizon_s: float
    """processor seconds that a run may take; its schedule is made for them"""
    core: int

    @property
    def options(self) -> Options:
        """Those of the bench."""
        return Options(tuple(self.overrides), Path(self.folder), self.tiny, self.minutes)


class Contest:
    """A contest's folder, and what is run there.

    Results lie in `folder`, one JSON a run; they hold for these photographs and these weights.
    """

    def __init__(self, options: Options, recipe: Path) -> None:
        """Make photographs and weights ready.

        Args:
            options: of the bench.
            recipe: the YAML file of ours.
        """
        self.options, self.recipe, self.digest = options, recipe, digest_of(recipe)
        self.photographs, self.hub = photographs(options), hub(options)
        given = f"{self.photographs.name[-8:]}-{self.hub.name[-8:]}"
        self.folder = options.folder / "contest" / f"results-{given}"
        self.folder.mkdir(exist_ok=True)
        self.problems: dict[str, str] = {}
        """contestant: why it could not be run"""

    def results(self) -> list[Result]:
        """Finished runs, and of ours those of the recipe as it is now."""
        return [one for one in read_results(self.folder) if one.recipe in ("", self.digest)]

    def missing(self, horizon_s: float) -> Iterator[Run]:
        """What has not been run, the most telling first; for `tiny` an epoch of what needs no installing."""
        contestants = [
            one
            for one in CONTESTANTS
            if one.name not in self.problems and (one.driver == "article" or not self.options.tiny)
        ]
        runs = plan(contestants, by_contestant(self.results()), CLOCK, horizon_s)
        return (run for run in runs if not self.options.tiny or (run.seed == SEEDS[0] and run.epochs <= 1))

    def path(self, run: Run) -> Path:
        """The JSON of a run."""
        name = run.contestant.replace(" ", "_").replace("'", "").replace(",", "")
        rate = self.digest if run.contestant == OURS else f"lr{run.lr:g}"
        return self.folder / f"{name}-{rate}-{run.epochs}epochs-seed{run.seed}.json"

    def run(self, run: Run, left_s: float) -> bool:
        """Run it; whether it is finished, and not ended because the time was over.

        Raises:
            UserError, subprocess.CalledProcessError: it could not be run.
        """
        try:
            content = self._run_ours(run) if run.contestant == OURS else self._run_driver(run, left_s)
        except subprocess.TimeoutExpired:
            return False
        about = {"machine": machine(), "load": os.getloadavg()[0]}
        with files.replacing(self.path(run)) as part:
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
            words += ["train.epochs=1", "schedule.warmup_epochs=0", "data.progressive=[]"]
        folder = self.options.folder / "contest" / f"ours-seed{run.seed}"
        points = contest_ours.run(self.recipe, words, folder, DIE_WITH_US)
        return {"ready": None, "points": points, "recipe": self.digest}

    def _run_driver(self, run: Run, left_s: float) -> dict[str, Any]:
        contestant = next(one for one in CONTESTANTS if one.name == run.contestant)
        with contextlib.closing(Lock.hold(self.options.folder / "contest" / "installing.lock")):
            python = python_of(contestant.environment, self.options)
        work = self.options.folder / "contest" / "work" / self.path(run).stem
        work.mkdir(exist_ok=True, parents=True)
        out, task, log = (work / name for name in ("out.json", "task.json", "log.txt"))
        out.unlink(missing_ok=True)
        fields = dataclasses.asdict(contestant) | run._asdict()
        fields |= {
            "photographs": str(self.photographs),
            "model": MODEL,
            "out": str(out),
            "started": time.time(),
        }
        task.write_text(json.dumps(fields))
        environment = os.environ | {"HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1"}
        command = [*DIE_WITH_US, python, DRIVERS / f"run_{contestant.driver}.py", task]
        with log.open("w", encoding="utf-8") as said:
            done = subprocess.run(
                command, stdout=said, stderr=said, env=environment, cwd=work, timeout=left_s, check=False
            )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, stderr=log.read_text())
        return dict(json.loads(out.read_text()))


def digest_of(recipe: Path) -> str:
    """Eight digits that change with what a YAML file says, and not with its comments."""
    content = json.dumps(yaml.safe_load(recipe.read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def work(task: Task) -> dict[str, str]:
    """Run what is missing and no other worker runs, as long as it is expected to end in time.

    Returns:
        contestant -> why it could not be run.
    """
    os.sched_setaffinity(0, {task.core})
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    until = time.monotonic() + 60 * task.minutes
    contest = Contest(task.options, Path(task.recipe))
    left_out: set[Run] = set()
    while run := next((run for run in contest.missing(task.horizon_s) if run not in left_out), None):
        claim = Lock.free(contest.path(run).with_suffix(".lock"))
        if claim is None:  # another worker is at it
            left_out.add(run)
            continue
        with contextlib.closing(claim):
            left_s = until - time.monotonic()
            if not contest.path(run).is_file() and not _is_done(contest, run, left_s):
                left_out.add(run)
    return contest.problems


def _is_done(contest: Contest, run: Run, left_s: float) -> bool:
    if left_s < max(0.0, contest.expected_wall_s(run)):
        return False
    words = f"contest: {run.contestant}, lr {run.lr:g}, {run.epochs} epochs, seed {run.seed}"
    print(words, file=sys.stderr, flush=True)
    try:
        return contest.run(run, left_s)
    except UserError as error:
        contest.problems[run.contestant] = str(error)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        contest.problems[run.contestant] = lines[-1][:200] if lines else f"exit code {error.returncode}"
    return False


if __name__ == "__main__":
    print(json.dumps(work(Task(**json.loads(sys.argv[1])))))
