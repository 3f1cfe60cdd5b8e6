"""Hugging Face's Trainer as its example script for image classification has it, with a network of timm.

Defaults: batch 8, AdamW, learning rate 5e-5 that falls linearly, RandomResizedCrop and mirroring, PIL, loading in the
main process.
"""

from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from recorder import Predicted, Recorder
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from transformers import (
    AutoModelForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    set_seed(run.seed)
    data = load_dataset("imagefolder", data_dir=str(run.photographs), cache_dir=f"{run.out}.cache")
    network = AutoModelForImageClassification.from_pretrained(
        f"timm/{run.model}.in1k", num_labels=run.classes, ignore_mismatched_sizes=True
    )
    config = network.config.pretrained_cfg
    end = [ToTensor(), Normalize(config["mean"], config["std"])]
    training = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), *end])
    validation = Compose([Resize(224), CenterCrop(224), *end])
    for split, transform in (("train", training), ("validation", validation), ("test", validation)):
        data[split].set_transform(as_pixels(transform))
    arguments = TrainingArguments(
        output_dir=f"{run.out}.trainer",
        learning_rate=run.lr,
        num_train_epochs=run.epochs,
        seed=run.seed,
        eval_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=network,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=collate,
        compute_metrics=lambda answers: {
            "accuracy": float(np.mean(np.argmax(answers.predictions, 1) == answers.label_ids))
        },
    )

    class AfterEachEpoch(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
            run.epoch(more["metrics"]["eval_accuracy"], test)

    def test() -> Predicted:
        truth: list[int] = []
        predicted: list[int] = []
        network.eval()
        with torch.inference_mode():
            for batch in trainer.get_test_dataloader(data["test"]):
                truth += batch.pop("labels").tolist()
                predicted += network(**batch).logits.argmax(1).tolist()
        return truth, predicted

    trainer.add_callback(AfterEachEpoch())
    run.training_begins()
    trainer.train()


def as_pixels(transform: Any) -> Any:
    """A function of a batch of rows, as `set_transform` takes it."""

    def rows(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"pixel_values": [transform(image.convert("RGB")) for image in batch["image"]]}

    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """pixel_values [B, 3, 224, 224] and labels [B]."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


if __name__ == "__main__":
    main()
