"""LP-FT: a training that begins with the head of `plumage probe`."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import nn

from pipeline.cli.main import run
from pipeline.common import arrays, signals
from pipeline.common.errors import ConfigError, Stopped, WeightsError
from pipeline.distributed import process_group
from pipeline.inference.linear_head import Images
from pipeline.inference.predict import predict_rows
from pipeline.models.classifier import Classifier
from pipeline.models.fusing import FusedClassifier
from pipeline.runs.log import read_log
from pipeline.training import probe_start
from pipeline.training.checkpointing import Checkpointer
from pipeline.training.description import origin
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import RunStart, resume_or_start
from pipeline.training.trainer import Trainer, train
from pipeline.training.validation import Validator
from tests.helpers import ranks, tiny
from tests.helpers.drawn_features import CLASSES, DIMENSIONS, NONE, TRAIN, VAL
from tests.helpers.findings import SINGLE


@pytest.fixture(scope="module")
def pretrained(trained: Path) -> tuple[str, ...]:
    """Overrides: the backbone of the finished tiny run as pretrained weights."""
    return ("model.pretrained=true", f"model.weights={tiny.checkpoints(trained) / 'best.pt'}")


@pytest.fixture(scope="module")
def from_probe(pretrained: tuple[str, ...]) -> tuple[str, ...]:
    return (*pretrained, "train.start_from=probe")


TWO_EPOCHS = ("tracking.log_every_steps=1", "train.epochs=2")


@pytest.fixture(scope="module")
def whole(from_probe: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert tiny.do("train", folder, *from_probe, *TWO_EPOCHS) == 0
    return folder


def started(tmp: Path, *more: str) -> tuple[TrainingSetup, RunStart]:
    setup = TrainingSetup(tiny.config(tmp, *more), SINGLE)
    return setup, resume_or_start(setup)


def logits(setup: TrainingSetup, model: Classifier) -> Any:
    """Of the validation images, as training validates them."""
    return predict_rows(model, setup.val_loader, setup.val_rows, "fp32", SINGLE, batch_size=8).logits


def test_the_first_validation_gives_the_logits_of_the_probe(
    pretrained: tuple[str, ...], from_probe: tuple[str, ...], tmp_path: Path
) -> None:
    assert tiny.do("probe", tmp_path, *pretrained) == 0
    probe = tmp_path / "runs/tiny/probe"
    of_probe, label = arrays.read_npz(probe / "linear/eval/test/validation.npz", ["logits", "label"])
    setup, start = started(tmp_path, *from_probe, "train.ema_decay=0.9")
    assert start.state.ema is not None
    for model in (start.state.model, start.state.ema.module):
        np.testing.assert_allclose(logits(setup, model), of_probe, atol=1e-4)
    linear = json.loads((probe / "probe.json").read_text())["classifiers"][0]
    assert start.weights["head"] == {
        "source": "probe",
        **{key: linear[key] for key in ("weight_decay", "val_top1")},
        "val_loss": pytest.approx(log_loss(label, softmax(of_probe.astype(float), axis=1)), rel=1e-4),
    }
    _, random = started(tmp_path, *pretrained)
    assert np.abs(logits(setup, random.state.model) - of_probe).max() > 0.1
    assert "head" not in random.weights


@pytest.mark.parametrize("is_frozen", [False, True])
def test_batch_norm_that_is_not_frozen_is_warned_of(
    from_probe: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], is_frozen: bool
) -> None:
    started(tmp_path, *from_probe, f"model.freeze_batchnorm={str(is_frozen).lower()}")
    assert ("keep them with model.freeze_batchnorm=true" in capsys.readouterr().err) is not is_frozen


def test_only_training_and_validation_images_are_looked_at(
    from_probe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = TrainingSetup(tiny.config(tmp_path, *from_probe, "train.subset=0.5"), SINGLE)
    served: list[int] = []
    batches = setup.val_loader.batches

    def watched(epoch: int, shares: Any) -> Any:
        for batch in batches(epoch, shares):
            served.extend(batch.row.tolist())
            yield batch

    monkeypatch.setattr(setup.val_loader, "batches", watched)
    resume_or_start(setup)
    assert len(setup.train_rows) == 18
    assert sorted(served) == sorted([*setup.train_rows, *setup.val_rows])


def test_features_are_taken_from_the_fused_model_and_training_keeps_its_batch_norms(
    from_probe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[nn.Module] = []

    def watched(model: nn.Module, *arguments: Any, **named: Any) -> Any:
        networks.append(model)
        return predict_rows(model, *arguments, **named)

    monkeypatch.setattr("pipeline.training.start.predict_rows", watched)
    # Of 32 px come maps of one pixel, which torch 2.11 does not fuse.
    sizes = tiny.own_data(tmp_path), "data.resize_px=48", "data.image_px=48"
    assert tiny.do("data", tmp_path, *sizes) == 0
    _, start = started(tmp_path, *from_probe, *sizes)
    (of_features,) = networks
    assert isinstance(of_features, FusedClassifier)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in of_features.modules())
    assert start.state.batchnorms


def test_a_run_that_goes_on_ends_with_the_same_weights_and_does_not_probe_again(
    from_probe: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, stopped = (*from_probe, *TWO_EPOCHS), tmp_path
    environment = json.loads((whole / "runs/tiny/environment.json").read_text())
    assert environment["weights"]["head"]["source"] == "probe"
    assert tiny.do("train", stopped, "train.max_steps=3", *words) == 0
    monkeypatch.setattr(probe_start, "start_head", None)
    assert tiny.do("train", stopped, *words) == 0
    assert tiny.same_weights(tiny.checkpoints(stopped) / "last.pt", tiny.checkpoints(whole) / "last.pt")


def test_the_start_is_the_best_while_no_validation_is_better_and_patience_counts_from_it(
    from_probe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "measure", lambda _: (0.0, 9.0))
    more = (*from_probe, "train.ema_decay=0.9", "train.epochs=9", "train.early_stop_epochs=2")
    for _ in range(2):  # it stays ended
        assert tiny.do("train", tmp_path, *more) == 0
        log = read_log(tmp_path / "runs/tiny/log.jsonl")
        assert [record["epoch"] for record in log.validations()] == [0, 1, 2]
    start = log[0]
    assert (start["kind"], start["step"]) == ("val", 0)
    assert log.best() == start
    kept = torch.load(tiny.checkpoints(tmp_path) / "best.pt", weights_only=True)
    assert (kept["epoch"], kept["step"], kept["best"]["epoch"]) == (0, 0, 0)
    assert tiny.do("eval", tmp_path, *more, "eval.split=val") == 0
    numbers = json.loads((tmp_path / "runs/tiny/eval/val/metrics.json").read_text())
    assert numbers["epoch"] == 0
    assert numbers["top1"] == pytest.approx(start["val_top1"])
    assert numbers["nll"] == pytest.approx(start["val_loss"], rel=1e-4)


def test_a_better_validation_takes_the_place_of_the_start(
    from_probe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "measure", lambda _: (1.0, 0.1))
    assert tiny.do("train", tmp_path, *from_probe, "train.epochs=1") == 0
    kept = torch.load(tiny.checkpoints(tmp_path) / "best.pt", weights_only=True)
    assert (kept["epoch"], kept["best"]["epoch"], kept["best"]["top1"]) == (1, 1, 1.0)


def test_a_run_that_begins_at_random_has_no_validation_before_its_first_step(trained: Path) -> None:
    log = read_log(trained / "runs/tiny/log.jsonl")
    assert min(record["step"] for record in log.validations()) > 0


@pytest.mark.parametrize("saved", [False, True])
def test_killed_before_the_first_step_it_ends_as_one_that_was_not(
    from_probe: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    """After the start is logged, and before or after it is saved; a second process that did save goes on from it."""
    words, killed = (*from_probe, *TWO_EPOCHS), tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(*((Trainer, "_train_epoch") if saved else (Checkpointer, "save")), _killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny.config(killed, *words))
    assert (tiny.checkpoints(killed) / "last.pt").is_file() is saved
    assert [record["kind"] for record in tiny.records(killed / "runs/tiny/log.jsonl")] == ["val"]
    if saved:
        monkeypatch.setattr(probe_start, "start_head", None)
    assert tiny.do("train", killed, *words) == 0
    assert tiny.records(killed / "runs/tiny/log.jsonl") == tiny.records(whole / "runs/tiny/log.jsonl")
    for name in ("best.pt", "last.pt"):
        assert tiny.same_weights(tiny.checkpoints(killed) / name, tiny.checkpoints(whole) / name)


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_without_validation_takes_the_fixed_weight_decay(
    trained: Path, from_probe: tuple[str, ...], tmp_path: Path
) -> None:
    more = (*from_probe, "data.val_fraction=0", tiny.own_data(tmp_path))
    assert tiny.do("data", tmp_path, *more) == 0
    _, start = started(tmp_path, *more)
    nothing = {"val_top1": None, "val_loss": None}
    assert start.weights["head"] == {"source": "probe", "weight_decay": 1e-3, **nothing}
    assert start.state.best is None
    assert origin(start.weights).endswith(", head of the linear probe (weight decay 0.001)")


def head_on_a_rank(tmp: Path, *more: str) -> tuple[list[list[float]], dict[str, Any]]:
    """The weights of a new head as every rank has them, and what is said of it."""
    config = tiny.config(tmp, *more)
    with process_group.join(config.train) as joined:
        start = resume_or_start(TrainingSetup(config, joined))
        weight = start.state.model.head.get_parameter("weight")
        weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        return weight.tolist(), start.weights["head"]


@pytest.mark.parametrize("shard", ["none", "full"])
def test_two_ranks_begin_with_the_head_of_one(
    from_probe: tuple[str, ...], tmp_path: Path, shard: str
) -> None:
    _, alone = started(tmp_path, *from_probe)
    more = (*from_probe, f"distributed.shard={shard}", "eval.batch_size=8")
    ended = ranks.run(head_on_a_rank, 2, tmp_path, *more)
    assert [end.code for end in ended] == [0, 0], ended[0].said
    (weight, head), other = (end.value for end in ended)
    assert other == (weight, head)
    assert head == {**alone.weights["head"], "val_loss": pytest.approx(alone.weights["head"]["val_loss"])}
    np.testing.assert_allclose(weight, alone.state.model.head.get_parameter("weight").tolist(), atol=1e-2)


def test_two_ranks_in_shards_log_and_save_the_start_once(from_probe: tuple[str, ...], tmp_path: Path) -> None:
    more = ("distributed.shard=full", "train.epochs=1", "train.keep_checkpoints=3")
    ended = ranks.run(train, 2, tiny.config(tmp_path, *from_probe, *more))
    assert [end.code for end in ended] == [0, 0], ended[0].said
    log = read_log(tmp_path / "runs/tiny/log.jsonl")
    assert [record["step"] for record in log.validations()] == [0, 5]
    start = torch.load(tiny.checkpoints(tmp_path) / "step-0000000.pt", weights_only=True)
    assert start["best"] == {
        "epoch": 0,
        "step": 0,
        "top1": log[0]["val_top1"],
        "loss": log[0]["val_loss"],
    }


def test_a_signal_before_the_first_step_ends_it_and_nothing_is_written(
    from_probe: tuple[str, ...], tmp_path: Path
) -> None:
    setup = TrainingSetup(tiny.config(tmp_path, *from_probe), SINGLE)
    with signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM, before the first step; the same command"):
            resume_or_start(setup)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.pretrained=false"], "model.pretrained"),
        (["model.mid_level_head=true"], "model.mid_level_head"),
    ],
)
def test_what_has_no_features_to_probe_or_a_second_head_is_refused(
    capsys: pytest.CaptureFixture[str], overrides: list[str], key: str
) -> None:
    assert run(["train", "train.start_from=probe", *overrides]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "train.start_from: probe " in error
    assert key in error


class Ends(nn.Module):
    """A backbone that is only its last layers."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def get_classifier(self) -> Any:
        return self.head


