"""Replicas: how the gradients of a network in channels_last come to DDP's buckets."""

import warnings

import pytest
import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.config.training import DistributedConfig, TrainConfig
from pipeline.distributed import process_group
from pipeline.distributed.data_parallel import gradient_sync, replicate
from pipeline.models.build import build_model
from tests.helpers import ranks


def warned_of(memory_format: torch.memory_format) -> tuple[int, list[str]]:
    """On each rank: the 1x1 convolutions, and the warnings of two steps, the first in two micro-batches."""
    with (
        process_group.join(TrainConfig(device="cpu"), 60) as here,
        warnings.catch_warnings(record=True) as found,
    ):
        warnings.simplefilter("always")
        config = ModelConfig(name="plumage/resnet50", pretrained=False, options={"width": 8})
        model = build_model(config, 4)[0].train().to(memory_format=memory_format)
        small = [
            module
            for module in model.modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        ]
        ddp_model = replicate(model, DistributedConfig(), here)
        images = torch.rand(2, 3, 64, 64).mul(255).byte().contiguous(memory_format=torch.channels_last)
        for last in (False, True, True):
            with gradient_sync(ddp_model, here, last=last):
                ddp_model(images).sum().backward()
            if last:
                model.zero_grad(set_to_none=True)
        return len(small), [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    ("memory_format", "warns"), [(torch.channels_last, False), (torch.contiguous_format, True)]
)
def test_gradients_in_channels_last_have_the_strides_of_their_buckets(
    memory_format: torch.memory_format, warns: bool
) -> None:
    """DDP warns where they do not, as its copy is slower then: with a model in the other format than its images."""
    for ended in ranks.run(warned_of, 2, memory_format):
        assert ended.code == 0, ended.said
        small, found = ended.value
        assert small == 36
        assert any("strides do not match" in message for message in found) == warns, found
