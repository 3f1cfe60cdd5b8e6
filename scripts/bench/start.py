"""Seconds until a verb does its work: each is a process of its own, and what it reads is in the page cache.

The contenders are the same in their packages' own words: importing torch, making a network with timm, and its first
training step of random pixels, which reads no data, saves nothing and checks nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measuring import ROUNDS, Measurement, Options, in_pairs, of_runs

from pipeline.common import console
from pipeline.config.load import dump_config
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.sources.source import source_of

ROOT = Path(__file__).parents[2]
MODEL = "tf_efficientnet_lite0"
IMAGES = 8  # of a step: so few that the start is most of what is measured
NEEDS_DATA = ("train", "lr-find", "inspect", "eval", "report", "audit", "probe", "predict", "unknown")
WITH_TIMM = f"import torch, timm; model = timm.create_model({MODEL!r}, num_classes=25)"
STEP_WITH_TIMM = f"""{WITH_TIMM}
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
logits = model(torch.rand({IMAGES}, 3, 224, 224))
torch.nn.functional.cross_entropy(logits, torch.arange({IMAGES})).backward()
optimizer.step()
"""


def measure(options: Options) -> Iterator[Measurement]:
    """Help; what is said of missing data; the first step; data that are there; the answer for a picture."""
    console.mute()
    (options.folder / "start").mkdir(parents=True, exist_ok=True)
    rounds = 1 if options.tiny else ROUNDS
    yield alone("the list of verbs, --help", lambda: call(["--help"]), rounds, goal=0.3)
    missing = [f"data.root={options.folder / 'none'}", f"run.root={options.folder / 'none'}"]
    for verb in NEEDS_DATA[-2:] if options.tiny else NEEDS_DATA:
        words = [str(options.folder / "none")] if verb in ("predict", "unknown") else missing
        what = f"{verb}: what it needs is missing"
        yield alone(what, lambda verb=verb, words=words: call([verb, *words], code=2), rounds, goal=1.0)
    config = options.config("optim.lr=0.01", *SMALL_RUN, *TINY * options.tiny)
    config = config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})
    images = source_of(config.data).images(prepare.fetch(config.data))
    prepare.prepare(config)
    path = options.folder / "start" / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    named = f"--config={path}"
    yield alone("data, all of it made before", lambda: call(["data", named]), rounds, goal=1.0)
    size = f"{config.model.name} at {config.data.image_px} px, {IMAGES} images"
    yield beside(
        f"train: the first step done; {size}",
        lambda: first_step(named, config),
        f"imports, network and first step with timm alone; {MODEL} at 224 px",
        lambda: python(STEP_WITH_TIMM),
        rounds,
        goal=3.0,
    )
    picture = next(images.rglob("*.jpg"))
    yield beside(
        f"predict: the answer for one picture; {config.model.name}",
        lambda: call(["predict", str(config.run_dir), str(picture)]),
        f"imports and network with timm alone, {MODEL}",
        lambda: python(WITH_TIMM),
        rounds,
    )
    yield alone("python -c 'import torch', for comparison", lambda: python("import torch"), rounds)


SMALL_RUN = (
    *("run.name=start", "train.max_steps=1", "train.epochs=1"),
    *("tracking.log_every_steps=1", f"optim.batch_size={IMAGES}", "train.device=cpu", "train.precision=fp32"),
    *("data.image_px=224", "data.resize_px=256", f"model.name={MODEL}", "model.pretrained=false"),
)
TINY = ("model.name=resnet10t", "data.image_px=64", "data.resize_px=64")


def alone(what: str, seconds: Callable[[], float], rounds: int, goal: float | None = None) -> Measurement:
    """The median of some calls after one that brings files into memory."""
    seconds()
    return Measurement(
        part="start",
        what=what,
        **of_runs(seconds() for _ in range(rounds)),
        unit="s",
        goal=goal,
        better="at most",
    )


def beside(
    what: str,
    ours: Callable[[], float],
    against: str,
    other: Callable[[], float],
    rounds: int,
    goal: float | None = None,
) -> Measurement:
    """Both in turn after one of each; a goal is about our own seconds."""
    ours(), other()
    pairs = in_pairs(ours, other, rounds)
    if goal is not None:
        pairs |= {"ratio": None, "lowest": None, "highest": None}
    return Measurement("start", what, unit="s", against=against, goal=goal, better="at most", **pairs)


def call(words: Sequence[str], code: int = 0) -> float:
    """Seconds of a whole command, whose exit code has to be `code`."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise RuntimeError(f"{words}: exit code {done.returncode}: {done.stderr}")
    return seconds


def python(code: str) -> float:
    """Seconds of a Python program."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True)
    return time.perf_counter() - began


def first_step(named: str, config: Config) -> float:
    """Seconds from the start of `train` to the log's record of its first step."""
    shutil.rmtree(config.run_dir, ignore_errors=True)
    began = time.time()
    call(["train", named])
    log = (config.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    step = next(record for record in map(json.loads, log) if record["kind"] == "step")
    return float(step["time"]) - began
