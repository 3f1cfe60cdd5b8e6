"""Two processes of the program on one folder."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness import SECONDS, USER_ERROR, Call, Case, Failed, call
from kills import same_as_undisturbed
from world import World

PAIRS = [
    ("data", "data"),
    ("data", "train"),
    ("train", "train"),
    ("train", "never"),  # that is train.resume=never
    ("train", "eval"),
    ("train", "runs"),
    ("eval", "eval"),
    ("eval", "report"),
    ("audit", "eval"),
]


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        yield _case(world, *draw.choice(PAIRS), draw.choice([0.0, 0.05, 0.3, 1.0, draw.random() * 4]))


def _words(world: World, folder: Path, verb: str) -> list[str]:
    words = world.overrides(folder)
    if verb == "never":
        return ["train", *words, "run.name=new", "train.resume=never"]
    if verb == "runs":
        return ["runs", str(folder / "runs")]
    return [verb, *words, *(["run.name=new"] if verb == "train" else [])]


def _case(world: World, first: str, second: str, later_s: float) -> Case:
    def body(folder: Path) -> str:
        world.copy(folder, *(["runs"] if "data" in (first, second) else ["data", "runs"]))
        if "train" in (first, second) and second in {"eval"}:
            shutil.rmtree(folder / "runs" / "good")
        pair = []
        for number, verb in enumerate((first, second)):
            time.sleep(later_s if number else 0)
            words = _words(world, folder, verb)
            if "train" in (first, second):
                words = [word.replace("run.name=good", "run.name=new") for word in words]
            pair.append(Call(folder, words))
        outcomes = [process.end(3 * SECONDS) for process in pair]
        for outcome in outcomes:
            if outcome.code not in {0, USER_ERROR} or outcome.survivors or "Traceback" in outcome.stderr:
                raise Failed(outcome.explain())
            if outcome.code == USER_ERROR and len(outcome.sentences) != 1:
                raise Failed(f"not one sentence: {outcome.explain()}")
        if first != "data" and outcomes[0].code != 0 and outcomes[1].code != 0:
            raise Failed(f"neither did its work: {outcomes[0].explain()}\n{outcomes[1].explain()}")
        for verb in {first, second} & {"data", "train", "eval"}:
            if verb == "eval" and "train" in (first, second):
                continue
            again = call(folder, *_words(world, folder, verb))
            if again.code != 0:
                raise Failed(f"afterwards {verb} does not go on: {again.explain()}")
            if wrong := same_as_undisturbed(world, folder, verb):
                raise Failed(f"{wrong} afterwards: {outcomes[0].explain()}\n{outcomes[1].explain()}")
        return "refused" if USER_ERROR in (outcomes[0].code, outcomes[1].code) else "right"

    return Case(f"{first} and, {later_s:.2f} s later, {second}", body)
