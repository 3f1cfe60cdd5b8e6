"""AutoGluon's MultiModalPredictor with `presets="medium_quality"`, told only the network, the epochs and the rate.

It has no place for a measurement between epochs, and its result is an average of checkpoints made at the end. So a run
is one point. It asks for an earlier PyTorch and gets this one.
"""

from typing import Any

import pandas as pd
from autogluon.multimodal import MultiModalPredictor
from recorder import Predicted, Recorder, top1


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    train, val, test = (table(run, split) for split in ("train", "val", "test"))
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=f"{run.out}.predictor")
    run.training_begins()
    predictor.fit(
        train,
        presets="medium_quality",
        tuning_data=val,
        seed=run.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": run.model,
            "optim.max_epochs": run.epochs,
            "optim.lr": run.lr,
        },
    )

    def answers(rows: pd.DataFrame) -> Predicted:
        return rows["label"].tolist(), predictor.predict(rows.drop(columns="label")).tolist()

    run.epoch(top1(answers(val)), lambda: answers(test))


def table(run: Recorder, split: str) -> Any:
    """A row a photograph: image (its path), label (the number of its class)."""
    classes = sorted((run.photographs / split).iterdir())
    rows = [(str(path), label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())]
    return pd.DataFrame(rows, columns=["image", "label"])


if __name__ == "__main__":
    main()
