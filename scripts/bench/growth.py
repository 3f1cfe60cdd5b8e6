"""How time and memory grow: ten thousand, a hundred thousand and a million images, in up to 5,000 classes.

Each step runs in one thread, in a process of its own that is forked from one that has imported all. Time is the
processor's (the least of up to three runs of the step), so that what else the machine does counts little; memory is
the peak of the whole process, with everything that it imports. The exponent compares the largest size with the one
below it: 1 is linear.
"""

import contextlib
import io
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import growth_world as world
import torch
from measuring import Measurement, Options
from threadpoolctl import threadpool_limits

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data import image_store, prepare, sample_table
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import results, screen
from pipeline.models.build import build_model
from pipeline.report import page
from pipeline.runs import checkpoints, listing
from pipeline.runs.directory import RunDirectory
from pipeline.training.setup import TrainingSetup

CLASSES = 5_000
SIZES = (10_000, 100_000, 1_000_000)
PREDICTED = (1_000, 10_000, 100_000)
"""images of an evaluation, each with a number a class"""
CPU = torch.device("cpu")
GOAL_EXPONENT, GOAL_MIB, GOAL_PAGE_MB = 1.1, 1_536, 25
REPEATS, ENOUGH_S = 3, 1.0
Result = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a step works, and on how much."""

    folder: Path
    size: int
    classes: int
    store: Path
    """whose pictures are shown"""
    settings: list[str]
    """of these pictures"""

    def config(self, *overrides: str) -> Config:
        """The configuration of the drawn data set."""
        return world.config(self.folder, *self.settings, "optim.batch_size=16", *overrides)


def measure(options: Options) -> Iterator[Measurement]:
    """The steps before a training, then those of an evaluation, then the list of runs."""
    sizes, predicted, classes = SIZES, PREDICTED, CLASSES
    if options.tiny:
        sizes, predicted, classes = (200, 2_000), (60, 600), 40
    prepared = options.config()
    console.mute()
    _in_a_fork(_prepare, prepared)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = {
            "classes": classes,
            "store": prepare.output_paths(prepared)[1],
            "settings": [
                f"data.{key}={getattr(prepared.data, key)}" for key in ("resize", "resize_px", "image_px")
            ],
        }
        for steps, rows in ((OF_ROWS, sizes), (OF_PREDICTIONS, predicted), (OF_RECORDS, sizes)):
            found: dict[str, dict[int, Result]] = {name: {} for name in steps}
            for size in rows:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    for name in steps:
                        found[name][size] = _in_a_fork(_measured, name, Place(Path(own), size, **shared))
            for name, by_size in found.items():
                if not name.startswith("drawn"):  # what the others measure, and no work of the program
                    yield from _of_step(name, by_size)


def _of_step(name: str, by_size: Mapping[int, Result]) -> Iterator[Measurement]:
    """The exponent and the peak of a step; of the report also its bytes."""
    (before, less), (last, most) = list(by_size.items())[-2:]
    exponent = math.log(most["seconds"] / less["seconds"]) / math.log(last / before)
    times, peaks = [], []
    for size, found in by_size.items():
        own_bytes = 2**20 * (found["peak_mib"] - found["imports_mib"]) / size
        times.append(f"{size:,}: {found['seconds']:.3g} s, {1e6 * found['seconds'] / size:.3g} us each")
        peaks.append(
            f"{size:,}: {found['peak_mib']:,.0f} MiB, {own_bytes:,.0f} bytes each beside the imports"
        )
    goal = {"part": "growth", "better": "at most"}
    yield Measurement(
        what=f"{name}: its time grows as the size to the power of",
        ours=exponent,
        unit="",
        goal=GOAL_EXPONENT,
        note="; ".join(times),
        **goal,
    )
    yield Measurement(
        what=f"{name}: peak memory",
        ours=max(found["peak_mib"] for found in by_size.values()),
        unit="MiB",
        goal=GOAL_MIB,
        note="; ".join(peaks),
        **goal,
    )
    if "page_mb" in most:
        yield Measurement(
            what=f"{name}: the page", ours=most["page_mb"], unit="MB", goal=GOAL_PAGE_MB, **goal
        )


def _prepare(config: Config) -> None:
    prepare.prepare(config)


def _in_a_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has imported all that this one has."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


@threadpool_limits.wrap(limits=1)
def _measured(step: str, place: Place) -> Result:
    """One step at one size: processor seconds, MiB of the process at its peak and when it had imported all."""
    torch.set_num_threads(1)
    imports_mib = _peak_mib()
    run = STEPS[step](place)
    seconds: list[float] = []
    further: Result | None = None
    while not seconds or (
        len(seconds) < REPEATS and sum(seconds) < ENOUGH_S and not step.startswith("drawn")
    ):
        began = time.process_time()
        further = run()
        seconds.append(time.process_time() - began)
    return {"seconds": min(seconds), "peak_mib": _peak_mib(), "imports_mib": imports_mib, **(further or {})}


def _peak_mib() -> float:
    """Of this process alone: the peak that `getrusage` tells may be its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


