"""Mixup, CutMix and SnapMix: what is in the picture, and what each label weighs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.model import ModelConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.precision import autocast
from pipeline.training import mixing
from pipeline.training.loss import count_correct, cross_entropy_sum
from pipeline.training.mixing import MixedBatch, mix, random_box, semantic_share

SIDE = 64


@pytest.fixture
def batch() -> Batch:
    """Every image is of one grey of its own, so that what comes from where can be told."""
    grey = torch.tensor([10, 60, 110, 160, 210, 250], dtype=torch.uint8)
    images = grey[:, None, None, None].expand(6, 3, SIDE, SIDE).contiguous()
    return Batch(images, torch.arange(6) % 4, torch.arange(6))


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="test_resnet", pretrained=False), 4)[0]


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def way(name: Any, **options: float) -> list[MixConfig]:
    return [MixConfig(name=name, **options)]


def test_without_a_way_the_batch_is_as_it_was(batch: Batch, model: Classifier) -> None:
    for ways in ([], way("mixup", probability=0.0)):
        mixed = mix(batch, ways, draws(0), model)
        assert mixed.image is batch.image
        assert mixed.weight.tolist() == [1] * 6
        assert mixed.other_weight.tolist() == [0] * 6


def test_ways_are_chosen_by_their_probabilities(batch: Batch, model: Classifier) -> None:
    batch = Batch(batch.image[:, :, :8, :8], batch.label, batch.row)
    ways = [*way("mixup", probability=0.3), *way("cutmix", probability=0.5)]
    kinds = []
    for seed in range(400):
        mixed = mix(batch, ways, draws(seed), model)
        is_mixup = mixed.image.dtype == torch.float32
        kinds.append("mixup" if is_mixup else "none" if mixed.image is batch.image else "cutmix")
    shares = {kind: kinds.count(kind) / 400 for kind in kinds}
    assert shares["mixup"] == pytest.approx(0.3, abs=0.08)
    assert shares["cutmix"] == pytest.approx(0.5, abs=0.08)
    assert shares["none"] == pytest.approx(0.2, abs=0.08)


def test_mixup_blends_two_images_as_it_blends_their_labels(batch: Batch, model: Classifier) -> None:
    mixed = mix(batch, way("mixup"), draws(3), model)
    weight = mixed.weight[0].item()
    assert 0.02 < weight < 0.98
    assert mixed.weight.tolist() == pytest.approx([weight] * 6)
    assert mixed.other_weight.tolist() == pytest.approx([1 - weight] * 6)
    partner = draws_of_partner(3)
    expected = weight * batch.image.double() + (1 - weight) * batch.image[partner].double()
    torch.testing.assert_close(mixed.image.double(), expected, rtol=1e-5, atol=1e-3)
    assert mixed.other_label.tolist() == batch.label[partner].tolist()


def draws_of_partner(seed: int) -> Tensor:
    random = draws(seed)
    random.random()
    return torch.from_numpy(random.permutation(6))


def test_cutmix_weighs_a_label_by_the_pixels_of_its_image(batch: Batch, model: Classifier) -> None:
    for seed in range(20):
        before = batch.image.clone()
        mixed = mix(batch, way("cutmix"), draws(seed), model)
        assert torch.equal(batch.image, before)
        partner = draws_of_partner(seed)
        for position in range(6):
            own = (mixed.image[position, 0] == batch.image[position, 0]).double().mean().item()
            pasted = (mixed.image[position, 0] == batch.image[partner[position], 0]).double().mean().item()
            if partner[position] != position:
                assert mixed.weight[position].item() == pytest.approx(own)
                assert mixed.other_weight[position].item() == pytest.approx(pasted)


def test_a_box_has_its_share_of_the_area_where_it_is_not_cut() -> None:
    boxes = [random_box(400, 400, 0.25, draws(seed)) for seed in range(200)]
    sizes = {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes}
    assert (200, 200) in sizes
    assert max(tall for tall, _ in sizes) == 200
    assert all(0 <= b.start <= b.stop <= 400 for box in boxes for b in box)


def test_class_activation_is_the_feature_map_weighted_by_the_classifiers_row(model: Classifier) -> None:
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.tensor([0, 3, 1])
    model.eval()
    with torch.no_grad():
        maps = model.class_activation(images, labels)
        logits = model(images)
    bias: Any = model.head.bias
    # Average pooling is linear: the mean of the map is the logit without its bias.
    expected = logits[torch.arange(3), labels] - bias[labels]
    torch.testing.assert_close(maps.mean((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_the_semantic_share_sums_to_one_and_the_model_is_left_as_it_was(
    batch: Batch, model: Classifier
) -> None:
    model.train()
    model.backbone.get_submodule("bn1").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    share = semantic_share(model, batch)
    assert share.shape == (6, SIDE, SIDE)
    torch.testing.assert_close(share.sum((1, 2)), torch.ones(6))
    assert share.min() >= 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.backbone.get_submodule("bn1").training


def test_the_semantic_share_is_float32_under_autocast_too(batch: Batch, model: Classifier) -> None:
    with autocast(torch.device("cpu"), "bf16"):
        share = semantic_share(model, batch)
    assert share.dtype == torch.float32
    torch.testing.assert_close(share.double().sum((1, 2)), torch.ones(6).double(), rtol=1e-5, atol=0)
    assert (share == share.bfloat16().float()).float().mean() < 0.5  # digits that bfloat16 does not have


def test_snapmix_weighs_a_label_by_the_activation_that_is_in_the_picture(
    batch: Batch, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activation of every image stands in its upper left quarter."""
    share = torch.zeros(6, SIDE, SIDE)
    share[:, : SIDE // 2, : SIDE // 2] = 1 / (SIDE // 2) ** 2
    monkeypatch.setattr(mixing, "semantic_share", lambda *_: share)
    boxes = iter([(slice(0, 32), slice(0, 16)), (slice(16, 64), slice(0, 64))])
    monkeypatch.setattr(mixing, "random_box", lambda *_: next(boxes))
    mixed = mix(batch, way("snapmix", alpha=5), draws(0), model)
    assert mixed.weight.tolist() == pytest.approx([0.5] * 6)  # the left half of the quarter is lost
    assert mixed.other_weight.tolist() == pytest.approx([0.5] * 6)  # the lower half of the quarter is gained
    partner = draws_of_partner(0)
    assert torch.equal(mixed.image[:, 0, 5, 5], batch.image[partner, 0, 0, 0].float())
    assert torch.equal(mixed.image[:, 0, 5, 40], batch.image[:, 0, 0, 0].float())


def test_snapmix_without_a_box_mixes_nothing(
    batch: Batch, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "random_box", lambda *_: (slice(3, 3), slice(0, 9)))
    mixed = mix(batch, way("snapmix"), draws(0), model)
    assert mixed.image is batch.image
    assert mixed.weight.tolist() == [1] * 6


def test_the_loss_is_that_of_both_labels_by_their_weights_summed_over_heads() -> None:
    torch.manual_seed(0)
    logits, labels, others = (
        torch.randn(2, 5, 4),
        torch.tensor([0, 1, 2, 3, 0]),
        torch.tensor([1, 1, 0, 0, 2]),
    )
    weights = torch.tensor([0.9, 0.5, 0.2, 0.0, 1.0])
    mixed = MixedBatch(torch.zeros(5), labels, others, weights, 0.7 - weights / 2)
    own, other = (
        torch.stack([F.cross_entropy(head, of, reduction="none", label_smoothing=0.1) for head in logits])
        for of in (labels, others)
    )
    expected = (weights * own + (0.7 - weights / 2) * other).sum()
    torch.testing.assert_close(cross_entropy_sum(logits, mixed, 0.1), expected)
    plain = MixedBatch(torch.zeros(5), labels, labels, torch.ones(5), torch.zeros(5))
    reference = F.cross_entropy(logits[0], labels, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits[:1], plain, 0.0), reference)


def test_an_image_counts_as_right_when_its_heavier_label_is_predicted() -> None:
    logits = torch.eye(3)[None]
    mixed = MixedBatch(
        torch.zeros(3), torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), *weights_of([0.9, 0.3, 0.2])
    )
    assert count_correct(logits, mixed).item() == 2


def weights_of(values: list[float]) -> tuple[Tensor, Tensor]:
    weight = torch.tensor(values)
    return weight, 1 - weight
