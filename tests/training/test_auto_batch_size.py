"""How many images fit: found on simulated memories whose answer is known, and on this machine."""

from typing import Any

import pytest
import torch

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.training import auto_batch_size
from pipeline.training.auto_batch_size import in_equal_micro_batches, largest_that_fits

MIB = 1 << 20
ALONE = Ranks.single(torch.device("cpu"))
MODEL = ["model.name=test_resnet", "model.pretrained=false", "data.image_px=32", "data.resize_px=32"]


def config(*more: str) -> Config:
    return load_config(None, [*MODEL, "optim.batch_size=auto", "optim.effective_batch_size=4096", *more])


@pytest.fixture
def model() -> Classifier:
    return build_model(config().model, 3)[0]


class Memory:
    """A process on the CPU: its peak never falls, and what has been in use once is not free any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, base: int, image: int, peak: int) -> None:
        """total: of the machine; base: in use before; image: of each image of a step; peak: of something earlier."""
        self.total, self.base, self.image, self.peak = total, base, image, max(base, peak)
        self.steps: list[int] = []
        monkeypatch.setattr(auto_batch_size, "train_step", self.train_step)
        monkeypatch.setattr(hardware, "peak_bytes", lambda _: self.peak)
        monkeypatch.setattr(hardware, "free_bytes", lambda _: self.total - self.peak)

    def train_step(self, *arguments: Any) -> None:
        images = len(arguments[2].label)
        self.steps.append(images)
        if self.base + images * self.image > self.total:
            raise torch.OutOfMemoryError("simulated")
        self.peak = max(self.peak, self.base + images * self.image)


@pytest.mark.parametrize("earlier_mib", [0, 2000, 2350, 2400, 2450, 2500, 2563, 3100, 4000])
def test_an_earlier_peak_of_the_process_does_not_change_what_is_found(
    monkeypatch: pytest.MonkeyPatch, model: Classifier, earlier_mib: int
) -> None:
    image, base, total = 5 * MIB, 2300 * MIB, 6396 * MIB
    memory = Memory(monkeypatch, total, base, image, earlier_mib * MIB)
    found = largest_that_fits(4096, config(), model, "fp32", ALONE)
    truth = (total - base) // image
    assert 0.8 * truth <= found <= truth
    assert found in memory.steps, "a step of the answer was taken"
    assert max(memory.steps) == found, "no step was taken that the system would have killed"


@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 5, 10, 100])
def test_where_images_are_too_small_to_be_told_apart_some_memory_is_left(
    monkeypatch: pytest.MonkeyPatch, model: Classifier, fitting: int
) -> None:
    memory = Memory(monkeypatch, fitting * MIB, 0, MIB, 0)
    found = largest_that_fits(4096, config(), model, "fp32", ALONE)
    assert 0.5 * (fitting - 1) <= found <= fitting
    assert found == 0 or found in memory.steps
    if fitting > 5:
        assert found < fitting


def test_an_answer_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, model: Classifier) -> None:
    memory = Memory(monkeypatch, 6396 * MIB, 2300 * MIB, 5 * MIB, 0)
    monkeypatch.setattr(hardware, "free_bytes", lambda _: 20_000 * MIB)  # says more than there is
    found = largest_that_fits(100_000, config(), model, "fp32", ALONE)
    assert 0.25 * 819 <= found <= 819
    assert found in memory.steps


class GpuMemory(Memory):
    """A GPU: its peak can be reset, and the first step of each size needs more, while cuDNN tries algorithms."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, total: int, base: int, image: int, workspace: int
    ) -> None:
        super().__init__(monkeypatch, total, base, image, base)
        self.workspace = workspace
        monkeypatch.setattr(hardware, "free_bytes", lambda _: self.total - self.base)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "peak", self.base))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def train_step(self, *arguments: Any) -> None:
        is_first = len(arguments[2].label) not in self.steps
        super().train_step(*arguments)
        self.peak += self.workspace * is_first


@pytest.mark.parametrize("workspace_mib", [0, 100, 3000])
@pytest.mark.parametrize("image_mib", [2, 40])
def test_workspaces_of_first_steps_on_a_gpu_do_not_change_what_is_found(
    monkeypatch: pytest.MonkeyPatch, model: Classifier, workspace_mib: int, image_mib: int
) -> None:
    image, base, total = image_mib * MIB, 900 * MIB, 24_000 * MIB
    memory = GpuMemory(monkeypatch, total, base, image, workspace_mib * MIB)
    found = largest_that_fits(100_000, config(), model, "fp32", Ranks.single(torch.device("cuda")))
    assert 0.8 * (total - base) // image <= found <= (total - base) // image
    assert found in memory.steps


def test_no_more_are_tried_than_a_step_has(monkeypatch: pytest.MonkeyPatch, model: Classifier) -> None:
    memory = Memory(monkeypatch, 6396 * MIB, 2300 * MIB, 5 * MIB, 0)
    assert largest_that_fits(24, config(), model, "fp32", ALONE) == 24
    assert max(memory.steps) == 24


@pytest.mark.parametrize(
    ("step_images", "fitting", "expected"), [(1, 1, 1), (64, 64, 64), (64, 30, 22), (7, 4, 4)]
)
def test_micro_batches_of_a_step_are_equal(step_images: int, fitting: int, expected: int) -> None:
    assert (
        in_equal_micro_batches(config(f"optim.effective_batch_size={step_images}"), fitting, ALONE)
        == expected
    )


def test_where_not_even_two_images_fit_the_sentence_names_the_size() -> None:
    with pytest.raises(ConfigError, match="auto finds no room for two images of 32 px"):
        in_equal_micro_batches(config(), 1, ALONE)


@pytest.mark.parametrize(
    "more",
    [
        ["train.mix=[{name: mixup, probability: 0.2}, {name: snapmix, probability: 0.2}]"],
        ["optim.frozen_stages=2", "optim.name=adamw", "distributed.sync_batchnorm=true"],
    ],
)
def test_real_steps_leave_the_model_as_it_was(model: Classifier, more: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert largest_that_fits(12, config(*more), model, "bf16", ALONE) == 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
