"""What every check works with: the device, sizes, a prepared data set, and clocks that wait for the device."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common import hardware
from pipeline.common.signals import StopRequest
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.training.trainer import Trainer

Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Setting:
    """Where and how large the checks run."""

    device: torch.device
    tiny: bool
    """sizes with which a CPU shows in a minute or two that the checks themselves work"""
    folder: Path
    """for drawn birds and runs"""

    @property
    def on_gpu(self) -> bool:
        """Whether there is something to judge speeds by."""
        return self.device.type == "cuda"

    @property
    def model(self) -> str:
        """The name of the network."""
        return "resnet10t" if self.tiny else "resnet50"

    @property
    def image_px(self) -> int:
        """The side of an image."""
        return 64 if self.tiny else 448

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return 8 if self.tiny else 64

    @property
    def steps(self) -> int:
        """Steps that are timed."""
        return 2 if self.tiny else 20

    def config(self, *overrides: str, name: str = "check") -> Config:
        """The default recipe from drawn weights on drawn birds, with the run of a name."""
        many, side_px = (6, 72) if self.tiny else (200, 500)
        drawn = (
            f"data.synthetic={{species: {many}, images_per_species: 30, train_per_species: 27, "
            f"long_side_px: {side_px}}}"
        )
        sizes = [
            f"data.resize_px={72 if self.tiny else 512}",
            f"data.image_px={self.image_px}",
            f"optim.batch_size={self.batch_size}",
            f"eval.batch_size={self.batch_size}",
        ]
        places = [f"data.root={self.folder / 'data'}", f"run.root={self.folder / 'runs'}", f"run.name={name}"]
        usual = ["data.source=synthetic", drawn, f"model.name={self.model}", "model.pretrained=false"]
        usual += [*sizes, *places, "optim.lr=0.002", f"train.device={self.device.type}"]
        return load_config(Path("configs/cub200_resnet50.yaml"), [*usual, *overrides])

    def trainer(self, *overrides: str, device: torch.device | None = None) -> Trainer:
        """A run before its first step, as `train` makes it."""
        config = self.config(*overrides)
        hardware.configure(deterministic=config.train.deterministic, tf32=config.train.tf32)
        return Trainer(config, Ranks.single(device or self.device), StopRequest())

    def random_batch(self, images: int, image_px: int | None = None) -> Batch:
        """Noise in pinned memory, as the loader serves batches."""
        side_px = image_px or self.image_px
        pixels = torch.randint(256, (images, side_px, side_px, 3), dtype=torch.uint8)
        label = torch.randint(self.config().data.synthetic.species, (images,))
        tensors = (pixels, label, torch.arange(images))
        image, label, row = (tensor.pin_memory() if self.on_gpu else tensor for tensor in tensors)
        return Batch(image.permute(0, 3, 1, 2), label, row)

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def measure(self, step: Callable[[], object], *, images: int, warm_up: int = 3) -> Row:
        """Speed of a step.

        Returns:
            images_per_s, ms of a step, host_ms until the host has handed a step to an idle device, warm_up_s of
            the first steps, peak memory in GiB.
        """
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        warm_up_s = self._seconds(step, warm_up)
        host_s = []
        for _ in range(min(5, self.steps)):
            self.wait()
            began = time.perf_counter()
            step()
            host_s.append(time.perf_counter() - began)
        step_s = self._seconds(step, self.steps) / self.steps
        return {
            "images_per_s": round(images / step_s, 1),
            "ms": round(1000 * step_s, 3),
            "host_ms": round(1000 * statistics.median(host_s), 3),
            "warm_up_s": round(warm_up_s, 2),
            "peak_gib": round(hardware.peak_bytes(self.device) / 2**30, 2),
        }

    def _seconds(self, step: Callable[[], object], times: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            step()
        self.wait()
        return time.perf_counter() - began

    def median_seconds(self, action: Callable[[], object], times: int) -> float:
        """The median time of an action that the device does, after one to warm up."""
        return statistics.median([self._seconds(action, 1) for _ in range(times + 1)][1:])


def largest(values: Sequence[float]) -> float:
    """The largest value, to three digits."""
    return float(f"{max(values):.3g}")
