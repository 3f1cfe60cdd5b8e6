"""What a run's tracking costs: its records of every step, logged once more."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from measuring import ROUNDS, Measurement, Options

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.runs import trackers
from pipeline.runs.log import CLOCKS, read_log
from pipeline.training.trainer import train

SMALL = (
    "model.name=resnet10t",
    "model.pretrained=false",
    "data.image_px=96",
    "train.precision=fp32",
    "optim.batch_size=8",
    "optim.lr=0.01",
    "tracking.tensorboard=true",
    "tracking.csv=true",
    "tracking.log_every_steps=1",
)


def measure(options: Options) -> Iterator[Measurement]:
    """Logging again is timed, as it is far less than that by which two runs of a kind differ."""
    epochs = 2 if options.tiny else 4
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run, again = (
            Options((), options.folder, options.tiny).config(
                *SMALL, f"train.epochs={epochs}", f"run.root={folder}", f"run.name={name}"
            )
            for name in ("run", "again")
        )
        console.mute()
        prepare.prepare(run)
        train(run)
        logged = read_log(run.run_dir / "log.jsonl")
        ends = [record["seconds"] for record in logged if record["kind"] == "epoch"]
        epoch_s = (ends[-1] - ends[0]) / (len(ends) - 1)
        opening_s, logging_s = zip(*(log_again(again, logged) for _ in range(ROUNDS)), strict=True)
        began = time.perf_counter()
        offline = [sys.executable, "-m", "pipeline", "sync", "--offline", str(run.run_dir)]
        subprocess.run(offline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        folder_s = time.perf_counter() - began
    shares = sorted(100 * seconds / len(ends) / epoch_s for seconds in logging_s)
    what = f"{len(logged) // len(ends)} records an epoch of {epoch_s:.2f} s, into the log, TensorBoard and tables"
    yield Measurement("tracking", what, statistics.median(shares), "% of the epoch", goal=1, better="at most")
    yield Measurement("tracking", "opening the trackers, once a run", statistics.median(opening_s), "s")
    yield Measurement("tracking", "the folder of W&B offline, once a run", folder_s, "s")


def log_again(config: Config, logged: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds to open a run's tracking, and to log its records and close it."""
    shutil.rmtree(config.run_dir, ignore_errors=True)
    bare = [{key: value for key, value in record.items() if key not in CLOCKS} for record in logged]
    began = time.perf_counter()
    tracker = trackers.build_tracker(config, 0)
    opened = time.perf_counter()
    for record in bare:
        tracker.log(record)
    tracker.close()
    return opened - began, time.perf_counter() - opened
