"""The batches that a loader serves: the same ones with any number of processes, from any batch on."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.config.data import DataConfig
from pipeline.data import loader, prepare
from pipeline.data.loader import Batch, worker_count
from pipeline.data.sampling import epoch_order, in_batches
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed.process_group import Ranks
from tests.helpers import tiny
from tests.helpers.loading import images_of

CPU = torch.device("cpu")


def augmented(birds: Path, workers: int, epoch: int, start: int = 0) -> list[Batch]:
    """The batches of an epoch through a real DataLoader."""
    config = tiny.config(birds)
    images = images_of(birds, Augmentation(config.data, config.seed))
    server = loader.Loader(images, workers, CPU)
    return list(server.batches(epoch, in_batches(epoch_order(range(60), 0, epoch), 8)[start:]))


def digests(batches: list[Batch]) -> dict[int, str]:
    """What each row looked like."""
    return {
        int(row): hashlib.md5(picture.contiguous().numpy().tobytes()).hexdigest()
        for batch in batches
        for picture, row in zip(batch.image, batch.row, strict=True)
    }


def test_augmentation_does_not_depend_on_the_number_of_workers(birds: Path) -> None:
    alone = digests(augmented(birds, workers=0, epoch=0))
    assert len(alone) == 60
    assert digests(augmented(birds, workers=2, epoch=0)) == alone


def test_augmentation_differs_between_workers_and_epochs(birds: Path) -> None:
    """The same picture at every row: what differs is the random stream alone (albumentations 2.0.8 repeats it)."""
    config = tiny.config(birds)
    images = images_of(birds, Augmentation(config.data, config.seed))
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    images.store = [picture] * 60  # type: ignore[assignment]
    server = loader.Loader(images, 2, CPU)
    # Two workers take batches in turn: batch 0 is the first worker's first, batch 1 the second's.
    first, second = (
        digests(list(server.batches(epoch, np.array_split(np.arange(60), 2)))) for epoch in (0, 1)
    )
    ours, theirs = [first[row] for row in range(30)], [first[row] for row in range(30, 60)]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) >= 25
    assert sum(first[row] != second[row] for row in first) >= 50
    assert len(set(first.values())) >= 40  # 81 crops x 2 mirrorings are possible


def test_an_epoch_begun_in_its_middle_is_the_end_of_the_whole_one(birds: Path) -> None:
    whole, tail = augmented(birds, 0, epoch=2), augmented(birds, 0, epoch=2, start=3)
    assert len(tail) == len(whole) - 3
    for one, other in zip(whole[3:], tail, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.row, other.row)


def test_a_batch_is_uint8_channels_last_with_the_labels_of_its_rows(birds: Path) -> None:
    samples = prepare.load(tiny.config(birds)).samples
    for batch in augmented(birds, 0, epoch=0):
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape[1:] == (3, 32, 32)
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.label.tolist() == samples["label"].iloc[batch.row.numpy()].tolist()


def test_evaluation_takes_the_centre(birds: Path) -> None:
    data = prepare.load(tiny.config(birds))
    server = loader.Loader(images_of(birds, CentreCrop(DataConfig(image_px=32))), 0, CPU)
    (batch,) = server.batches(0, [np.array([5, 3])])
    for picture, row in zip(batch.image, (5, 3), strict=True):
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), data.store[row][4:36, 4:36])


def test_workers_follow_the_device_and_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert worker_count(None, Ranks.single(CPU)) == 0
    assert worker_count(3, Ranks.single(CPU)) == 3
    counts = []
    for cores in (1, 5, 100):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        counts.append(worker_count(None, Ranks(0, 2, 2, gpu)))
    assert counts == [1, 2, loader.WORKERS_AT_MOST]


def test_progressive_resizing_shows_the_same_crop_smaller_in_the_first_epochs(birds: Path) -> None:
    stages = [{"until_epoch": 2, "image_px": 16}, {"until_epoch": 3, "image_px": 24}]
    config = DataConfig.model_validate_json(
        json.dumps({"image_px": 32, "resize_px": 40, "progressive": stages})
    )
    view = Augmentation(config, seed=0)
    server = loader.Loader(images_of(birds, view), 0, CPU)
    sizes = [next(server.batches(epoch, [np.array([1, 2])])).image.shape[2:] for epoch in range(4)]
    assert sizes == [(16, 16), (16, 16), (24, 24), (32, 32)]
    picture = prepare.load(tiny.config(birds)).store[1]
    whole = Augmentation(DataConfig(image_px=32, resize_px=40), seed=0)(picture, 0, 1)
    assert np.array_equal(view(picture, 0, 1), cv2.resize(whole, (16, 16), interpolation=cv2.INTER_AREA))


def test_a_second_showing_of_an_image_in_an_epoch_is_augmented_differently(birds: Path) -> None:
    images = images_of(birds, Augmentation(DataConfig(image_px=32, resize_px=40), seed=0))
    n = len(images.labels)
    batch = images.__getitems__([(0, 3 + repeat * n) for repeat in range(6)])
    assert batch.row.tolist() == [3] * 6
    assert len({picture.numpy().tobytes() for picture in batch.image}) >= 4


def test_a_loader_process_makes_a_batch_in_shared_memory(birds: Path) -> None:
    """Otherwise the queue copies it there: the slower way, and in a thread whose errors nobody hears."""
    server = loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), 1, CPU)
    # private: the same call in a loader process cannot be looked into
    batch = server._loader.dataset.__getitems__([(0, 3), (0, 5)])  # type: ignore[attr-defined]
    assert all(tensor.is_shared() for tensor in batch)
    assert batch.row.tolist() == [3, 5]
