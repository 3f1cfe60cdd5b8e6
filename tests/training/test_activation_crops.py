"""Data-aware crops: worked by hand, and against the authors' slicing and enlarging."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.config.model import ModelConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.training import mixing
from pipeline.training.activation_crops import active_boxes, change
from pipeline.training.mixing import mix

SIDE = 40
FILL = torch.tensor([100.0, 110.0, 120.0]).view(1, 3, 1, 1)
BOXES = [(8, 20, 12, 30), (0, 10, 30, 40), (25, 40, 5, 15), (16, 22, 16, 20)]  # rows, columns, ends excluded


@pytest.fixture
def share() -> Tensor:
    """1 in a box of each picture, 0.3 in a frame of two pixels around it, else 0."""
    maps = torch.zeros(4, SIDE, SIDE)
    for grid, (top, bottom, left, right) in zip(maps, BOXES, strict=True):
        grid[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0.3
        grid[top:bottom, left:right] = 1
    return maps / maps.sum((1, 2), keepdim=True)


@pytest.fixture
def batch() -> Batch:
    images = torch.randint(
        0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return Batch(images, torch.tensor([2, 0, 2, 1]), torch.arange(4))


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_box_encloses_what_is_above_the_threshold_with_padding_as_far_as_the_picture_reaches(
    share: Tensor,
) -> None:
    plain = torch.cat(active_boxes(share, torch.full((4,), 0.5), 0), dim=1)
    assert plain.tolist() == [[top, bottom - 1, left, right - 1] for top, bottom, left, right in BOXES]
    lower = torch.cat(active_boxes(share, torch.full((4,), 0.2), 0), dim=1)
    assert lower[0].tolist() == [6, 21, 10, 31]
    padded = torch.cat(active_boxes(share, torch.full((4,), 0.5), 0.1), dim=1)  # 0.1 of 40: four pixels
    assert padded.tolist() == [[4, 23, 8, 33], [0, 13, 26, 39], [21, 39, 1, 18], [12, 25, 12, 23]]


def test_a_crop_is_the_padded_box_enlarged_as_the_authors_enlarge_it(batch: Batch, share: Tensor) -> None:
    cropped = change("activation_crop", batch, share, FILL, draws())
    for position, (top, bottom, left, right) in enumerate(BOXES):
        rows = slice(max(top - 4, 0), min(bottom + 4, SIDE))
        columns = slice(max(left - 4, 0), min(right + 4, SIDE))
        expected = F.interpolate(
            batch.image[position : position + 1, :, rows, columns].float(),
            (SIDE, SIDE),
            mode="bilinear",
            align_corners=True,
        )
        torch.testing.assert_close(cropped[position : position + 1], expected, rtol=0, atol=0.01)


def test_a_mask_hides_what_is_active_in_the_colour_of_the_mean(batch: Batch, share: Tensor) -> None:
    masked = change("activation_mask", batch, share, FILL, draws(3))
    thresholds = draws(3).uniform(0.2, 0.5, 4)
    for position, (top, bottom, left, right) in enumerate(BOXES):
        frame = 2 if thresholds[position] <= 0.3 else 0
        rows = slice(max(top - frame, 0), bottom + frame)
        columns = slice(max(left - frame, 0), right + frame)
        expected = batch.image[position].float()
        expected[:, rows, columns] = FILL[0]
        assert torch.equal(masked[position], expected)
    assert {True, False} == set((thresholds <= 0.3).tolist())  # both happen here


def test_a_swap_takes_the_region_of_another_picture_of_the_class_scaled_to_fit(
    batch: Batch, share: Tensor
) -> None:
    swapped = change("activation_swap", batch, share, FILL, draws())
    alone = [1, 3]
    assert torch.equal(swapped[alone], batch.image[alone].float())
    for one, other in ((0, 2), (2, 0)):
        expected = batch.image[one].float()
        top, bottom, left, right = BOXES[one]
        t, b, l, r = BOXES[other]  # noqa: E741
        patch = batch.image[other : other + 1, :, t:b, l:r].float()
        size = bottom - top, right - left
        expected[:, top:bottom, left:right] = F.interpolate(patch, size, mode="bilinear", align_corners=True)[
            0
        ]
        torch.testing.assert_close(swapped[one], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["activation_crop", "activation_mask", "activation_swap"])
def test_a_map_without_any_peak_changes_nothing(batch: Batch, name: str) -> None:
    even = torch.full((4, SIDE, SIDE), 1 / SIDE**2)
    other = Batch(batch.image, torch.arange(4), batch.row)
    torch.testing.assert_close(
        change(name, other, even, FILL, draws()), other.image.float(), rtol=0, atol=0.01
    )


def test_partners_of_a_class_are_drawn_and_never_the_picture_itself(share: Tensor) -> None:
    grey = torch.tensor([0, 50, 100, 150], dtype=torch.uint8)[:, None, None, None].expand(4, 3, SIDE, SIDE)
    batch = Batch(grey, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    partners = set()
    for seed in range(30):
        swapped = change("activation_swap", batch, share, FILL, draws(seed))
        partners |= {(i, round(swapped[i, 0, BOXES[i][0], BOXES[i][2]].item()) // 50) for i in range(4)}
    assert partners == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="test_resnet", pretrained=False), 4)[0]


@pytest.mark.parametrize("name", ["activation_crop", "activation_mask", "activation_swap"])
def test_labels_stay_whole_and_the_same_draws_give_the_same_pictures(
    batch: Batch, model: Classifier, name: Any, share: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for of in ("semantic_share", "part_share"):
        monkeypatch.setattr(mixing, of, lambda *_: share)
    before = batch.image.clone()
    one, again = (mix(batch, [MixConfig(name=name)], draws(5), model) for _ in range(2))
    assert one.other_label is one.label is batch.label
    assert (one.weight.tolist(), one.other_weight.tolist()) == ([1] * 4, [0] * 4)
    assert torch.equal(one.image, again.image)
    assert not torch.equal(one.image, before.float())
    assert torch.equal(batch.image, before)


def test_one_picture_alone_is_cropped_too_by_the_models_own_map(model: Classifier) -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 30:, 10:40] = 200
    mixed = mix(
        Batch(images, torch.tensor([1]), torch.arange(1)),
        [MixConfig(name="activation_crop")],
        draws(),
        model,
    )
    assert mixed.image.shape == images.shape
    assert (mixed.image.min().item(), mixed.image.max().item()) == (0, 200)


def test_a_ratio_for_crops_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="alpha is for mixup, cutmix and snapmix, and not for activation_crop"
    ):
        load_config(None, ["train.mix=[{name: activation_crop, alpha: 2}]"])
    with pytest.raises(ConfigError, match="does not support activation_mask"):
        load_config(None, ["train.mix=[{name: activation_mask}]", "distributed.shard=full"])


def test_a_part_is_a_channel_that_speaks_for_the_class_drawn_by_the_root_of_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), 2)[0].eval()
    channels = model.head.weight.shape[1]
    features = torch.zeros(1, channels, 2, 2)
    features[0, 3, 0, 1], features[0, 5, 1, 0], features[0, 7, 1, 1], features[0, 9, 0, 0] = 4, 9, 5, -6
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, [3, 5, 7, 9]] = torch.tensor(
            [1.0, 4.0, -2.0, 1.0]
        )  # channel 7 speaks against it
    forward = lambda images: features.expand(len(images), -1, -1, -1)  # noqa: E731
    monkeypatch.setattr(model.backbone, "forward_features", forward)
    images, labels = torch.zeros(4000, 3, 8, 8), torch.ones(4000, dtype=torch.int64)
    noise = draws(4).standard_exponential((4000, channels), np.float32)
    with torch.no_grad():
        maps = model.part_activation(images, labels, torch.from_numpy(noise))
    found = [tuple(grid.flatten().tolist()) for grid in maps]
    assert set(found) == {(0, 4, 0, 0), (0, 0, 9, 0)}
    # The roots of 4 x 1 and 9 x 4 are as 2 to 6.
    assert found.count((0, 4, 0, 0)) / 4000 == pytest.approx(0.25, abs=0.03)


def test_what_is_hidden_follows_the_part_that_is_drawn(model: Classifier) -> None:
    images = torch.randint(
        0, 256, (6, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    batch = Batch(images, torch.arange(6) % 4, torch.arange(6))
    one, again, other = (
        mix(batch, [MixConfig(name="activation_mask")], draws(seed), model).image for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    kept = (one == images.float()).all(1)
    assert 0.1 < kept.float().mean() < 0.9
    assert torch.equal(one.movedim(1, 3)[~kept], model.mean.flatten().expand(int((~kept).sum()), 3))
