"""Averaged weights, and batch norms renewed under them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from pipeline.config.load import load_config
from pipeline.data.loader import Batch
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.training import weight_soup

CPU = torch.device("cpu")


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    model, _ = build_model(load_config(None, ["model.name=test_resnet", "model.pretrained=false"]).model, 4)
    return model.eval()


def batches(count: int) -> list[Batch]:
    random = torch.Generator().manual_seed(1)
    none = torch.zeros(8, dtype=torch.int64)
    images = torch.randint(0, 256, (count, 8, 3, 32, 32), generator=random, dtype=torch.uint8)
    return [Batch(image, none, none) for image in images]


def test_the_mean_is_summed_in_double_and_counts_are_the_first_ones() -> None:
    parts = [
        {"weight": torch.tensor([value, 1.0]), "count": torch.tensor(count)}
        for value, count in ((1e8, 3), (1.0, 5), (-1e8, 7))
    ]
    mean = weight_soup.average(parts)
    assert mean["weight"].tolist() == pytest.approx([1 / 3, 1.0])  # in float32 the 1 beside 1e8 would be lost
    assert mean["weight"].dtype == torch.float32
    assert mean["count"] == 3


def test_renewed_statistics_are_those_of_torchs_own_for_swa() -> None:
    """The network has neither dropout nor stochastic depth, which torch's own leaves on."""
    model = network(0)
    expected = copy.deepcopy(model)
    served = batches(3)
    update_bn([batch.image for batch in served], expected)
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    weight_soup.renew_batchnorms(model, norms, served, "fp32", CPU)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert {norm.momentum for norm in norms} == {0.1}
    assert not any(module.training for module in model.modules())


def test_batch_norms_that_no_run_has_moved_stay() -> None:
    model = network(0)
    same = [copy.deepcopy(model.state_dict()) for _ in range(2)]
    assert weight_soup.moved_batchnorms(model, same) == []
    name = next(name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d))
    same[1][f"{name}.running_var"] += 1
    (moved,) = weight_soup.moved_batchnorms(model, same)
    assert moved is model.get_submodule(name)
    before = copy.deepcopy(model.state_dict())
    weight_soup.renew_batchnorms(model, [moved], batches(1), "fp32", CPU)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed <= {f"{name}.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")}
    assert f"{name}.running_mean" in changed
