"""The user's article: a script of plain PyTorch with its optimizer, its steps and its crops, at 224 px.

Batch 8, SGD with Nesterov momentum 0.9, weight decay 5e-5, learning rate 2e-3, halved after 20 and 30 of 88 epochs and a
fifth after 50; these moments are shares of the run. Crops of 25 % of the area or more, mirroring, PIL.
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

STEPS = ((20 / 88, 0.5), (30 / 88, 0.5), (50 / 88, 0.2))


def main() -> None:
    """Fine-tune as the task says."""
    run = Recorder()
    torch.manual_seed(run.seed)
    network = timm.create_model(run.model, pretrained=True, num_classes=run.classes)
    end = [
        transforms.ToTensor(),
        transforms.Normalize(network.pretrained_cfg["mean"], network.pretrained_cfg["std"]),
    ]
    crop = transforms.RandomResizedCrop(224, scale=(0.25, 1.0))
    training = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end])
    validation = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *end])

    def loader(split: str, transform: Any, **more: Any) -> Any:
        folder = ImageFolder(str(run.photographs / split), transform)
        return DataLoader(folder, num_workers=min(4, run.cores), **more)

    train = loader("train", training, batch_size=8, shuffle=True)
    val, test = (loader(split, validation, batch_size=32) for split in ("val", "test"))
    optimizer = torch.optim.SGD(network.parameters(), run.lr, momentum=0.9, nesterov=True, weight_decay=5e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: factor(epoch / run.epochs))
    run.training_begins()
    for _ in range(run.epochs):
        train_epoch(network, train, nn.CrossEntropyLoss(), optimizer)
        scheduler.step()
        run.epoch(top1(predict(network, val)), lambda: predict(network, test))


def factor(share: float) -> float:
    """Of the learning rate, after a share of the epochs."""
    product = 1.0
    for after, times in STEPS:
        product *= times if share >= after else 1.0
    return product


if __name__ == "__main__":
    main()
