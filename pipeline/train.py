"""A whole run: from a configuration to `best.pt`, and from wherever it was interrupted."""

from collections.abc import Iterator
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
    precision,
    resume,
    seeding,
    signals,
    terminal,
)
from pipeline.checkpoint import Best, Totals, TrainState
from pipeline.config import Config
from pipeline.data import loader, prepare, table
from pipeline.data.loader import Batch, Images, Loader
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed import Ranks
from pipeline.errors import DataError, Stopped
from pipeline.models.build import build, freeze_batchnorm, without_weights
from pipeline.schedule import lr_at
from pipeline.tracking import Nothing, Tracker, tracker


def train(config: Config) -> dict[str, Any]:
    """Train, or go on training; return where the best checkpoint is (on the first rank).

    Raises:
        UserError: data, weights or checkpoint are missing or do not fit, or the loss diverged.
        Stopped: a signal came; `last.pt` holds everything to go on from.
    """
    with distributed.ranks(config.train.device) as ranks, signals.deferred() as stop:
        if not ranks.first:
            terminal.mute()
        run = Run(config, ranks, stop)
        try:
            run.complete()
        finally:
            run.track.close()
        return run.result() if ranks.first else {}


class Run:
    """One run on one rank: what stays the same (data, model, tools) around the `TrainState`."""

    track: Tracker = Nothing()
    images_per_s = 0.0

    def __init__(self, config: Config, ranks: Ranks, stop: signals.StopRequest) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        data = prepare.load(config)
        self.train_rows, self.val_rows = (np.array(data.rows(split), np.int64) for split in ("train", "val"))
        if not len(self.train_rows):
            raise DataError("the sample table has no training image; check the data set's official split")
        self.labels = data.samples["label"].to_numpy("int64", copy=True)
        self.classes, self.samples = table.class_names(data.samples), table.digest(data.samples)
        self.steps_per_epoch = loader.steps_per_epoch(len(self.train_rows), config.optim.batch_size)
        steps = config.train.epochs * self.steps_per_epoch
        self.last_step = min(steps, config.train.max_steps or steps)
        self.train_loader = self._loader(data, Augmentation(config.data, config.seed))
        self.val_loader = self._loader(data, CentreCrop(config.data))
        before = resume.start_from(config, self.classes, self.samples)
        decided = before[1]["precision"] if before else config.train.precision
        self.precision = precision.resolve(decided, ranks.device)
        self.how = engine.Learning(config.seed, config.train.label_smoothing, self.precision, ranks)
        self.state, self.weights = self._fresh_state(pretrained=before is None)
        if before is not None:
            checkpoint.restore(self.state, before[1], before[0])
            self.weights = before[1]["weights"]
        elif ranks.first and config.train.resume == "never":
            resume.put_aside(config.run_dir)
        self.parallel = ranks.parallel(self.state.model)
        if ranks.first:
            self._record()
            self.track = tracker(config, self.state.step)

    def complete(self) -> None:
        """Learn and validate, epoch by epoch, until the last step."""
        while True:
            if self.state.totals.seen and self._epoch_is_over():
                self._close_epoch()
            if self.state.step >= self.last_step:
                return
            self._learn_epoch()

    def result(self) -> dict[str, Any]:
        """Where the run and its best epoch are, in plain types."""
        best = self.state.best
        assert best is not None, "the last step closes an epoch, and an epoch that is closed has a best"
        chosen_by = "last epoch" if best.top1 is None else "validation"
        path = self.config.checkpoints_dir / "best.pt"
        terminal.say(f"done   best epoch {best.epoch} (by {chosen_by}): {path}")
        return {
            "run": str(self.config.run_dir),
            "best_epoch": best.epoch,
            "best_val_top1": best.top1,
            "chosen_by": chosen_by,
            "step": self.state.step,
            "checkpoint": str(path),
        }

    # An epoch

    def _epoch_is_over(self) -> bool:
        return self.state.step % self.steps_per_epoch == 0 or self.state.step >= self.last_step

    def _learn_epoch(self) -> None:
        """Learn from wherever the epoch stands to its end, to the last step, or to a signal."""
        config, state = self.config, self.state
        epoch, start = divmod(state.step, self.steps_per_epoch)
        batches = loader.epoch_batches(self.train_rows, config.optim.batch_size, config.seed, epoch)
        batches = batches[start : start + self.last_step - state.step]
        served = self.train_loader.serve(epoch, loader.share(batches, self.ranks))
        state.model.train()
        if config.model.freeze_batchnorm:
            freeze_batchnorm(state.model)
        # The first rank carries on the epoch's sums; all ranks' sums are added at its end.
        carried = [state.totals.loss, state.totals.correct] if self.ranks.first else [0.0, 0.0]
        sums = torch.tensor(carried, dtype=torch.float64, device=self.ranks.device)
        stopping = False
        with terminal.bar(f"epoch {epoch + 1}/{config.train.epochs}", sum(map(len, batches))) as bar:
            for rows, batch in zip(batches, served, strict=True):
                lr = self._lr()
                of_batch = engine.learn(state, self.parallel, batch, len(rows), lr, self.how)
                sums += of_batch
                state.totals.seen += len(rows)
                bar.advance(len(rows), **self._log_step(of_batch, len(rows), lr))
                if stopping := self.ranks.any(self.stop.name is not None):
                    break
        loss, correct = self.ranks.sum(sums).tolist()
        state.totals.loss, state.totals.correct = engine.finite(loss, state.step, lr), int(correct)
        self.images_per_s = bar.rate
        if stopping:
            self._stop()

    def _lr(self) -> float:
        config = self.config
        return lr_at(
            config.schedule, config.optim.lr, self.state.step, self.steps_per_epoch, config.train.epochs
        )

    def _log_step(self, sums: torch.Tensor, images: int, lr: float) -> dict[str, float]:
        """Log every so many steps, and tell the bar: only then are the losses waited for."""
        if self.state.step % self.config.tracking.log_every_steps:
            return {}
        loss = engine.finite(float(self.ranks.sum(sums)[0]) / images, self.state.step, lr)
        self.track.log({"kind": "step", "step": self.state.step, "lr": lr, "loss": loss})
        return {"loss": loss, "lr": lr}

    def _close_epoch(self) -> None:
        """Validate, see whether it is the best, log, save."""
        state, totals = self.state, self.state.totals
        now = Best(-(-state.step // self.steps_per_epoch), state.step)
        if len(self.val_rows):
            now.top1, now.loss = self._validate()
        chosen = now.beats(state.best)
        state.best = now if chosen else state.best
        record = {
            "kind": "epoch",
            "step": state.step,
            "epoch": now.epoch,
            "lr": state.optimizer.param_groups[0]["lr"],
            "train_loss": totals.loss / totals.seen,
            "train_top1": totals.correct / totals.seen,
            "val_loss": now.loss,
            "val_top1": now.top1,
            "images_per_s": self.images_per_s,
        }
        self.track.log(record)
        state.totals = Totals()
        if chosen:
            self._save("best.pt")
        self._save("last.pt")
        figures = [f"{name} {record[name]:.4g}" for name in list(record)[3:8] if record[name] is not None]
        epoch = f"epoch {now.epoch}/{self.config.train.epochs}"
        terminal.say("  ".join([epoch, *figures, *["best so far"] * chosen]))

    def _validate(self) -> tuple[float, float]:
        batches = loader.in_order(self.val_rows, self.config.eval.batch_size)
        served = self._until_stopped(self.val_loader.serve(0, loader.share(batches, self.ranks)))
        looked = engine.look(self.state.model, served, self.val_rows, self.precision, self.ranks)
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
            f"{self.last_step}, saved in {self.config.checkpoints_dir / 'last.pt'}; the same command goes on"
        )

    def _save(self, name: str) -> None:
        if self.ranks.first:
            about = {
                "config": self.config.model_dump(mode="json"),
                "classes": self.classes,
                "samples": self.samples,
                "precision": self.precision,
                "weights": self.weights,
            }
            epoch = self.state.step // self.steps_per_epoch
            checkpoint.save(self.config.checkpoints_dir / name, self.state, epoch, about)
        self.ranks.wait()

    # Set-up

    def _loader(self, data: prepare.Prepared, view: Augmentation | CentreCrop) -> Loader:
        images = Images(data.store, self.labels, view, self.config.data.image_px)
        return Loader(images, loader.worker_count(self.config.data.workers, self.ranks), self.ranks.device)

    def _fresh_state(self, *, pretrained: bool) -> tuple[TrainState, dict[str, Any]]:
        config, device = self.config, self.ranks.device
        of_model = config.model if pretrained else without_weights(config.model)
        torch.manual_seed(seeding.seed_of("weights", config.seed))
        model, weights = build(of_model, len(self.classes))
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = optim.sgd(
            optim.parameter_groups(model, model.head, config.optim),
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            nesterov=config.optim.nesterov,
        )
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        return TrainState(model, optimizer, scaler), weights

    def _record(self) -> None:
        """Write what the run is, and say it."""
        config, folder, weights = self.config, self.config.run_dir, self.weights
        if self.state.step >= self.last_step:
            return  # already finished, maybe by other code on another machine: leave its record alone
        files.write_text(folder / "config.yaml", config_file.dump(config))
        about = {
            **environment.describe(self.ranks.device),
            "precision": self.precision,
            "weights": self.weights,
            "samples": self.samples,
        }
        files.write_json(folder / "environment.json", about)
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        terminal.say(
            f"run    {folder}, step {self.state.step} of {self.last_step}\n"
            f"model  {config.model.name}, {parameters / 1e6:.2f} M parameters, {len(self.classes)} classes; weights: "
            f"{weights['source']}, {weights['share']:.0%} of the body loaded ({weights['tensors']} tensors)\n"
            f"data   {len(self.train_rows)} images to train on, {len(self.val_rows)} to validate; "
            f"{config.data.image_px} px, batches of at most {config.optim.batch_size}\n"
            f"on     {self.ranks.world} x {self.ranks.device.type}, {self.precision}"
        )