def ends_in(head: Any) -> Classifier:
    return Classifier(Ends(head), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(DIMENSIONS, CLASSES, bias=False),
        nn.Conv2d(DIMENSIONS, CLASSES, 3),
        nn.Sequential(nn.Linear(DIMENSIONS, CLASSES)),
        nn.ModuleList([nn.Linear(DIMENSIONS, CLASSES)] * 2),
    ],
)
def test_a_network_that_does_not_end_in_one_linear_layer_is_refused(head: nn.Module) -> None:
    with pytest.raises(
        ConfigError, match="^train.start_from=probe needs .* Ends does not; set train.start_from"
    ):
        probe_start.check_head(ends_in(head))


def test_a_head_that_is_a_convolution_gives_the_same_logits() -> None:
    linear, convolution = nn.Linear(DIMENSIONS, CLASSES), nn.Conv2d(DIMENSIONS, CLASSES, 1)
    probe_start.start_head([ends_in(linear), ends_in(convolution)], TRAIN, VAL, CLASSES, SINGLE)
    features = torch.from_numpy(VAL.features)
    torch.testing.assert_close(convolution(features[..., None, None]).flatten(1), linear(features))
    top1 = linear(features).argmax(1).eq(torch.from_numpy(VAL.labels)).double().mean()
    assert top1 > 0.5  # of five classes


def test_features_that_are_not_finite_are_an_error_of_the_weights() -> None:
    broken = Images(np.where(np.arange(len(TRAIN.labels))[:, None] < 2, np.nan, TRAIN.features), TRAIN.labels)
    with pytest.raises(WeightsError, match="not finite for 2 images; .* model.weights"):
        probe_start.start_head([ends_in(nn.Linear(DIMENSIONS, CLASSES))], broken, NONE, CLASSES, SINGLE)
