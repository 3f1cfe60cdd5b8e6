"""`eval.image_px`: another size at evaluation than in training is said, and is not mixed up with that of training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.data.loader import build_loader
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation.compare import compare_runs
from pipeline.inference import load_model
from pipeline.inference.predict import predict_rows
from tests.helpers import tiny

CPU = Ranks.single(torch.device("cpu"))


@pytest.fixture(scope="module")
def larger(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run (32 px of stored 40), evaluated on test at 40 px."""
    tmp = tmp_path_factory.mktemp("larger")
    shutil.copytree(trained / "runs/tiny", tmp / "runs/tiny")
    assert tiny.do("eval", tmp, "eval.image_px=40") == 0
    return tmp


def metrics_of(tmp: Path, split: str = "test") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((tmp / f"runs/tiny/eval/{split}/metrics.json").read_text())
    return read


def test_the_size_is_seen_by_the_model_and_said(larger: Path) -> None:
    metrics = metrics_of(larger)
    assert (metrics["tta"], metrics["image_px"], metrics["resize_px"]) == ("none", 40, 40)
    config = tiny.config(larger, "data.image_px=40")  # the crop that the model is to see, by hand
    data = prepare.load(config)
    rows = np.array(data.rows("test"), np.int64)
    model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), CPU)
    loader = build_loader(data, CentreCrop(config.data), 0, CPU)
    expected = predict_rows(model.network, loader, rows, "fp32", CPU, batch_size=64)
    stored = np.load(larger / "runs/tiny/eval/test/outputs.npz")["logits"]
    assert np.array_equal(stored, expected.logits)


def test_the_size_of_training_is_the_default_and_nothing_is_said_of_it(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/tiny", tmp_path / "runs/tiny")
    assert tiny.do("eval", tmp_path, "eval.split=val") == 0
    before = metrics_of(tmp_path, "val")
    assert "image_px" not in before
    assert tiny.do("eval", tmp_path, "eval.split=val", "eval.image_px=32") == 0
    after = metrics_of(tmp_path, "val")
    assert after == before | {"image_px": 32, "resize_px": 40}


def test_a_temperature_is_for_the_size_that_it_was_fitted_at(
    larger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = metrics_of(larger)["temperature"]
    picture = next(iter(sorted(tiny.data_root().rglob("*.jpg"))))
    answers = []
    for more in (["eval.image_px=40"], []):
        assert main.run(["predict", str(larger / "runs/tiny"), str(picture), "train.device=cpu", *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [answer["temperature"] for answer in answers] == [pytest.approx(fitted), None]
    first, second = (answer["predictions"][0] for answer in answers)
    assert first != second


def test_a_report_is_of_the_size_that_was_evaluated(larger: Path) -> None:
    before = metrics_of(larger)
    assert tiny.do("report", larger) == 0
    assert metrics_of(larger) == before
    maps = np.load(larger / "runs/tiny/eval/test/explain/heatmaps.npz")["maps"]
    assert maps.shape[1:] == (2, 2)  # 40 px at stride 32; 32 px would be one


def test_runs_that_saw_other_sizes_are_no_group(larger: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/tiny", tmp_path / "runs/tiny")
    assert tiny.do("eval", tmp_path) == 0
    groups = compare_runs([tmp_path / "runs/tiny", larger / "runs/tiny"], "test", None)["groups"]
    assert len(groups) == 2


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_size_that_the_network_does_not_take_is_one_sentence(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = [f"model.name={name}", "train.epochs=1", "train.max_steps=1"]
    words += ["model.options={img_size: 32}"] if name == "test_vit" else []
    assert tiny.do("train", tmp_path, *words) == 0
    capsys.readouterr()
    takes_any = name == "test_efficientnet"
    assert tiny.do("eval", tmp_path, *words, "eval.image_px=40") == (0 if takes_any else 2)
    said = capsys.readouterr().err
    sentence = "model.name=test_vit: cannot compute images of eval.image_px=40 (AssertionError: "
    assert (sentence in said) != takes_any
    assert ("; drop eval.image_px, to predict at the size" in said) != takes_any


def test_a_size_beyond_the_stored_pictures_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"eval.image_px: 640 is larger than data.resize_px=512; prepare larger"
    ):
        load_config(None, ["eval.image_px=640"])
    with pytest.raises(ConfigError, match="ten_crop needs corners, and eval.image_px is larger"):
        load_config(None, ["eval.image_px=520", "data.pad_px=8", "eval.tta=ten_crop"])
    config = load_config(None, ["eval.image_px=640", "data.resize_px=640"])
    assert (config.data.image_px, config.at_evaluation.data.image_px) == (448, 640)
    assert config.views == "none, 640 px of 640"
    assert load_config(None, []).views == "none"
