"""Whether a long run keeps what it does not need: the memory of the training process and its loader processes.

A small set is trained for 200 epochs, with validation, checkpoints, the log, all local tracking, and curves, which are
drawn every two seconds, thirty times as often as usual. At the end of each epoch the proportional set size (PSS:
shared pages are shared out) of the process and of all below it is read: of what they have allocated, as the shares of
libraries change with every other process of the machine. The slope is that of a line through the second half of the
epochs. What a run takes beside its model is the peak (RSS) of the trainer's process, less what it has when the trainer
is imported, less weights, their average, momentum and gradients; activations and batches are counted in.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Measurement, Options, in_a_process

from pipeline.common import console
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import LogRecord
from pipeline.training import trainer

EPOCHS = 200
LOADER_PROCESSES = 1
REDRAW_S = 2.0
GOAL_KIB, GOAL_MIB = 20, 400
SMALL = (
    "data.resize_px=72",
    "data.image_px=64",
    "model.name=resnet10t",
    "model.pretrained=false",
    "optim.batch_size=16",
    "optim.lr=0.01",
    "train.precision=fp32",
    "train.device=cpu",
    "train.ema_decay=0.99",
    "tracking.log_every_steps=1",
    "tracking.csv=true",
    "tracking.tensorboard=true",
    f"data.workers={LOADER_PROCESSES}",
)
BIRDS = "data.synthetic={species: 4, images_per_species: 12, train_per_species: 10, long_side_px: 100}"


def measure(options: Options) -> Iterator[Measurement]:
    """The slope of trainer and loader processes, and the peak beside the model."""
    epochs = 6 if options.tiny else EPOCHS
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = in_a_process("memory", {"folder": folder, "epochs": epochs}, threads=1)
    for name, sizes_kib in found["sizes_kib"].items():
        later = np.asarray(sizes_kib[len(sizes_kib) // 2 :])
        slope, _ = np.polyfit(np.arange(len(later)), later, 1)
        yield Measurement(
            "memory",
            f"{name}: growth an epoch over the second half of {epochs} epochs",
            float(slope),
            "KiB",
            goal=GOAL_KIB,
            better="at most",
            note=f"{sizes_kib[0] / 1024:,.0f} MiB after the first epoch, {later[0] / 1024:,.1f} after "
            f"{epochs - len(later) + 1}, {later[-1] / 1024:,.1f} after the last",
        )
    state_mib = found["state_mib"]
    yield Measurement(
        "memory",
        "a training: peak beside imports and model",
        found["peak_mib"] - found["imports_mib"] - state_mib,
        "MiB",
        goal=GOAL_MIB,
        better="at most",
        note=f"peak {found['peak_mib']:,.0f} MiB, {found['imports_mib']:,.0f} when the trainer was imported; weights, "
        f"their average, momentum and gradients {state_mib:.0f}; activations and batches are counted in",
    )


class _Watch:
    """A tracker that reads the sizes as each epoch ends."""

    def __init__(self) -> None:
        self.sizes_kib: dict[str, list[int]] = {"trainer": [], "loader processes": []}

    def log(self, record: LogRecord) -> None:
        if record["kind"] != "epoch":
            return
        self.sizes_kib["trainer"].append(_pss_kib(os.getpid()))
        self.sizes_kib["loader processes"].append(sum(map(_pss_kib, _below(os.getpid()))))

    def close(self) -> None:
        pass


def side(folder: str, epochs: int) -> dict[str, Any]:
    """A whole training in this process: KiB after each epoch, MiB at the peak, with all imports, and of the state."""
    imports_mib, watch = _status_kib("VmRSS") / 1024, _Watch()
    console.mute()
    rooms = (
        f"data.root={folder}/data",
        f"run.root={folder}/runs",
        "run.name=watched",
        "data.source=synthetic",
        BIRDS,
    )
    config = load_config(None, [*rooms, *SMALL, f"train.epochs={epochs}"])
    prepare.prepare(config)
    trainer.REDRAW_S = REDRAW_S
    trainer.train(config, watch)
    state_bytes = RunDirectory(config.run_dir).checkpoint("last").stat().st_size
    return {
        "sizes_kib": watch.sizes_kib,
        "imports_mib": imports_mib,
        "peak_mib": _status_kib("VmHWM") / 1024,
        "state_mib": state_bytes * 4 / 3 / 2**20,  # a checkpoint holds all of it but the gradients
    }


def _below(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            found += [int(child), *_below(int(child))]
    return found


def _pss_kib(pid: int) -> int:
    """Of the memory that a process has allocated, without the files that it maps."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
