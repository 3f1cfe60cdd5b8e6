"""One optimizer step: accumulation, clipping, mixing, the moving average, and what it counts."""

from typing import Any

import numpy as np
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch.nn import functional as F

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build_model
from pipeline.models.classifier import freeze_batchnorm
from pipeline.training import phases, step
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.phases import Rates
from pipeline.training.state import TrainState

ALONE = Ranks.single(torch.device("cpu"))
RATES = Rates(0.1, 0.9)


def state_of(ema_decay: float = 0.0, **options: Any) -> TrainState:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="test_resnet", pretrained=False, **options), 4)[0]
    config = OptimConfig()
    groups = parameter_groups(model, config, weight_decay=0.0)
    optimizer = build_optimizer(groups, config.resolved_phases[0], lr=0.1)
    ema = ModelEmaV3(model, ema_decay) if ema_decay else None
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
    assert sums.tolist() == pytest.approx([7 * loss.item(), correct.item(), gradient.norm().item()], rel=1e-5)
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


@pytest.mark.parametrize("name", ["mixup", "cutmix", "snapmix"])
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
