"""What only a pass of the true size finds out is one sentence before the training begins, and changes no bit of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.training import phases, preflight, start
from pipeline.training.preflight import epochs_to_try, training_memory_errors
from pipeline.training.schedule import step_clock
from pipeline.training.setup import TrainingSetup
from tests.helpers import ranks, tiny
from tests.helpers.findings import SINGLE

RESNET = "model.name=resnet10t"
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "a model of another image size": (
        ["model.name=vit_tiny_patch16_224"],
        [
            "model.name=vit_tiny_patch16_224: cannot compute images of data.image_px=32",
            "Input height (32) doesn't match model (224)",
            "set data.image_px to its own 224, or try model.options={img_size: 32}",
        ],
    ),
    "a smaller image that it does not take": (
        [
            *("model.name=vit_tiny_patch16_224", "model.options={img_size: 32}"),
            "data.progressive=[{until_epoch: 1, image_px: 16}]",
        ],
        ["cannot compute images of image_px of data.progressive=16"],
    ),
    "batch norm of one value": (
        ["optim.batch_size=1", RESNET],
        ["optim.batch_size: a pass of 1 image(s) of 32 px a rank", "model.freeze_batchnorm=true"],
    ),
    "an optimizer of second derivatives": (
        ["optim.name=adahessian"],
        ["optim.name=adahessian with optim.options={}: cannot train this model", "another optimizer"],
    ),
    "options of a later phase": (
        ["optim.phases=[{name: adam, until: 2}, {name: sgd, options: {foo: 1}}]"],
        ["optimizer sgd with {'foo': 1}", "unexpected keyword argument 'foo'"],
    ),
    "the name of a later phase": (
        ["optim.phases=[{name: adam, until: 2}, {name: sdg}]"],
        ["optimizer sdg with {}"],
    ),
    "a momentum that is kept in another way": (
        ["optim.phases=[{name: lion, until: 2}, {name: sgd, carry_momentum: true}]"],
        ["optim.phases.1.carry_momentum: Lion has no mean gradient"],
    ),
    "a momentum that there is not": (
        ["optim.phases=[{name: rmsprop, until: 2}, {name: sgd, carry_momentum: true}]"],
        ["optim.phases.1.carry_momentum: RMSprop has no mean gradient"],
    ),
    "a head that snapmix does not know": (
        ["model.name=resnetv2_50", "train.mix=[{name: snapmix}]"],
        ["train.mix: snapmix does not find where resnetv2_50 sees a class", "take mixup or cutmix"],
    ),
    "an option that the model does not have": (
        ["model.options={fc: false}", "model.name=vit_tiny_patch16_224"],
        ["model.options: vit_tiny_patch16_224 does not take"],
    ),
}


@pytest.mark.parametrize("verb", ["train", "lr-find"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_sentence_before_anything_is_written(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, verb: str
) -> None:
    settings, sentences = REFUSED[case]
    assert tiny.do(verb, tmp_path, *settings) == 2
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences), said
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("case", ["options of a later phase", "the name of a later phase"])
def test_the_schedule_of_phases_that_cannot_begin_is_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    settings, sentences = REFUSED[case]
    assert tiny.do("schedule", tmp_path, *settings) == 2
    assert sentences[0] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


TRAINED = {
    "everything": [
        *("train.ema_decay=0.9", "model.dropout=0.3", "model.mid_level_head=true", "model.pool=gem"),
        "train.mix=[{name: snapmix, probability: 0.5}, {name: mixup, probability: 0.5}]",
        *("optim.frozen_stages=1", "optim.unfreeze_epoch=1", "optim.effective_batch_size=16"),
        "data.progressive=[{until_epoch: 1, image_px: 16}]",
    ],
    "swats": ["optim.phases=[{name: adam, until: {name: swats}}, {name: sgd}]", "optim.lr=0.001"],
    "phases": [
        "optim.phases=[{name: adamw, lr: 0.001, until: 1}, {name: sgd, carry_momentum: true}]",
        *("train.precision=bf16", "model.stochastic_depth=0.2"),
    ],
}


@pytest.mark.parametrize("case", TRAINED)
def test_a_training_is_the_same_to_the_bit_with_and_without_it(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    settings = [*TRAINED[case], "train.epochs=2"]
    assert tiny.do("train", tmp_path, *settings, "run.name=with") == 0
    monkeypatch.setattr(preflight, "check_passes", lambda *_: None)
    assert tiny.do("train", tmp_path, *settings, "run.name=without") == 0
    one, other = (content(tmp_path, name) for name in ("with", "without"))
    assert one.keys() == other.keys() and len(one) > 20
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    logs = [tiny.records(tmp_path / "runs" / name / "log.jsonl") for name in ("with", "without")]
    assert logs[0] == logs[1]


def content(tmp: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint."""
    saved = torch.load(tiny.checkpoints(tmp, name) / "last.pt", weights_only=True)
    moments: dict[int, dict[str, Any]] = saved["optimizer"]["state"]
    return {
        **saved["model"],
        **{f"ema.{key}": value for key, value in (saved["ema"] or {}).items()},
        **{f"{n}.{key}": torch.as_tensor(v) for n, of in moments.items() for key, v in of.items()},
    }


def test_a_model_is_left_as_it_was_with_its_modes_and_the_global_stream(birds: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path, "model.dropout=0.5", "optim.frozen_stages=1", "optim.lr=100")
    state, setup = started(config)
    state.model.train().backbone.eval()
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    stream = torch.get_rng_state()
    start.check_passes(setup, state, "fp32", 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert state.model.training and not state.model.backbone.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in state.model.parameters())
    assert not state.optimizer.state


