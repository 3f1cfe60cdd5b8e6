"""What comes of a run: its evaluation, its report, and where its numbers go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config_solver import Count, Section


class EvalConfig(Section):
    split: Literal["train", "val", "test"] = "test"
    checkpoint: str = "best"
    """best, last, or a checkpoint's PATH"""
    batch_size: Count = 64
    """images a step on one rank; no result depends on it"""
    tta: Literal["none", "flip", "ten_crop"] = "none"
    """views whose probabilities are averaged: centre crop; with its mirror image; centre and corners, mirrored too"""
    peek_gap: bool = False
    """also read test with the run's other checkpoints, to see what choosing on test would gain; not a result"""

    @model_validator(mode="after")
    def _peek_at_test(self) -> "EvalConfig":
        if self.peek_gap and self.split != "test":
            raise ValueError(f"peek_gap is about the test split; drop it or split={self.split}")
        return self


class ReportConfig(Section):
    write: bool = True
    """eval ends with report.html; the verb report writes it in any case"""
    gallery: Annotated[int, Field(ge=0)] = 48
    """wrong predictions shown with their heat maps, the worst first"""
    pairs: Annotated[int, Field(ge=0)] = 12
    """most confused pairs of classes that are shown side by side"""
    explained: Count | None = 1000
    """images, drawn at random, whose heat maps are held against boxes and parts; null: all"""
    neighbours: Annotated[int, Field(ge=0)] = 2
    """nearest training images beside each mistaken one; 0: none, and no pass over the training images"""
    picture_px: Annotated[int, Field(ge=32, le=1024)] = 224
    """longer side of a picture in report.html"""


class TrackingConfig(Section):
    """log.jsonl is always written; all else is made from it."""

    log_every_steps: Count = 10
    """a record of log.jsonl every so many training steps, besides one an epoch"""
    gradients_every_steps: Count | None = None
    """histograms of each weight's gradient every so many steps; null: none"""
    tensorboard: bool = False
    """event files in RUN/tensorboard"""
    csv: bool = False
    """tables in RUN/csv, one a kind of record"""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """online: while the run goes on; offline: a folder in RUN/wandb; the verb sync does either later"""
    project: str = "plumage"
    entity: str | None = None
    """W&B user or team; null: the key's own"""
    name: str | None = None
    """of the run in W&B; null: run.name"""
    group: str | None = None
    """runs of one group are shown together, such as the seeds of a recipe"""
    tags: tuple[str, ...] = ()
    notes: str | None = None
    log_checkpoint: bool = True
    """best.pt goes to W&B too"""
    upload_wait_s: Annotated[float, Field(ge=0)] = 300
    """how long the end of a run waits for W&B to take the rest"""
