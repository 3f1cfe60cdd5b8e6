"""timm's training script with `--pretrained --num-classes`, by the functions that the script calls and its defaults.

Defaults: batch 128, SGD with momentum 0.9, weight decay 2e-5, cosine an epoch, label smoothing 0.1, crops of 8 % of the
area or more, colour jitter 0.4; the learning rate is 0.1 for 256 images. Of the 5 warm-up epochs, whose first has a
rate of 1e-5, a short run has a tenth of its epochs, for with all 5 it would learn nothing. Tuned: batch 32, crops of
35 % or more, no warm-up, the rate by the step (`--sched-on-updates`), channels_last, and bfloat16 where a step of it is
faster here (tried with the clock stopped).
"""

import time
from contextlib import nullcontext
from typing import Any

import timm
import torch
from plain_loops import predict
from recorder import Recorder, top1
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    torch.manual_seed(run.seed)
    layout = torch.channels_last if run.tuned else torch.contiguous_format
    batch_size = 32 if run.tuned else 128
    network = timm.create_model(run.model, pretrained=True, num_classes=run.classes).to(memory_format=layout)
    config = resolve_data_config({}, model=network)

    def loader(split: str, **more: Any) -> Any:
        dataset = create_dataset("", run.photographs, split=split, is_training=split == "train")
        shared: dict[str, Any] = {key: config[key] for key in ("input_size", "mean", "std", "crop_pct")}
        shared |= {"num_workers": min(4, run.cores), "device": torch.device("cpu")}
        return create_loader(dataset, batch_size=batch_size, **shared, **more)

    scale = (0.35, 1.0) if run.tuned else (0.08, 1.0)
    train = loader("train", is_training=True, interpolation="random", scale=scale)
    val, test = (loader(split, interpolation=config["interpolation"]) for split in ("val", "test"))
    optimizer = create_optimizer_v2(network, opt="sgd", lr=run.lr, weight_decay=2e-5, momentum=0.9)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=run.epochs,
        warmup_epochs=0 if run.tuned else min(5, run.epochs // 10),
        step_on_epochs=not run.tuned,
        updates_per_epoch=len(train),
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    with run.stopped():
        half = run.tuned and bfloat16_is_faster(network, config["input_size"])
    run.training_begins()
    for epoch in range(run.epochs):
        network.train()
        for step, (images, labels) in enumerate(train, epoch * len(train) + 1):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                value = loss(network(images.contiguous(memory_format=layout)), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step_update(step)  # of a rate by the epoch it changes nothing
        scheduler.step(epoch + 1)
        run.epoch(top1(predict(network, val, layout)), lambda: predict(network, test, layout))


def bfloat16_is_faster(network: Any, input_size: tuple[int, ...]) -> bool:
    """By the faster of two forward and backward passes of 8 images each, after one that is not counted."""
    images = torch.randn(8, *input_size).contiguous(memory_format=torch.channels_last)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    network.eval()  # the running statistics stay as they are
    for _ in range(3):
        for half, found in seconds.items():
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                value = network(images).float().mean()
            value.backward()
            found.append(time.process_time() - start)
    network.zero_grad()
    return min(seconds[True][1:]) < min(seconds[False][1:])


if __name__ == "__main__":
    main()
