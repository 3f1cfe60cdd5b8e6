"""What a run is: typed, frozen, strict. The defaults are the baseline recipe.

A configuration is a YAML file that holds only the keys that differ from the defaults, plus dotted
overrides (`optim.lr=0.01`). There are no includes, no interpolation and no registries. YAML is
read as version 1.2, so that `1e-3` is a number and `no` is text.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.data import OWN, DataConfig
from pipeline.config.evaluation import EvalConfig, ReportConfig, SummaryConfig, views_in_words
from pipeline.config.model import ModelConfig
from pipeline.config.optim import Cosine, OptimConfig, PlateauRule, ReduceOnPlateau, ScheduleConfig, SwatsRule
from pipeline.config.run import RunConfig, TrackingConfig
from pipeline.config.training import DistributedConfig, LrFindConfig, TrainConfig
from pipeline.config.types import Section


class Config(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """seed of the validation split, image order, augmentation and initial weights"""
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = Cosine()
    train: TrainConfig = TrainConfig()
    distributed: DistributedConfig = DistributedConfig()
    lr_find: LrFindConfig = LrFindConfig()
    summary: SummaryConfig = SummaryConfig()
    eval: EvalConfig = EvalConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.needs_validation and self.why_no_validation is not None:
            raise ValueError(f"{self.needs_validation[0]} needs validation, and {self.why_no_validation}")
        self._check_sharding()
        self._check_compilation()
        self._check_start()
        self._check_phases()
        self._check_lengths()
        self._check_views()
        return self

    def _check_views(self) -> None:
        """The crops of evaluation lie within the stored pictures."""
        stored_px, image_px = self.data.resize_px, self.eval.image_px or self.data.image_px
        if image_px > stored_px + 2 * self.data.pad_px:
            raise ValueError(
                f"eval.image_px: {image_px} is larger than data.resize_px={stored_px}; prepare larger pictures with "
                f"`plumage data ... data.resize_px={image_px}` or more, and evaluate with the same"
            )
        if self.eval.tta == "ten_crop" and image_px > stored_px:
            key = "data.image_px" if self.eval.image_px is None else "eval.image_px"
            raise ValueError(f"eval.tta: ten_crop needs corners, and {key} is larger than data.resize_px")

    def _check_start(self) -> None:
        """The head of a probe is one linear layer on pretrained features."""
        if self.train.start_from == "random":
            return
        if not self.model.pretrained:
            raise ValueError(
                "train.start_from: probe is a head for pretrained features, and model.pretrained is false; drop one of "
                "the two"
            )
        if self.model.mid_level_head:
            raise ValueError(
                "train.start_from: probe knows one head, and model.mid_level_head adds a second; drop one of the two"
            )

    def _check_phases(self) -> None:
        """Every phase begins within the training, and its own schedule fits into it."""
        epochs, begin = self.train.epochs, 0
        for i, phase in enumerate(self.optim.phases):
            if isinstance(phase.until, int) and phase.until >= epochs:
                place = "the last of" if phase.until == epochs else "beyond"
                raise ValueError(
                    f"optim.phases: {phase.name} ends at epoch {phase.until}, {place} "
                    f"train.epochs={epochs}; give `until` a smaller number"
                )
            end = phase.until if isinstance(phase.until, int) else epochs
            for key, value in phase.schedule.too_long(end - begin) if phase.schedule else ():
                raise ValueError(
                    f"optim.phases.{i}.schedule.{key}: {value:g} leaves nothing of the phase's {end - begin} epochs; "
                    "give a smaller number"
                )
            begin = phase.until if isinstance(phase.until, int) else begin  # a rule may end it at once

    def _check_lengths(self) -> None:
        """What begins or ends at an epoch does so within the training."""
        epochs, data, optim = self.train.epochs, self.data, self.optim
        lengths = [(f"schedule.{key}", value) for key, value in self.schedule.too_long(epochs)]
        if optim.unfreeze_epoch is not None and optim.unfreeze_epoch >= epochs:
            lengths.append(("optim.unfreeze_epoch", optim.unfreeze_epoch))
        if data.progressive and data.progressive[-1].until_epoch >= epochs:
            lengths.append(("data.progressive", data.progressive[-1].until_epoch))
        if lengths:
            key, value = lengths[0]
            raise ValueError(
                f"{key}: {value:g} leaves nothing of train.epochs={epochs}; give a smaller number"
            )

    def _check_sharding(self) -> None:
        if self.distributed.shard == "none":
            return
        unsupported: dict[str, bool] = {
            "train.precision=fp16": self.train.precision == "fp16",
            "train.compile": self.train.compile,
            "distributed.compress": self.distributed.compress != "none",
            "optim.batch_size=auto": self.optim.batch_size == "auto",
            **{mix.name: mix.follows_activation for mix in self.train.mix},
            "tracking.gradients_every_steps": self.tracking.gradients_every_steps is not None,
            "a phase until swats": any(isinstance(phase.until, SwatsRule) for phase in self.optim.phases),
        }
        if conflicts := [name for name, used in unsupported.items() if used]:
            raise ValueError(f"distributed.shard=full does not support {conflicts[0]}; drop one of the two")

    def _check_compilation(self) -> None:
        """What torch.compile and CUDA graphs can take.

        With graphs, a step is one pass: the next would be recorded into the memory of gradients that it adds to.
        """
        if self.train.compile and self.distributed.bucket_mb < 1:
            raise ValueError(
                f"distributed.bucket_mb={self.distributed.bucket_mb:g} is below torch.compile's first bucket of 1 MiB; "
                "set it to 1 or more"
            )
        if not self.train.cuda_graphs:
            return
        if not self.train.compile:
            raise ValueError(
                "train.cuda_graphs records what torch.compile makes; set train.compile=true, too"
            )
        at_once = self.optim.batch_size
        of_steps = [self.optim.images_per_step, *(stage.images_per_step for stage in self.data.progressive)]
        if at_once == "auto" or any(images is not None and images > at_once for images in of_steps):
            raise ValueError(
                "train.cuda_graphs takes each step in one pass; give optim.batch_size as a number, and no more images "
                "a step"
            )

    @property
    def needs_validation(self) -> list[str]:
        """The keys that are set and need validation images."""
        schedules = [self.schedule, *(phase.schedule for phase in self.optim.phases)]
        needing = {
            "schedule.name=plateau": any(isinstance(schedule, ReduceOnPlateau) for schedule in schedules),
            "a phase until a plateau": any(isinstance(p.until, PlateauRule) for p in self.optim.phases),
            "train.early_stop_epochs": self.train.early_stop_epochs is not None,
            "train.eval_every_steps": self.train.eval_every_steps is not None,
        }
        return [name for name, used in needing.items() if used]

    @property
    def why_no_validation(self) -> str | None:
        """Why no image can validate; None where some may: held out by keys, or brought by pictures of one's own.

        Whether those bring some is known when the data are loaded.
        """
        if self.train.refit is not None:
            return "train.refit learns from its images"
        return None if self.data.holds_out or self.data.source in OWN else "data.val_fraction is 0"

    @property
    def at_evaluation(self) -> "Config":
        """The same, with the size at evaluation (`eval.image_px`) in the place of that of training."""
        if self.eval.image_px is None:
            return self
        data = self.data.model_copy(update={"image_px": self.eval.image_px})
        return self.model_copy(update={"data": data})

    @property
    def views(self) -> str:
        """What evaluation shows of each picture, see `views_in_words`."""
        return views_in_words(self.eval.tta, self.eval.image_px, self.data.resize_px)

    @property
    def split_seed(self) -> int:
        """The seed of the validation split."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return self.run.root / (self.run.name or "baseline")
