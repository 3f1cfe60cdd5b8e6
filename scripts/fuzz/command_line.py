"""Arguments, and the environment that the program starts in."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from harness import Case, Outcome, call, judge
from world import World

VERBS = ["data", "train", "eval", "report", "audit", "predict", "compare", "study", "sweep", "runs", "sync", "schedule",
    "lr-find", "doctor", "summary", "config"]  # fmt: skip
CHEAP = ["predict", "compare", "study", "sweep", "runs", "sync", "schedule", "summary", "config"]
WORDS = [
    "--config", "--help", "-h", "--version", "--quick", "--trials", "--jobs", "--csv", "--sort", "--yes",
    "--offline", "--follow", "--top", "--pruner", "--", "-", "---", "--x", "-1", "0", "1e9", "=", "a=b",
    "a.b=c", "x.yaml", "runs/good", "runs", ".", "/", "/dev/null", "/proc/self/mem", "\n", "\x1b[31m", "é",
    "a" * 300, "a" * 5000, "*", "$(ls)", "run.name=..", "run.root=/dev/null", "data.root=/proc",
    "train.epochs=1", "optim.lr=", "model.name=", "model.name=../x", "model.name=hf-hub:a/b",
    "data.source=cub200", "train.device=cuda", "train.device=tpu",
]  # fmt: skip
ENVIRONMENT = {
    "HOME": ["", "/nonexistent", "/dev/null"],
    "TMPDIR": ["/nonexistent", "/dev/null"],
    "TERM": ["", "dumb", "x"],
    "COLUMNS": ["0", "-1", "1", "x", "99999999"],
    "LANG": ["C", "x"],
    "LC_ALL": ["C", "POSIX", "x"],
    "PYTHONIOENCODING": ["ascii"],
    "NO_COLOR": ["1"],
    "OMP_NUM_THREADS": ["0", "-1", "x"],
    "CUDA_VISIBLE_DEVICES": ["", "7", "x"],
    "RANK": ["x", "-1", "1"],
    "WORLD_SIZE": ["x", "0", "-1"],
    "LOCAL_RANK": ["x", "7"],
    "MASTER_ADDR": ["nosuchhost.invalid"],
    "MASTER_PORT": ["x", "99999"],
    "TORCHELASTIC_RESTART_COUNT": ["x", "-1", ""],
    "SLURM_RESTART_COUNT": ["x", "1", ""],
    "SLURM_JOB_ID": ["x"],
    "SLURM_CPUS_PER_TASK": ["x", "0"],
    "WANDB_MODE": ["x", "disabled"],
    "WANDB_DIR": ["/nonexistent"],
    "WANDB_API_KEY": ["x"],
    "MPLBACKEND": ["x"],
    "MPLCONFIGDIR": ["/proc"],
}
NOT_ALONE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # a launcher sets all of them


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        yield _words(world, draw) if draw.random() < 0.7 else _environment(world, draw)


def _words(world: World, draw: random.Random) -> Case:
    verb = draw.choice(CHEAP * 3 + VERBS)
    words = [verb, *draw.choices(WORDS, k=draw.randrange(4))]
    if draw.random() < 0.1:
        words = draw.choices(WORDS + VERBS, k=draw.randrange(4))
    base = world.overrides(Path()) if verb not in {"runs", "sync", "study", "sweep", "compare"} else []

    def body(folder: Path) -> str:
        world.copy(folder, "data", "runs")
        return judge(call(folder, *words, *(base if words[:1] == [verb] else [])))

    return Case(f"words {words!r:.300}", body)


def _environment(world: World, draw: random.Random) -> Case:
    names = draw.sample(sorted(ENVIRONMENT.keys() - NOT_ALONE), draw.randrange(1, 3))
    values = {name: draw.choice(ENVIRONMENT[name]) for name in names}
    verb = draw.choice(["schedule", "eval", "train", "predict", "runs", "summary"])

    def body(folder: Path) -> str:
        world.copy(folder, "data", "runs")
        words = [*world.overrides(Path(), "report.write=false")]
        if verb == "train":
            words.append("run.name=new")
        if verb == "predict":
            words.insert(0, str(next(world.raw.glob("*/images/*/*.jpg"))))
        if verb == "runs":
            words = []
        return judge(call(folder, verb, *words, environment=values), lambda outcome: _answers(verb, outcome))

    return Case(f"{verb} with {values}", body)


def _answers(verb: str, outcome: Outcome) -> str | None:
    """Standard output is one line of JSON, whatever the environment."""
    if verb == "runs":
        return None if "good" in outcome.stdout else "the run is not listed"
    try:
        answer = json.loads(outcome.stdout)
    except ValueError:
        return f"standard output is not JSON: {outcome.stdout[:200]!r}"
    return None if answer else "no result"