def started(config: Config) -> tuple[Any, TrainingSetup]:
    setup = TrainingSetup(config, SINGLE)
    return start.build_state(setup, phases.first(config.optim), "fp32", pretrained=False).state, setup


def test_each_kind_of_pass_is_tried_once_with_its_smallest_share(tmp_path: Path) -> None:
    config = tiny.config(
        tmp_path,
        *("train.epochs=5", "optim.frozen_stages=1", "optim.unfreeze_epoch=3"),
        "data.progressive=[{until_epoch: 1, image_px: 16}, {until_epoch: 2, image_px: 24}]",
    )
    clock = step_clock(config, 36)
    assert epochs_to_try(config, clock, 36, 8, 1) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert epochs_to_try(config, clock, 36, 1, 1) == {0: 1, 1: 1, 2: 1, 3: 1}
    # Batches of 7 and 8 on 5 ranks: shares of 1 and 2.
    assert epochs_to_try(config, clock, 36, 2, 5) == {0: 1, 1: 1, 2: 1, 3: 1}
    # Of 7 images on 2 ranks, 3 at once: shares of 4 and 3, both in two passes, the last of which is of 1.
    assert epochs_to_try(config, clock, 36, 3, 2) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert epochs_to_try(config, clock, 36, None, 2) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_compiler_that_is_missing_is_one_sentence(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    torch.compiler.reset()
    assert tiny.do("train", tmp_path, "train.compile=true") == 2
    said = capsys.readouterr().err
    assert "train.compile: torch.compile fails here" in said
    assert "or set train.compile=false" in said
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_compiled_is_one_sentence(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._dynamo.exc import Unsupported

    def fail(*_: Any) -> None:
        raise Unsupported("call_function in a generator", case_name="test")

    monkeypatch.setattr(preflight, "check_compiler", lambda *_: None)  # the machine can compile
    monkeypatch.setattr("pipeline.training.trainer.train_step", fail)
    assert tiny.do("train", tmp_path, "train.compile=true") == 2
    assert "train.compile: torch.compile fails here (Unsupported: call_function" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice_in_training_names_the_keys_to_lower(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("pipeline.training.trainer.train_step", full)
    assert tiny.do("train", tmp_path) == 2
    said = capsys.readouterr().err
    assert "lower optim.batch_size (8 now) and set optim.effective_batch_size=8" in said
    assert "Traceback" not in said


def test_weights_that_are_not_finite_are_no_diverged_training(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=1") == 0
    last = tiny.checkpoints(tmp_path) / "last.pt"
    content = torch.load(last, weights_only=True)
    content["model"]["backbone.conv1.0.weight"][0, 0, 0, 0] = torch.nan
    torch.save(content, last)
    torch.save(content["model"], tmp_path / "weights.pth")
    capsys.readouterr()
    assert tiny.do("train", tmp_path) == 2
    said = capsys.readouterr().err
    assert f"{last}: its training has diverged" in said
    assert "backbone.conv1.0.weight (1 in all)" in said
    weights = ["model.pretrained=true", f"model.weights={tmp_path / 'weights.pth'}", "run.name=other"]
    assert tiny.do("train", tmp_path, *weights) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'weights.pth'}: holds numbers that are not finite" in said
    assert "in conv1.0.weight (1 in all)" in said
    assert "lower optim.lr" not in said


def test_other_errors_of_torch_are_not_those_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA error"), training_memory_errors(tiny.config(tmp_path)):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with (
        pytest.raises(ConfigError, match="memory does not suffice"),
        training_memory_errors(tiny.config(tmp_path)),
    ):
        raise MemoryError


def idle_on_two_ranks(tmp: Path, *settings: str) -> int:
    """On each rank: train a network one layer of which computes nothing."""
    built = start.build_model

    def build(*arguments: Any) -> Any:
        model, origin = built(*arguments)
        model.backbone.idle = torch.nn.Linear(2, 2)
        return model, origin

    start.build_model = build
    return ranks.run_verb("train", tmp, *settings)


@pytest.mark.parametrize("is_static", [False, True])
def test_a_layer_that_computes_nothing_is_named_where_ranks_would_wait_for_it(
    birds: Path, tmp_path: Path, is_static: bool
) -> None:
    settings = ["train.max_steps=3", f"distributed.static_graph={str(is_static).lower()}"]
    ended = ranks.run(idle_on_two_ranks, 2, tmp_path, *settings)
    assert [rank.value for rank in ended] == [0, 0] if is_static else [2, 2], ended[0].said
    said = "".join(rank.said for rank in ended)
    assert said.count("training does not use backbone.idle.weight, backbone.idle.bias (2 in all)") == (
        not is_static
    )


TWO_RANKS = {
    "replicas": (["distributed={sync_batchnorm: true}"], 0, ""),
    "shards": (["distributed={shard: full}", "model.name=test_vit", "model.options={img_size: 32}"], 0, ""),
    "a size that it does not take": (["model.name=vit_tiny_patch16_224"], 2, "cannot compute images"),
    "shards of another size": (
        ["distributed={shard: full}", "model.name=vit_tiny_patch16_224"],
        2,
        "cannot compute images",
    ),
    "one image a rank": (["optim.batch_size=2", RESNET], 2, "a pass of 1 image(s)"),
}


@pytest.mark.parametrize("case", TWO_RANKS)
def test_all_ranks_end_alike_and_one_says_why(birds: Path, tmp_path: Path, case: str) -> None:
    settings, code, sentence = TWO_RANKS[case]
    ended = ranks.run(ranks.run_verb, 2, "train", tmp_path, *settings, "train.max_steps=2")
    assert [rank.value for rank in ended] == [code, code], ended[0].said
    assert "".join(rank.said for rank in ended).count("error:") == (code != 0)
    assert any(sentence in rank.said for rank in ended)
