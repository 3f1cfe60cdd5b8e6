"""How right: waits for the device, losses beside a CPU's, NCCL, a batch size that fits."""

import dataclasses
import os
import socket
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from setting import Row, Rows, Setting, largest

from pipeline.common import hardware
from pipeline.distributed.data_parallel import replicate
from pipeline.training.auto_batch_size import auto_batch_size
from pipeline.training.phases import Rates
from pipeline.training.step import train_step

RATES = Rates(0.002, 0.9)
WAYS = {
    "plain": [],
    "accumulated": ["optim.effective_batch_size={twice}"],
    "clip": ["optim.clip_norm=1"],
    "ema": ["train.ema_decay=0.99"],
    "mixup": ["train.mix=[{{name: mixup, alpha: 0.4, probability: 1}}]"],
    "cutmix": ["train.mix=[{{name: cutmix, alpha: 1, probability: 1}}]"],
    "snapmix": ["train.mix=[{{name: snapmix, alpha: 5, probability: 1}}]", "model.mid_level_head=true"],
    "activation_mask": ["train.mix=[{{name: activation_mask, probability: 1}}]"],
    "activation_swap": ["train.mix=[{{name: activation_swap, probability: 1}}]"],
    "fp16": ["train.precision=fp16"],
}


def syncs(setting: Setting) -> Rows:
    """The lines at which a step waits for the GPU."""
    images = setting.batch_size // 4
    for way, words in WAYS.items():
        overrides = [word.format(twice=2 * images) for word in words]
        trainer = setting.trainer(f"optim.batch_size={images}", "data.image_px=64", *overrides)
        trainer._set_train_mode(0)  # a run's own way to wrap its model
        torch.backends.cudnn.benchmark = False  # nothing is timed
        total = trainer.config.optim.images_per_step
        batch = setting.random_batch(total, 64)

        def step(trainer: Any = trainer, batch: Any = batch, total: int = total) -> None:
            train_step(trainer.state, trainer.ddp_model, batch, total, RATES, trainer.settings)

        step()
        yield {"case": way, "lines": lines_that_wait(step) if setting.on_gpu else None}


def lines_that_wait(step: Callable[[], None]) -> dict[str, int]:
    """Lines of this program, or of what it calls, that wait for the GPU in two steps, each with its count."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any) -> None:
        if "synchronizing CUDA" not in str(message):
            return
        stack = traceback.extract_stack()
        ours = [frame for frame in stack if "/pipeline/" in frame.filename] or stack
        found[f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found)


def parity(setting: Setting) -> Rows:
    """Twenty losses of the CPU and of this device, in fp32."""
    steps, images, side_px = (3, 4, 64) if setting.tiny else (20, 16, 224)
    batches = [setting.random_batch(images, side_px) for _ in range(steps)]

    def losses(device: torch.device, *overrides: str) -> list[float]:
        words = ["train.precision=fp32", f"data.image_px={side_px}", f"optim.batch_size={images}"]
        trainer = setting.trainer(*words, *overrides, device=device)
        trainer._set_train_mode(0)
        torch.backends.cudnn.benchmark = False  # nothing is timed
        state, model, settings = trainer.state, trainer.ddp_model, trainer.settings
        return [
            float(train_step(state, model, batch, images, RATES, settings)[0]) / images for batch in batches
        ]

    on_cpu = losses(torch.device("cpu"))
    for case in ("fp32", "tf32") if setting.on_gpu else ("fp32",):
        here = losses(setting.device, f"train.tf32={case == 'tf32'}".lower())
        apart = [abs(a - b) / abs(a) for a, b in zip(on_cpu, here, strict=True)]
        yield {
            "case": case,
            "first": largest(apart[:1]),
            "largest": largest(apart),
            "loss": round(here[-1], 4),
        }


def nccl(setting: Setting) -> Rows:
    """A group of one: replication in channels_last with and without a hook, sums, the end; warnings that it gives."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("cpu:gloo,cuda:nccl" if setting.on_gpu else "gloo", rank=0, world_size=1)
    control = dist.new_group(backend="gloo")
    trainer = setting.trainer()
    alone = trainer.ranks
    # Two ranks to the wrapper, which would else leave the model as it is; sums are over the one that there is.
    two = dataclasses.replace(alone, world_size=2, control=control)
    batch = setting.random_batch(setting.batch_size // 4)
    for compress in ("none", "bf16"):
        config = setting.config(f"distributed.compress={compress}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = replicate(trainer.state.model, config.distributed, two)
            for _ in range(2):
                sums = train_step(trainer.state, model, batch, len(batch.label), RATES, trainer.settings)
            setting.wait()
        said = sorted({str(warning.message).splitlines()[0][:160] for warning in caught})
        yield {
            "case": f"compress={compress}",
            "loss": round(float(sums[0]) / len(batch.label), 4),
            "warnings": said,
        }
    total = two.all_reduce_sum(torch.ones(3, device=setting.device)).tolist()
    two.barrier()
    dist.group.WORLD.abort()
    yield {"case": "sum, barrier, abort", "sum": total}


def auto(setting: Setting) -> Rows:
    """The images that auto finds, and whether a step of them fits."""
    asked = 32 if setting.tiny else 4096
    trainer = setting.trainer(f"optim.batch_size={setting.batch_size}")
    config = setting.config("optim.batch_size=auto", f"optim.effective_batch_size={asked}")
    images = auto_batch_size(config, trainer.state.model, trainer.start.precision, trainer.ranks)
    settings = dataclasses.replace(trainer.settings, micro_batch_size=images)
    trainer._set_train_mode(0)
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = setting.random_batch(images)
    for _ in range(2):
        train_step(trainer.state, trainer.ddp_model, batch, images, RATES, settings)
    setting.wait()
    peak = hardware.peak_bytes(setting.device)
    row: Row = {"images": images, "peak_gib": round(peak / 2**30, 1)}
    if setting.on_gpu:
        row["share_of_memory"] = round(peak / torch.cuda.get_device_properties(0).total_memory, 3)
    yield row
