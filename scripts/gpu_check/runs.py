"""Whole runs: resumed bit for bit, in each number format, and how much of an epoch is not learning."""

from pathlib import Path

import torch
from setting import Rows, Setting
from torch.utils import _pytree as pytree

from pipeline.runs import checkpoints
from pipeline.runs.log import read_log
from pipeline.training.trainer import train

FRESH = "train.resume=never"


def resume(setting: Setting) -> Rows:
    """Nine steps at once, and four and five, deterministic, with all that draws numbers."""
    everything = [
        "train.deterministic=true",
        "train.mix=[{name: snapmix, alpha: 5, probability: 0.5}, {name: mixup, alpha: 0.4, probability: 0.4}]",
        "train.ema_decay=0.9",
        "optim.clip_norm=5",
        "model.dropout=0.1",
        f"optim.batch_size={setting.batch_size // 2}",
        f"data.image_px={setting.image_px // 2}",
    ]
    whole = train(setting.config(*everything, "train.max_steps=9", FRESH, name="whole"))
    train(setting.config(*everything, "train.max_steps=4", FRESH, name="parts"))
    parts = train(setting.config(*everything, "train.max_steps=9", name="parts"))
    one, other = (checkpoints.read(Path(result["run"]) / "checkpoints/last.pt") for result in (whole, parts))
    pairs = [
        (a, b)
        for key in ("model", "ema", "optimizer")
        for a, b in zip(pytree.tree_leaves(one[key]), pytree.tree_leaves(other[key]), strict=True)
        if isinstance(a, torch.Tensor)
    ]
    different = sum(not torch.equal(a, b) for a, b in pairs)
    yield {"tensors": len(pairs), "different": different, "steps": other["step"]}


def half(setting: Setting) -> Rows:
    """Short runs in fp16 and in the precision that auto takes, beside fp32: the losses that they reach."""
    for precision in ("fp32", "auto", "fp16"):
        overrides = [
            FRESH,
            f"train.precision={precision}",
            "train.max_steps=12",
            f"data.image_px={setting.image_px // 2}",
        ]
        config = setting.config(*overrides, "tracking.log_every_steps=1", name=f"precision-{precision}")
        train(config)
        records = read_log(config.run_dir / "log.jsonl")
        losses = [record["loss"] for record in records if record["kind"] == "step"]
        skipped = sum(record["skipped_steps"] for record in records if record["kind"] == "fp16")
        yield {"case": precision, "first_loss": losses[0], "last_loss": losses[-1], "skipped_steps": skipped}


def whole_runs(setting: Setting) -> Rows:
    """Whole epochs from the store, validation and checkpoints included, beside the time of their steps alone."""
    for case, overrides in {
        "eager": [],
        "compiled, ema": ["train.compile=true", "train.ema_decay=0.999"],
    }.items():
        epochs = 2 if setting.tiny else 3
        config = setting.config(*overrides, FRESH, f"train.epochs={epochs}", name=f"run-{case[:5]}")
        train(config)
        ends = [record for record in read_log(config.run_dir / "log.jsonl") if record["kind"] == "epoch"]
        last, before = ends[-1], ends[-2]
        steps = last["step"] - before["step"]
        yield {
            "case": case,
            "steps": steps,
            "images_per_s": round(last["images_per_s"], 1),
            "data_wait": round(last["data_wait"], 4),
            "epoch_s": round(last["seconds"] - before["seconds"], 2),
            "learning_s": round(steps * setting.batch_size / last["images_per_s"], 2),
            "peak_gib": round(last["memory_gib"], 2),
        }
