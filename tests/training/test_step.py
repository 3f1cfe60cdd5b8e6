"""One optimizer step: accumulation, clipping, mixing, the moving average, and what it counts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import running_statistics
from pipeline.models.build import build_model
from pipeline.models.classifier import freeze_batchnorm
from pipeline.training import phases, step
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.phases import Rates
from pipeline.training.state import TrainState
from pipeline.training.weight_average import WeightAverage
from tests.helpers import tiny

ALONE = Ranks.single(torch.device("cpu"))
RATES = Rates(0.1, 0.9)


def state_of(ema_decay: float = 0.0, **options: Any) -> TrainState:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="test_resnet", pretrained=False, **options), 4)[0]
    config = OptimConfig()
    groups = parameter_groups(model, config, weight_decay=0.0)
    optimizer = build_optimizer(groups, config.resolved_phases[0], lr=0.1)
    ema = WeightAverage(model, ema_decay) if ema_decay else None
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    freeze_batchnorm(model.train())
    return TrainState(model, optimizer, scaler, ema, phases.first(config))


def settings(**changes: Any) -> step.StepSettings:
    usual: dict[str, Any] = {
        "seed": 0,
        "label_smoothing": 0.1,
        "mix": (),
        "clip_norm": None,
        "micro_batch_size": 64,
        "precision": "fp32",
        "ranks": ALONE,
    }
    return step.StepSettings(**{**usual, **changes})


def batch(images: int = 7) -> Batch:
    random = np.random.default_rng(0)
    pictures = torch.from_numpy(random.integers(0, 256, (images, 3, 32, 32), np.uint8))
    return Batch(pictures, torch.arange(images) % 4, torch.arange(images))


def weights(state: TrainState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])


def test_a_step_learns_from_the_mean_loss_and_counts_images() -> None:
    state = state_of()
    logits = state.model(batch().image)[0]
    loss = F.cross_entropy(logits, batch().label, label_smoothing=0.1)
    gradients = torch.autograd.grad(loss, list(state.model.parameters()))
    before = weights(state)
    sums = step.train_step(state, state.model, batch(), 7, RATES, settings())
    gradient = torch.cat([gradient.flatten() for gradient in gradients])
    # Nesterov's first step: gradient + momentum x gradient.
    torch.testing.assert_close(weights(state), before - 0.1 * 1.9 * gradient, rtol=1e-4, atol=1e-6)
    correct = (logits.argmax(1) == batch().label).sum()
    assert sums.tolist() == pytest.approx(
        [7 * loss.item(), correct.item(), gradient.norm().item(), 0], rel=1e-5
    )
    assert state.step == 1


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 6])
def test_accumulated_gradients_are_those_of_the_large_batch(micro_batch_size: int) -> None:
    one, several = state_of(), state_of()
    for _ in range(3):
        expected = step.train_step(one, one.model, batch(), 7, RATES, settings())
        found = step.train_step(
            several, several.model, batch(), 7, RATES, settings(micro_batch_size=micro_batch_size)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(several), weights(one), rtol=1e-5, atol=1e-6)


def test_a_batch_is_cut_into_parts_that_differ_by_one_image_at_most() -> None:
    assert [len(part.label) for part in batch(7).split(3)] == [3, 2, 2]
    assert torch.cat([part.row for part in batch(7).split(3)]).tolist() == list(range(7))
    assert len(batch(7).split(1)) == 1


def test_a_clipped_step_is_as_long_as_its_limit() -> None:
    state, before = state_of(), weights(state_of())
    sums = step.train_step(state, state.model, batch(), 7, RATES, settings(clip_norm=0.01))
    assert sums[2].item() > 0.01
    assert (weights(state) - before).norm().item() == pytest.approx(0.1 * 1.9 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["mixup", "cutmix", "snapmix", "activation_crop", "activation_mask", "activation_swap"]
)
def test_a_mixed_step_is_the_same_again_for_the_same_step_and_another_for_another(name: Any) -> None:
    mixing = settings(mix=(MixConfig(name=name),))
    one, again, later = state_of(), state_of(), state_of()
    later.step = 1
    for state in (one, again, later):
        step.train_step(state, state.model, batch(), 7, RATES, mixing)
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(later))


def test_both_heads_learn_and_the_loss_is_their_mean() -> None:
    state = state_of(mid_level_head=True)
    before = {name: tensor.clone() for name, tensor in state.model.named_parameters()}
    logits = state.model(batch().image)
    losses = [F.cross_entropy(head, batch().label, label_smoothing=0.1).item() for head in logits]
    sums = step.train_step(state, state.model, batch(), 7, RATES, settings())
    assert sums[0].item() == pytest.approx(7 * sum(losses) / 2, rel=1e-5)
    moved = {name for name, tensor in state.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert {"mid_head.conv.weight", "mid_head.fc.weight", "backbone.fc.weight"} <= moved


def test_the_moving_average_follows_the_weights_by_its_decay() -> None:
    state = state_of(ema_decay=0.9)
    expected = None
    for _ in range(3):
        step.train_step(state, state.model, batch(), 7, RATES, settings())
        now = weights(state)
        expected = (
            now if expected is None else 0.9 * expected + 0.1 * now
        )  # it begins at the first step's weights
    averaged = torch.cat([parameter.flatten() for parameter in state.eval_model.parameters()])
    assert expected is not None
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-7)
    assert state.eval_model is not state.model


def test_only_statistics_that_learn_are_averaged_over_ranks_whatever_is_frozen_when() -> None:
    state = state_of()  # all batch norms are frozen
    norms = state.batchnorms
    assert len(norms) == 15
    assert running_statistics(norms) == []
    state.model.train()
    assert len(running_statistics(state.batchnorms)) == 2 * len(norms)
    norms[0].eval()
    assert len(running_statistics(state.batchnorms)) == 2 * len(norms) - 2
    assert running_statistics(state.batchnorms)[0] is norms[1].running_mean


def test_without_an_average_the_model_itself_is_validated() -> None:
    state = state_of()
    assert state.eval_model is state.model


def test_under_bf16_mixing_shares_no_weights_that_were_cast_without_a_gradient_with_learning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Autocast keeps what it has cast until its block ends; SnapMix runs the network without gradients."""
    blocks: list[str] = []
    autocast, mix = step.autocast, step.mix

    def seen(*arguments: Any) -> Any:
        blocks.append("")
        return autocast(*arguments)

    def mixing(*arguments: Any) -> Any:
        blocks[-1] += "mix"
        return mix(*arguments)

    state = state_of()
    state.model.register_forward_pre_hook(lambda *_: blocks.append(blocks.pop() + "learn"))
    monkeypatch.setattr(step, "autocast", seen)
    monkeypatch.setattr(step, "mix", mixing)
    before = {name: weight.clone() for name, weight in state.model.named_parameters() if weight.ndim > 1}
    snapmix = settings(mix=(MixConfig(name="snapmix", alpha=5),), precision="bf16")
    for _ in range(2):
        step.train_step(state, state.model, batch(), 7, RATES, snapmix)
    assert blocks == ["mix", "learn"] * 2
    learned = dict(state.model.named_parameters())
    assert not [name for name, weight in before.items() if torch.equal(learned[name], weight)]


