"""torchvision's reference script (references/classification), by what its presets and its defaults are.

Defaults: batch 32, SGD with momentum 0.9, weight decay 1e-4, a tenth of the learning rate after each third of the epochs
(30 of 90), crops of 8 % of the area or more, mirroring, PIL. The learning rate 0.1 is for 8 GPUs, an eighth of it for
one process. Tuned: decoding by torchvision.io and transforms.v2 on tensors (`--backend tensor --use-v2`), cosine
(`--lr-scheduler cosineannealinglr`), channels_last, crops of 35 % or more. The network comes from timm, as do its mean
and std.
"""

from typing import Any

import timm
import torch
from plain_loops import predict, train_epoch
from recorder import Recorder, top1
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    torch.manual_seed(run.seed)
    layout = torch.channels_last if run.tuned else torch.contiguous_format
    network = timm.create_model(run.model, pretrained=True, num_classes=run.classes).to(memory_format=layout)
    crops = presets(network.pretrained_cfg, run.tuned)
    loaders = {
        split: DataLoader(
            ImageFolder(
                str(run.photographs / split),
                crops["train" if split == "train" else "val"],
                **({"loader": read_tensor} if run.tuned else {}),
            ),
            batch_size=32,
            shuffle=split == "train",
            num_workers=min(16, run.cores),
        )
        for split in ("train", "val", "test")
    }
    optimizer = torch.optim.SGD(network.parameters(), run.lr, momentum=0.9, weight_decay=1e-4)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if run.tuned:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.epochs)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, max(1, round(run.epochs / 3)), 0.1)
    run.training_begins()
    for _ in range(run.epochs):
        train_epoch(network, loaders["train"], nn.CrossEntropyLoss(), optimizer, layout)
        scheduler.step()
        run.epoch(
            top1(predict(network, loaders["val"], layout)), lambda: predict(network, loaders["test"], layout)
        )


def read_tensor(path: str) -> Any:
    """uint8 [3, H, W], RGB."""
    return decode_image(path, ImageReadMode.RGB)


def presets(config: dict[str, Any], tuned: bool) -> dict[str, Any]:
    """The transforms of training and of validation: 224 of 256 px."""
    mean, std = config["mean"], config["std"]
    if not tuned:
        end = [
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(mean, std),
        ]
        return {
            "train": transforms.Compose(
                [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *end]
            ),
            "val": transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *end]),
        }
    last = [v2.ToDtype(torch.float, scale=True), v2.Normalize(mean, std)]
    crop = v2.RandomResizedCrop(224, scale=(0.35, 1.0), antialias=True)
    return {
        "train": v2.Compose([crop, v2.RandomHorizontalFlip(), *last]),
        "val": v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), *last]),
    }


if __name__ == "__main__":
    main()
