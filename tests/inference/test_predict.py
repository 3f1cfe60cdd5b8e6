"""Passes over images without learning: no wait for the device, one choice of algorithms, memory that runs out."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.cli import main
from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.inference.predict import Predictions, predict_batches
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.folding import fold_batchnorms
from pipeline.models.fusing import fuse_convolutions
from pipeline.models.precision import Precision
from tests.helpers import tiny

ALONE = Ranks.single(torch.device("cpu"))
SIZES = (3, 3, 2)
WAITS = ("cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__")


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(load_config(None, ["model.name=test_resnet", "model.pretrained=false"]).model, 5)[
        0
    ].eval()


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (sum(SIZES), 3, 32, 32), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(sum(SIZES))
    return [
        Batch(*parts)
        for parts in zip(*(part.split(SIZES) for part in (images, 0 * numbers, numbers)), strict=True)
    ]


def predicted(model: Classifier, batches: Iterator[Batch], *, features: bool = True) -> Predictions:
    return predict_batches(model, batches, np.arange(sum(SIZES)), "bf16", ALONE, features)


def test_no_image_to_predict_is_one_sentence(model: Classifier) -> None:
    with pytest.raises(DataError, match=r"prediction: there is no image to predict; hold some out"):
        predict_batches(model, [], np.arange(0), "fp32", ALONE)


@pytest.mark.parametrize("features", [False, True])
def test_nothing_waits_for_the_device_before_the_last_batch(
    model: Classifier, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, features: bool
) -> None:
    """What a pass does for each batch is seen on the CPU too: which methods it calls, and how it copies."""
    waits: list[str] = []
    within: list[list[str]] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            waits.append(name)
            return original(tensor, *arguments, **options)

        return method

    def copying(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if "cpu" in arguments and not options.get("non_blocking"):
            waits.append("to")
        return original_to(tensor, *arguments, **options)

    def served() -> Iterator[Batch]:
        yield from batches
        within.append([*waits])

    expected = predicted(model, iter(batches), features=features)
    original_to = Tensor.to
    for name in WAITS:
        monkeypatch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
    monkeypatch.setattr(Tensor, "to", copying)
    found = predicted(model, served(), features=features)
    assert within == [[]]
    assert "numpy" in waits, "the calls are seen"
    assert np.array_equal(found.logits, expected.logits)
    assert np.array_equal(found.features, expected.features)


def test_outputs_are_those_of_the_model_batch_by_batch(model: Classifier, batches: list[Batch]) -> None:
    found = predicted(model, iter(batches))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = torch.cat([model(batch.image) for batch in batches])
        of_features = torch.cat([model.head(part) for part in torch.from_numpy(found.features).split(SIZES)])
    assert np.array_equal(found.logits, expected.numpy())
    assert np.array_equal(found.logits, of_features.numpy())


def test_convolutions_of_a_pass_are_chosen_by_rule_whatever_a_training_has_set(
    model: Classifier, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run's validation and `eval` of the same images give the same bits on one GPU."""
    seen: list[tuple[bool, bool]] = []
    cudnn = torch.backends.cudnn
    model.register_forward_pre_hook(lambda *_: seen.append((cudnn.benchmark, cudnn.deterministic)))
    for benchmark in (True, False):
        monkeypatch.setattr(cudnn, "benchmark", benchmark)
        predicted(model, iter(batches))
        assert cudnn.benchmark == benchmark
    assert set(seen) == {(False, True)}


def limited_to(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose memory suffices for a forward pass of so many images."""
    forward = Classifier.forward

    def limited(model: Classifier, batch: Tensor) -> Tensor:
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(model, batch)

    monkeypatch.setattr(Classifier, "forward", limited)


@pytest.mark.parametrize(
    ("verb", "images", "words"),
    [
        (
            ["eval", "eval.batch_size=8"],
            4,
            ["eval.batch_size: memory", "a batch of 8 images", "lower eval.batch_size (8"],
        ),
        (
            ["train", "eval.batch_size=9", "optim.batch_size=4", "run.name=new"],
            5,
            ["a batch of 9 images", "lower eval.batch_size (9 now)"],
        ),
        (["audit", "eval.batch_size=8"], 4, ["a batch of 8 images"]),
        (
            ["predict", "eval.tta=ten_crop", "eval.batch_size=32"],
            9,
            ["eval.batch_size: memory", "a batch of 10 images", "lower eval.batch_size (32 now)"],
        ),
        (["report", "eval.split=val"], 1, ["report.explained: memory", "heat maps"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_memory_that_runs_out_is_one_sentence(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
    images: int,
    words: list[str],
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    name, *settings = verb
    pictures = [str(next(tiny.data_root().rglob("*.jpg")))] if name == "predict" else []
    if name == "report":
        assert tiny.do("eval", tmp_path, *settings, "report.write=false") == 0
        capsys.readouterr()
    limited_to(images, monkeypatch)
    assert main.run([name, *pictures, *tiny.overrides(tmp_path, *settings)]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    for word in [*words, "CUDA out of memory", "train.device=cpu"]:
        assert word in said


def test_a_model_that_does_not_fit_on_the_device_is_one_sentence(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "to", full)
    assert tiny.do("eval", trained) == 2
    assert "the memory of cpu does not suffice for the model" in capsys.readouterr().err


def drawn_batches(sizes: tuple[int, ...]) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    shape = (sum(sizes), 64, 64, 3)  # of 32 px come maps of one pixel, which torch 2.11 does not fuse
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    numbers = torch.arange(sum(sizes))
    return [
        Batch(*parts)
        for parts in zip(*(part.split(sizes) for part in (images, 0 * numbers, numbers)), strict=True)
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fused_network_answers_the_same_in_any_number_of_threads(
    model: Classifier, precision: Precision
) -> None:
    batches, rows = drawn_batches((12, 8, 0, 1)), np.arange(21)
    fused = fuse_convolutions(fold_batchnorms(model, 64), 64, precision)
    assert fused is not None
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            answers.append(predict_batches(fused, iter(batches), rows, precision, ALONE, features=True))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, three = answers
    assert one.rows.tolist() == rows.tolist()
    assert np.array_equal(one.logits, three.logits)
    assert np.array_equal(one.features, three.features)
    unfused = predict_batches(model, iter(batches), rows, "fp32", ALONE, features=True)
    tolerance = (1e-5 if precision == "fp32" else 0.1) * np.abs(unfused.logits).max()
    assert np.allclose(one.logits, unfused.logits, rtol=0, atol=tolerance)
    assert one.features.shape == unfused.features.shape


def test_what_goes_wrong_in_a_thread_is_raised(model: Classifier) -> None:
    fused = fuse_convolutions(fold_batchnorms(model, 64), 64, "fp32")
    assert fused is not None
    two_channels = [batch._replace(image=batch.image[:, :2]) for batch in drawn_batches((8,))]
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="size of tensor"):
        predict_batches(fused, iter(two_channels), np.arange(8), "fp32", ALONE)
    assert torch.get_num_threads() == before
