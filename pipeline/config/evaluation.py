"""What comes of a run: its evaluation, its report, and where its numbers go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Section


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


class SummaryConfig(Section):
    """The table of a network's layers."""

    depth: Count = 2
    """1: stages; 2: blocks; 3: the layers within blocks"""
    classes: Count | None = None
    """outputs of the network; null: the classes of data.source"""
