"""`eval`, `report` and `summary`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Section, UserPath, WordOrPath


def views_in_words(tta: str, image_px: int | None, resize_px: int | None) -> str:
    """What a model is shown of each picture: `none`, `flip`, or with `eval.image_px` `flip, 288 px of 329`.

    Answers to other views are other answers: temperature, thresholds and comparisons are of one kind of views.
    """
    return tta if image_px is None else f"{tta}, {image_px} px of {resize_px}"


class EvalConfig(Section):
    split: Literal["train", "val", "test"] = "test"
    """split to predict"""
    checkpoint: WordOrPath = "best"
    """checkpoint to evaluate: best, last, or a PATH"""
    batch_size: Count = 64
    """images predicted at once on each rank; does not change the results"""
    tta: Literal["none", "flip", "ten_crop"] = "none"
    """crops to average; none: centre; flip: centre and its mirror image; ten_crop: centre and corners, also mirrored"""
    image_px: Annotated[int, Field(ge=16)] | None = None
    """side of the crop at evaluation, px, cut from an image stored at data.resize_px; null: data.image_px"""
    labels: tuple[UserPath, ...] = ()
    """label files in the formats of `data.corrections`; each adds a score by its labels to the official one"""
    peek_gap: bool = False
    """evaluate the run's other checkpoints on test, too, to see what choosing on test would gain; not a result"""
    protocol: UserPath | None = None
    """registration (by `preregister`) that a reading of test is checked against; null: those in ROOT/protocols"""
    while_training: Literal["refuse", "wait", "evaluate"] = "refuse"
    """if the run is still training; refuse: an error; wait: until it has finished; evaluate: its current checkpoint"""

    @model_validator(mode="after")
    def _check(self) -> "EvalConfig":
        if self.peek_gap and self.split != "test":
            raise ValueError(f"peek_gap is about the test split; drop it or split={self.split}")
        return self


class ReportConfig(Section):
    write: bool = True
    """write report.html at the end of `eval`; the verb `report` always writes it"""
    gallery: Annotated[int, Field(ge=0)] = 48
    """number of wrong predictions shown with heat maps, those with the least probable true class first"""
    pairs: Annotated[int, Field(ge=0)] = 12
    """number of class pairs shown side by side, the most confused first"""
    explained: Count | None = 1000
    """number of random images whose heat maps are compared with boxes and parts; null: all"""
    sanity_checks: bool = False
    """accuracy on boxes alone and backgrounds alone, and heat maps of random weights, for images that have boxes"""
    neighbours: Annotated[int, Field(ge=0)] = 2
    """number of nearest training images shown with each mistake; 0: none, which saves a pass over the training images"""
    picture_px: Annotated[int, Field(ge=32, le=1024)] = 224
    """longer side of an image in report.html, px"""


class SummaryConfig(Section):
    """Options of `summary`, the table of a network's layers."""

    depth: Count = 2
    """depth of the table; 1: stages; 2: blocks; 3: layers of blocks"""
    classes: Count | None = None
    """number of outputs of the network; null: the number of classes of data.source"""