def overflow_in(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the gradients of some steps (from 0) not be finite, as they are where fp16's loss scale is too high."""
    backward = step._backward  # nothing public comes between the backward pass and the scaler

    def overflowing(state: TrainState, *arguments: Any) -> Any:
        sums = backward(state, *arguments)
        if state.step in steps:
            next(p for p in state.model.parameters() if p.grad is not None).grad.fill_(torch.inf)  # type: ignore[union-attr]
        return sums

    monkeypatch.setattr(step, "_backward", overflowing)


def test_fp16_counts_the_steps_that_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    overflow_in({1}, monkeypatch)
    state = state_of()
    state.scaler = torch.amp.GradScaler("cpu")
    found, moved = [], []
    for _ in range(3):
        before = weights(state)
        found.append(step.train_step(state, state.model, batch(), 7, RATES, settings(precision="fp16")))
        moved.append(not torch.equal(weights(state), before))
    assert [int(sums[3]) for sums in found] == [0, 1, 0]
    assert [bool(sums[2] > 0) for sums in found] == [True, False, True]
    assert moved == [True, False, True]
    assert state.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize(("steps", "code"), [({1, 2}, 0), (set(range(99)), 2)])
def test_a_run_says_which_steps_fp16_skipped_and_fails_where_it_skipped_all(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: set[int],
    code: int,
) -> None:
    overflow_in(steps, monkeypatch)
    more = ["train.precision=fp16", "train.epochs=2", "tracking.log_every_steps=1"]
    assert tiny.do("train", tmp_path, *more) == code
    said = capsys.readouterr().err
    log = tiny.records(tmp_path / "runs/tiny/log.jsonl")
    fp16 = [(line["loss_scale"], line["skipped_steps"]) for line in log if line["kind"] == "fp16"]
    norms = [line["grad_norm"] for line in log if line["kind"] == "step"]
    assert [norm is None for norm in norms] == [number in steps for number in range(10)]
    (first, second) = (line["grad_norm"] for line in log if line["kind"] == "epoch")
    if code:
        assert fp16 == [(2.0**11, 5), (2.0**6, 5)]
        assert (first, second) == (None, None)
        assert (
            "step 10: fp16 learns nothing, as the gradients are not finite even at a loss scale of 64" in said
        )
        assert tiny.do("train", tmp_path, *more) == 2, (
            "it has ended, and is no success the second time either"
        )
    else:
        assert fp16 == [(2.0**14, 2), (2.0**14, 0)]
        assert "skipped 2 of 5 steps; the loss scale is 16384 now" in said
        assert first == pytest.approx(sum(norm for norm in norms[:5] if norm) / 3)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
@pytest.mark.slow  # half a minute of processor time for the compiler
def test_a_compiled_run_learns_what_one_that_is_not_does(birds: Path, tmp_path: Path) -> None:
    """Under bf16, where the compiler meets the head that computes in float32; its roundings are others."""
    more = ["train.precision=bf16", "train.max_steps=2", "train.ema_decay=0.9", "optim.lr=1e-3"]
    losses, saved = [], []
    for name in ("usual", "compiled"):
        compiled = f"train.compile={str(name == 'compiled').lower()}"
        assert (
            tiny.do("train", tmp_path, *more, "tracking.log_every_steps=1", compiled, f"run.name={name}") == 0
        )
        log = tiny.records(tmp_path / f"runs/{name}/log.jsonl")
        losses.append([line["loss"] for line in log if line["kind"] == "step"])
        saved.append(torch.load(tiny.checkpoints(tmp_path, name) / "last.pt", weights_only=True))
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    for part in ("model", "ema"):
        assert saved[1][part].keys() == saved[0][part].keys()
