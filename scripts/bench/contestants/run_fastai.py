"""fastai as its quick start has it: `vision_learner(dls, network).fine_tune(epochs, base_lr)`.

Defaults: batch 64, pictures resized and cropped to 224 px, one epoch of the head alone, then all layers, one cycle, the
learning rate of the trunk a hundredth of the head's. The network by timm's name.
"""

from typing import Any

import torch
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Resize,
    accuracy,
    get_image_files,
    set_seed,
    vision_learner,
)
from recorder import Predicted, Recorder


class AfterEachEpoch(Callback):  # type: ignore[misc]
    """Hands over validation and test."""

    order = 60  # after fastai's own recorder has validated

    def __init__(self, run: Recorder) -> None:
        """run: the task. Its name here is not `run`, by which fastai switches a callback off."""
        self.contest = run

    def after_epoch(self) -> None:
        """Of fastai: called when an epoch has been trained and validated."""
        self.contest.epoch(float(self.recorder.values[-1][-1]), self.test)

    def test(self) -> Predicted:
        """True and predicted labels of the test photographs."""
        files = get_image_files(self.contest.photographs / "test")
        truth: list[int] = []
        predicted: list[int] = []
        network: Any = self.learn.model
        network.eval()
        with torch.inference_mode():
            for images, labels in self.learn.dls.test_dl(files, with_labels=True):
                predicted += network(images).argmax(1).tolist()
                truth += labels.tolist()
        return truth, predicted


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    set_seed(run.seed)
    dls = ImageDataLoaders.from_folder(
        run.photographs, train="train", valid="val", item_tfms=Resize(224), seed=run.seed
    )
    learner = vision_learner(dls, run.model, metrics=accuracy, cbs=AfterEachEpoch(run))
    run.training_begins()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(max(1, run.epochs - 1), base_lr=run.lr)


if __name__ == "__main__":
    main()
