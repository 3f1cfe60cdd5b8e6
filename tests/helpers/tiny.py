"""A job small enough to run many times: drawn birds at 32 px, timm's smallest residual network."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.cli.main import run
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.runs.log import LogRecord, read_log

SPECIES, IMAGES, TRAIN = 6, 10, 7


def overrides(tmp: Path, *more: str) -> list[str]:
    """The tiny job below a folder: 6 species, 36 training, 6 validation and 18 test images."""
    return [
        "data.source=synthetic",
        f"data.root={data_root()}",
        f"data.synthetic={{species: {SPECIES}, images_per_species: {IMAGES}, train_per_species: {TRAIN}}}",
        "data.synthetic.long_side_px=64",
        "data.resize_px=40",
        "data.image_px=32",
        "model.name=test_resnet",
        "model.pretrained=false",
        "optim.batch_size=8",
        "optim.lr=0.02",
        "train.epochs=3",
        "train.precision=fp32",
        "train.device=cpu",
        "report.write=false",
        f"run.root={tmp / 'runs'}",
        "run.name=tiny",
        *more,
    ]


def config(tmp: Path, *more: str) -> Config:
    return load_config(None, overrides(tmp, *more))


def do(verb: str, tmp: Path, *more: str) -> int:
    """Run a verb in this process; the exit code."""
    return run([verb, *overrides(tmp, *more)])


def arguments(verb: str, tmp: Path, *more: str) -> list[str]:
    """The arguments of a verb on the tiny job."""
    return [verb, *overrides(tmp, *more)]


def launch(words: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; its output is text."""
    return subprocess.run(words, capture_output=True, text=True, check=False, **kwargs)


@functools.cache
def data_root() -> Path:
    """The folder of the drawn birds: made once a test session, by whichever test comes first."""
    return Path(os.environ["PLUMAGE_TEST_DATA"])


def own_data(tmp: Path) -> str:
    """An override: a copy of the drawn birds below a folder, for a test that prepares them in another way."""
    shutil.copytree(data_root(), tmp / "data", dirs_exist_ok=True)
    return f"data.root={tmp / 'data'}"


def samples_file() -> Path:
    """The sample table of the tiny job."""
    (path,) = data_root().glob("*/samples*.csv")
    return path


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["model"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same model, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(log: Path) -> list[dict[str, Any]]:
    """A log without its header and what depends on the clock."""
    clock = ("time", "seconds", "cpu_seconds", "images_per_s", "data_wait", "memory_gib")
    return [{key: value for key, value in line.items() if key not in clock} for line in read_log(log)]


def checkpoints(tmp: Path, name: str = "tiny") -> Path:
    return tmp / "runs" / name / "checkpoints"


def log_reaches(tmp: Path, step: int) -> Callable[[], bool]:
    log = tmp / "runs" / "tiny" / "log.jsonl"
    return lambda: log.is_file() and f'"step": {step},' in log.read_text()


class EndOfPower(Exception):
    """Ends a training, which it watches, at the first record of a step or of a later one: nothing is saved then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, record: LogRecord) -> None:
        if record["step"] >= self.step:
            raise self

    def close(self) -> None:
        pass