# The steps: each prepares what it needs, and returns what is timed.

Run = Callable[[], Result | None]


def _drawn_data(at: Place) -> Run:
    config = at.config()
    return lambda: world.write_data(
        config, prepare.draw_splits(world.pictures_of(at.size, at.classes), config)
    )


def _split(at: Place) -> Run:
    """Its input is a table of all images."""
    config, pictures = at.config(), world.pictures_of(at.size, at.classes)

    def run() -> None:
        prepare.draw_splits(pictures, config).to_csv(at.folder / "drawn.csv", index=False)

    return run


def _read_table(at: Place) -> Run:
    path, _ = prepare.output_paths(at.config())

    def run() -> None:
        sample_table.read(path)

    return run


def _open_store(at: Place) -> Run:
    _, folder = prepare.output_paths(at.config())

    def run() -> None:
        image_store.Store(folder)

    return run


def _start(at: Place) -> Run:
    config = at.config()

    def run() -> None:
        TrainingSetup(config, Ranks.single(CPU))

    return run


def _epoch(*overrides: str) -> Callable[[Place], Run]:
    def step(at: Place) -> Run:
        setup = TrainingSetup(at.config(*overrides), Ranks.single(CPU))

        def run() -> None:
            next(setup.train_loader.batches(0, setup.epoch_batches(0)))

        return run

    return step


def _checkpoint(at: Place) -> Run:
    config = at.config("model.name=resnet10t")
    data = prepare.load(config)
    classes = sample_table.class_names(data.samples)
    model, _ = build_model(config.model, len(classes))
    path = at.folder / "last.pt"

    def run() -> None:
        content: dict[str, Any] = {
            "format": checkpoints.FORMAT,
            "model": model.state_dict(),
            "optimizer": {"state": {}, "param_groups": []},
            "config": config.model_dump(mode="json"),
            "classes": classes,
            "samples": sample_table.digest(data.samples),
            "precision": "fp32",
            **dict.fromkeys(("epoch", "step"), 0),
            "scaler": {},
            "weights": {},
            **dict.fromkeys(("ema", "best")),
            "batch_size": 1,
        }
        checkpoints.save(path, content)
        checkpoints.check_data(checkpoints.read(path), path, classes, content["samples"])

    return run


def _drawn_predictions(at: Place) -> Run:
    return lambda: world.write_predictions(at.config(), at.size, at.classes, at.store)


def _evaluation(at: Place) -> Run:
    config = at.config()
    data, folder = prepare.load(config), RunDirectory(config.run_dir).evaluation("test")

    def run() -> None:
        results.compute_metrics(folder, data.samples, results.learned_rows(config, data))
        screen.show(folder)

    return run


def _report(at: Place) -> Run:
    config = at.config()
    folder = RunDirectory(config.run_dir).evaluation("test")
    return lambda: {"page_mb": page.build(config, folder, recompute=False).stat().st_size / 1e6}


def _drawn_runs(at: Place) -> Run:
    return lambda: world.write_runs(at.folder / "runs", at.size)


def _list_runs(at: Place) -> Run:
    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            listing.list_runs(at.folder / "runs", "started", as_csv=False)

    return run


OF_ROWS: dict[str, Callable[[Place], Run]] = {
    "a split drawn and written": _split,
    "drawn data": _drawn_data,
    "the sample table read": _read_table,
    "a store opened": _open_store,
    "a training begun, without its network": _start,
    "an epoch's order, and its first batch": _epoch(),
    "the same, with balanced classes": _epoch("data.sampler=class_balanced"),
    "the same, with half of the images": _epoch("train.subset=0.5"),
    "a checkpoint written, read and checked": _checkpoint,
}
OF_PREDICTIONS: dict[str, Callable[[Place], Run]] = {
    "drawn predictions": _drawn_predictions,
    "an evaluation's numbers and tables": _evaluation,
    "the report": _report,
}
OF_RECORDS: dict[str, Callable[[Place], Run]] = {
    "drawn runs": _drawn_runs,
    f"{world.RUNS} runs listed, by their records": _list_runs,
}
STEPS = OF_ROWS | OF_PREDICTIONS | OF_RECORDS
