"""How many images fit: found on simulated memories whose answer is known, and on this machine."""

import gc
from pathlib import Path
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
from pipeline.training import auto_batch_size, trainer
from pipeline.training.auto_batch_size import (
    in_equal_micro_batches,
    largest_that_fits,
    most_remembered,
    resumed_batch_size,
)
from tests.helpers import tiny

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


# Several phases, ranks, evaluation


def test_a_step_is_tried_with_the_optimizer_that_remembers_most(
    monkeypatch: pytest.MonkeyPatch, model: Classifier
) -> None:
    phases = "optim.phases=[{name: sgd, lr: 0.1, until: 1}, {name: adamw, lr: 0.01, until: 2}, {name: sgd, lr: 0.1}]"
    used: set[type] = set()
    monkeypatch.setattr(auto_batch_size, "train_step", lambda state, *_: used.add(type(state.optimizer)))
    assert largest_that_fits(8, config(phases), model, "fp32", ALONE) == 8
    assert used == {torch.optim.AdamW}
    assert most_remembered(config().optim.resolved_phases).name == "sgd"


def test_among_several_ranks_a_step_is_tried_beside_the_buckets_of_gradients(
    monkeypatch: pytest.MonkeyPatch, model: Classifier
) -> None:
    """DDP holds them from the start of a step on, one number for each weight."""
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    held: list[int] = []

    def count(*_: Any) -> None:
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        held.append(sum(tuple(tensor.shape) in shapes for tensor in tensors))

    monkeypatch.setattr(auto_batch_size, "train_step", count)
    for world_size in (1, 2):
        ranks = Ranks(0, world_size, 1, torch.device("cpu"))
        assert largest_that_fits(2, config(), model, "fp32", ranks) == 2
    alone, of_two = held
    assert of_two - alone == len(list(model.parameters()))


def limit_evaluation(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let a forward pass of more images run out of memory; return the sizes that are tried."""
    tried: list[int] = []
    forward = Classifier.forward

    def limited(model: Classifier, batch: torch.Tensor) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > images:
            raise torch.OutOfMemoryError("simulated")
        return forward(model, batch)

    monkeypatch.setattr(Classifier, "forward", limited)
    return tried


def test_a_batch_of_evaluation_that_does_not_fit_is_named_before_the_training(
    monkeypatch: pytest.MonkeyPatch, model: Classifier
) -> None:
    Memory(monkeypatch, 100 * MIB, 0, 10 * MIB, 0)
    tried = limit_evaluation(monkeypatch, 40)
    with pytest.raises(ConfigError, match="a batch of 128 images of 32 px; set eval.batch_size=32, which"):
        auto_batch_size.auto_batch_size(config("eval.batch_size=128"), model, "fp32", ALONE)
    assert tried == [128, 64, 32]


def test_a_batch_of_evaluation_that_is_no_larger_than_a_step_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, model: Classifier
) -> None:
    Memory(monkeypatch, 6396 * MIB, 2300 * MIB, 5 * MIB, 0)
    tried = limit_evaluation(monkeypatch, 0)
    assert auto_batch_size.auto_batch_size(config("eval.batch_size=128"), model, "fp32", ALONE) > 128
    assert tried == []


# A run that goes on


def test_a_run_that_goes_on_keeps_the_images_of_the_checkpoint_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, model: Classifier
) -> None:
    """They are not measured anew: a run that was stopped ends as one that was not."""
    memory = Memory(monkeypatch, 6396 * MIB, 2300 * MIB, 5 * MIB, 0)
    assert resumed_batch_size(600, config(), model, "fp32", ALONE) == 600
    assert memory.steps == [600]


def test_on_a_smaller_gpu_the_images_are_found_anew_and_a_given_number_stays(
    monkeypatch: pytest.MonkeyPatch, model: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Memory(monkeypatch, 6396 * MIB, 2300 * MIB, 5 * MIB, 0)
    found = resumed_batch_size(2048, config(), model, "fp32", ALONE)
    assert 0.5 * 819 <= found <= 819
    assert found * -(-4096 // found) - 4096 < found, "as many images a step as before"
    said = " ".join(capsys.readouterr().err.split())
    assert f"auto goes on with {found} images at once, as the 2048 of the checkpoint do not fit here" in said
    memory.steps.clear()
    assert resumed_batch_size(2048, config("optim.batch_size=2048"), model, "fp32", ALONE) == 2048
    assert memory.steps == []


def test_a_real_run_goes_on_with_fewer_images_at_once(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["optim.batch_size=auto", "optim.effective_batch_size=8"]
    assert tiny.do("train", tmp_path, *auto, "train.max_steps=2") == 0
    last = tiny.checkpoints(tmp_path) / "last.pt"
    assert torch.load(last, weights_only=True)["batch_size"] == 8
    step = auto_batch_size.train_step

    def smaller(*arguments: Any) -> Any:
        if len(arguments[2].label) > 4:
            raise torch.OutOfMemoryError("simulated")
        return step(*arguments)

    monkeypatch.setattr(auto_batch_size, "train_step", smaller)
    assert tiny.do("train", tmp_path, *auto, "train.max_steps=4", "eval.batch_size=4") == 0
    content = torch.load(last, weights_only=True)
    assert (content["step"], content["batch_size"]) == (4, 4)
    assert "auto goes on with 4 images at once" in capsys.readouterr().err


def test_memory_that_runs_out_in_a_step_names_what_auto_has_found(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(trainer, "train_step", full)
    assert tiny.do("train", tmp_path, "optim.batch_size=auto", "optim.effective_batch_size=8") == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Tried to allocate 20.00 MiB" in said
    assert "lower optim.batch_size (auto, which found 8) and set optim.effective_batch_size=8" in said
