"""A whole run: from a configuration to `best.pt`, and from wherever it was interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import (
    checkpoint,
    config_file,
    distributed,
    engine,
    environment,
    files,
    optim,
    seeding,
    signals,
    terminal,
)
from pipeline.checkpoint import Best, Totals, TrainState
from pipeline.config import Config
from pipeline.data import loader, prepare, table
from pipeline.data.loader import Batch
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed import Ranks
from pipeline.errors import CheckpointError, DataError, Stopped
from pipeline.models.build import build, freeze_batchnorm
from pipeline.schedule import lr_at
from pipeline.tracking import Nothing, Tracker, tracker

# What may differ between a checkpoint and the run that goes on from it: it changes no number.
FREE_KEYS = (
    "run.",
    "eval.",
    "tracking.",
    "data.root",
    "data.archive",
    "data.store",
    "data.workers",
    "model.pretrained",
    "model.weights",
    "train.device",
    "train.max_steps",
    "train.resume",
)


def train(config: Config) -> dict[str, Any]:
    """Train, or go on training, and return where the best checkpoint is.

    Raises:
        UserError: data, weights or checkpoint are missing or do not fit, or the loss diverged.
        Stopped: a signal came; `last.pt` holds everything to go on from.
    """
    with distributed.ranks(config.train.device) as ranks, signals.deferred() as stop:
        if not ranks.first:
            terminal.mute()
        run = Run(config, ranks, stop)
        try:
            result = run.complete()
            return result if ranks.first else {}
        finally:
            run.track.close()


class Run:
    """One run on one rank: what stays the same (data, model, tools) around the `TrainState`."""

    def __init__(self, config: Config, ranks: Ranks, stop: signals.StopRequest) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        self.data = prepare.load(config)
        self.rows = {split: self.data.rows(split) for split in ("train", "val")}
        if not self.rows["train"]:
            raise DataError(
                "the sample table has no training image; lower data.val_fraction or check the data"
            )
        self.labels = self.data.samples["label"].to_numpy("int64", copy=True)
        self.classes = table.class_names(self.data.samples)
        self.samples = table.digest(self.data.samples)
        self.steps_per_epoch = loader.steps_per_epoch(len(self.rows["train"]), config.optim.batch_size)
        self.last_step = config.train.epochs * self.steps_per_epoch
        if config.train.max_steps is not None:
            self.last_step = min(self.last_step, config.train.max_steps)
        self.dtype = engine.precision_on(ranks.device, config.train.precision)
        self.track: Tracker = Nothing()
        self.images_per_s = 0.0
        self.state, origin = self._fresh_state()
        self._resume()
        self.parallel = ranks.parallel(self.state.model)
        self.loaders = {
            "train": self._loader(Augmentation(config.data, config.seed)),
            "val": self._loader(CentreCrop(config.data)),
        }
        if ranks.first:
            self._describe(origin)
            self.track = tracker(config, self.state.step)

    def complete(self) -> dict[str, Any]:
        """Learn and validate until the last step."""
        while True:
            if self.state.totals.seen and self._epoch_is_over():
                self._close_epoch()
            if self.state.step >= self.last_step:
                return self._result()
            self._learn_epoch()

    # -- an epoch ---------------------------------------------------------------------------------

    def _epoch_is_over(self) -> bool:
        return self.state.step % self.steps_per_epoch == 0 or self.state.step >= self.last_step

    def _learn_epoch(self) -> None:
        """Learn from wherever the epoch stands to its end, or to the last step."""
        config, state = self.config, self.state
        epoch, start = divmod(state.step, self.steps_per_epoch)
        size = config.optim.batch_size
        batches = loader.epoch_batches(self.rows["train"], size, config.seed, epoch)
        batches = batches[start : start + self.last_step - state.step]
        state.model.train()
        if config.model.freeze_batchnorm:
            freeze_batchnorm(state.model)
        how = engine.Learning(config.seed, config.train.label_smoothing, self.dtype, self.ranks)
        sums = torch.tensor([state.totals.loss, state.totals.correct], dtype=torch.float64)
        sums = (sums if self.ranks.first else sums * 0).to(self.ranks.device)
        label = f"epoch {epoch + 1}/{config.train.epochs}"
        images = sum(map(len, batches))
        served = self.loaders["train"].serve(epoch, loader.share(batches, self.ranks))
        with terminal.bar(label, images) as bar:
            for whole, batch in zip(batches, served, strict=True):
                lr = lr_at(
                    config.schedule, config.optim.lr, state.step, self.steps_per_epoch, config.train.epochs
                )
                batch_sums = engine.learn(state, self.parallel, batch, len(whole), lr, how)
                sums += batch_sums
                state.totals.seen += len(whole)
                if state.step % config.tracking.log_every_steps == 0 or state.step == self.last_step:
                    loss = float(self.ranks.sum(batch_sums)[0]) / len(whole)
                    self._log_step(engine.finite(loss, state.step, lr), lr)
                    bar.advance(len(whole), loss=loss, lr=f"{lr:.2e}")
                else:
                    bar.advance(len(whole))
                stopping = self.ranks.any(self.stop.name is not None)
                if stopping:
                    break
        loss_sum, correct = self.ranks.sum(sums).tolist()
        engine.finite(loss_sum, state.step, lr)
        state.totals.loss, state.totals.correct = loss_sum, int(correct)
        self.images_per_s = bar.rate
        if stopping:
            self._stop()

    def _log_step(self, loss: float, lr: float) -> None:
        self.track.log({"kind": "step", "step": self.state.step, "lr": lr, "loss": loss})

    def _close_epoch(self) -> None:
        """Validate, note the best, log, save."""
        config, state, totals = self.config, self.state, self.state.totals
        epoch = -(-state.step // self.steps_per_epoch)
        best = Best(epoch, state.step)
        if self.rows["val"]:
            best.top1, best.loss = self._validate()
        chosen = best.beats(state.best)
        state.best = best if chosen else state.best
        record = {
            "kind": "epoch",
            "step": state.step,
            "epoch": epoch,
            "lr": state.optimizer.param_groups[0]["lr"],
            "train_loss": totals.loss / totals.seen,
            "train_top1": totals.correct / totals.seen,
            "val_loss": best.loss,
            "val_top1": best.top1,
            "images_per_s": self.images_per_s,
        }
        self.track.log(record)
        state.totals = Totals()
        self._save("last.pt")
        if chosen:
            self._save("best.pt")
        validation = "" if best.top1 is None else f"  val loss {best.loss:.4f} top-1 {best.top1:.4f}"
        terminal.say(
            f"epoch {epoch}/{config.train.epochs}  lr {record['lr']:.3g}"
            f"  train loss {record['train_loss']:.4f} top-1 {record['train_top1']:.4f}"
            f"{validation}{'  best so far' if chosen and self.rows['val'] else ''}"
        )

    def _validate(self) -> tuple[float, float]:
        rows = np.array(self.rows["val"], np.int64)
        batches = loader.in_order(rows, self.config.eval.batch_size)
        served = self.loaders["val"].serve(0, loader.share(batches, self.ranks))
        looked = engine.look(self.state.model, self._until_stopped(served), rows, self.dtype, self.ranks)
        return looked.scores(self.labels)

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.ranks.any(self.stop.name is not None):
                self._stop()
            yield batch

    def _stop(self) -> None:
        self._save("last.pt")
        raise Stopped(
            f"stopped by {self.stop.name or 'a signal on another rank'} at step {self.state.step} of "
            f"{self.last_step}, all saved in {self.config.checkpoints_dir / 'last.pt'}; the same command goes on"
        )

    # -- state ------------------------------------------------------------------------------------

    def _fresh_state(self) -> tuple[TrainState, dict[str, Any]]:
        config, device = self.config, self.ranks.device
        torch.manual_seed(seeding.seed_of("weights", config.seed))
        model, origin = build(config.model, len(self.classes))
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = optim.sgd(
            optim.parameter_groups(model, model.head, config.optim),
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            nesterov=config.optim.nesterov,
        )
        scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        return TrainState(model, optimizer, scaler), origin

    def _resume(self) -> None:
        """Load the checkpoint that `train.resume` names; put an earlier run aside for `never`."""
        wanted, last = self.config.train.resume, self.config.checkpoints_dir / "last.pt"
        if wanted == "never":
            if self.ranks.first:
                put_aside(self.config.run_dir)
            return
        if wanted == "auto" and not last.is_file():
            return
        path = last if wanted == "auto" else Path(wanted)
        content = checkpoint.read(path)
        checkpoint.check_data(content, path, self.classes, self.samples)
        self._same_config(content, path)
        checkpoint.restore(self.state, content, path)
        terminal.say(f"resume  {path} at step {self.state.step} of {self.last_step}")

    def _same_config(self, content: dict[str, Any], path: Path) -> None:
        before, now = content["config"], self.config.model_dump(mode="json")
        changed = [
            f"{key} {a} -> {b}"
            for key, a, b in config_file.differences(before, now)
            if not key.startswith(FREE_KEYS)
        ]
        if changed:
            raise CheckpointError(
                f"{path}: was trained with another configuration ({', '.join(changed)}); take the same one, another "
                "run.name, or train.resume=never, which puts the earlier run aside"
            )

    def _save(self, name: str) -> None:
        if self.ranks.first:
            about = {
                "config": self.config.model_dump(mode="json"),
                "classes": self.classes,
                "samples": self.samples,
            }
            epoch = self.state.step // self.steps_per_epoch
            checkpoint.save(self.config.checkpoints_dir / name, self.state, epoch, about)
        self.ranks.wait()

    # -- tools ------------------------------------------------------------------------------------

    def _loader(self, view: Augmentation | CentreCrop) -> loader.Loader:
        data = self.config.data
        images = loader.Images(self.data.store, self.labels, view, data.image_px)
        return loader.Loader(images, loader.worker_count(data.workers, self.ranks), self.ranks.device)

    def _describe(self, origin: dict[str, Any]) -> None:
        """Write what the run is and say it in a few lines."""
        config, folder = self.config, self.config.run_dir
        files.write_text(folder / "config.yaml", config_file.dump(config))
        about = {**environment.describe(self.ranks.device), "weights": origin, "samples": self.samples}
        files.write_json(folder / "environment.json", about)
        count = sum(parameter.numel() for parameter in self.state.model.parameters())
        precision = str(self.dtype).removeprefix("torch.")
        terminal.say(f"run    {folder}")
        terminal.say(
            f"model  {config.model.name}, {count / 1e6:.2f} M parameters, {len(self.classes)} classes; weights: "
            f"{origin['source']}, {origin['share']:.0%} of the body's tensors loaded ({origin['tensors']})"
        )
        terminal.say(
            f"train  {len(self.rows['train'])} images, validation {len(self.rows['val'])}; {config.data.image_px} px, "
            f"{self.last_step} steps of {config.optim.batch_size}, {self.ranks.world} x {self.ranks.device}, {precision}"
        )

    def _result(self) -> dict[str, Any]:
        best = self.state.best
        assert best is not None, "the last step closes an epoch, and an epoch has a best"
        chosen_by = "validation" if best.top1 is not None else "last epoch"
        terminal.say(
            f"done   best epoch {best.epoch} ({chosen_by}): {self.config.checkpoints_dir / 'best.pt'}"
        )
        return {
            "run": str(self.config.run_dir),
            "best_epoch": best.epoch,
            "best_val_top1": best.top1,
            "chosen_by": chosen_by,
            "step": self.state.step,
            "checkpoint": str(self.config.checkpoints_dir / "best.pt"),
        }


def put_aside(run_dir: Path) -> None:
    """Rename an earlier run's folder to NAME.1, NAME.2, ...: nothing is deleted."""
    if not run_dir.exists():
        return
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(aside)
    terminal.say(f"put aside  {run_dir} is now {aside}")
