import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.distributed.process_group import Ranks
from pipeline.inference import features, load_model
from pipeline.inference.predict import last_layer_inputs
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.runs.checkpoints import read
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny

ALONE = Ranks.single(torch.device("cpu"))


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> tuple[Config, prepare.Prepared, Classifier]:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    config = tiny.config(tmp_path)
    data = prepare.load(config)
    model, _ = build_model(without_weights(config.model), tiny.SPECIES)
    path = config.run_dir / "checkpoints" / "best.pt"
    load_model.load_eval_weights(model, read(path), path)
    return config, data, model


def test_the_last_layer_makes_the_logits_of_the_features(
    job: tuple[Config, prepare.Prepared, Classifier],
) -> None:
    config, data, model = job
    rows = np.array(data.rows("test"), np.int64)
    found = features.extract_features(config, data, model, rows, "fp32", ALONE)
    assert found.shape == (len(rows), 96)
    assert found.dtype == np.float32
    crops = np.stack([data.store[row][4:36, 4:36] for row in rows])
    with torch.no_grad():
        expected = model(torch.from_numpy(crops).permute(0, 3, 1, 2))
        logits = model.head(torch.from_numpy(found))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_split_is_computed_once_for_each_checkpoint(
    job: tuple[Config, prepare.Prepared, Classifier],
) -> None:
    config, data, model = job
    first = features.cached(config, data, model, "val", "fp32", ALONE, "digest-a")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    again = features.cached(config, data, model, "val", "fp32", ALONE, "digest-a")
    assert np.array_equal(first, again)
    changed = features.cached(config, data, model, "val", "fp32", ALONE, "digest-b")
    assert not np.allclose(first, changed)
    ids = data.samples["id"].to_numpy()[data.rows("val")]
    path = RunDirectory(config.run_dir).feature_cache("val")
    crops = features.digest_of_crops(config, data)
    assert features.read_cache(path, "digest-b", crops, ids) is not None
    assert features.read_cache(path, "digest-b", crops, ids[::-1]) is None


def test_features_of_other_crops_are_not_taken_for_those_of_these(
    job: tuple[Config, prepare.Prepared, Classifier],
) -> None:
    config, data, model = job
    larger = config.model_copy(update={"data": config.data.model_copy(update={"image_px": 40})})
    of_small = features.cached(config, data, model, "val", "fp32", ALONE, "digest-c")
    of_large = features.cached(larger, data, model, "val", "fp32", ALONE, "digest-c")
    rows = np.array(data.rows("val"), np.int64)
    assert np.array_equal(of_large, features.extract_features(larger, data, model, rows, "fp32", ALONE))
    assert not np.allclose(of_small, of_large)


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"])
def test_a_damaged_cache_is_made_anew(
    job: tuple[Config, prepare.Prepared, Classifier], damage: bytes
) -> None:
    config, data, model = job
    first = features.cached(config, data, model, "val", "fp32", ALONE, "digest-d")
    path = RunDirectory(config.run_dir).feature_cache("val")
    whole = path.read_bytes()
    path.write_bytes(damage + whole[: len(whole) // 2] * bool(damage))
    assert np.array_equal(features.cached(config, data, model, "val", "fp32", ALONE, "digest-d"), first)
    path.write_bytes(damage)
    assert np.array_equal(features.cached(config, data, model, "val", "fp32", ALONE, "digest-d"), first)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_networks_of_other_families_have_features_too(name: str) -> None:
    config = tiny.config(Path("unused"), f"model.name={name}")
    model, _ = build_model(config.model, 3)
    px = 160 if name == "test_vit" else 64
    images = torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8)
    model.eval()
    with torch.no_grad(), last_layer_inputs(model) as inputs:
        logits = model(images)
    assert inputs[0].shape[0] == 2
    assert isinstance(model.head, nn.Linear)
    torch.testing.assert_close(model.head(inputs[0]), logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model(images)
    assert len(inputs) == 1  # the hook is gone
