"""Small pictures of a user's own, and the keys that a tiny training of them needs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.cli.main import run
from pipeline.config.data import DataConfig


def draw(path: Path, shade: int = 0) -> None:
    """Write a picture of 24 x 20 px about as bright as `shade` says (0..200)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name) + shade).integers(0, 40, (20, 24, 3))
    path.write_bytes(cv2.imencode(".png", (noise + shade).astype(np.uint8))[1].tobytes())


def class_folders(folder: Path, names: Iterable[str], count: int = 5) -> Path:
    """Write `count` pictures of each class, each class of another brightness; the folder."""
    for shade, name in enumerate(names):
        for number in range(count):
            draw(folder / name / f"{number}.png", 50 * (shade % 4))
    return folder


def config(source: str, path: Path, **keys: object) -> DataConfig:
    return DataConfig.model_validate(
        {
            "source": source,
            "path": path,
            "root": path.parent / "data",
            "resize_px": 20,
            "image_px": 16,
            **keys,
        }
    )


def do(verb: str, tmp: Path, source: str, path: Path, *more: str) -> int:
    """Run a verb in this process on pictures of the user's own; the exit code."""
    keys = [
        f"data.source={source}",
        f"data.path={path}",
        f"data.root={tmp / 'data'}",
        "data.resize_px=20",
        "data.image_px=16",
        "model.name=test_resnet",
        "model.pretrained=false",
        "optim.batch_size=8",
        "train.epochs=1",
        "train.precision=fp32",
        "train.device=cpu",
        "report.pairs=1",
        f"run.root={tmp / 'runs'}",
        "run.name=own",
    ]
    return run([verb, *keys, *more])


def published(
    source: str, folder: Path, tmp: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Take a data set of the field from its folder through data, train, eval and predict.

    Returns:
        What `eval` printed, and the classes that `predict` gives for one of the pictures.
    """
    keys = [f"data.source={source}", f"data.archive={folder}", f"data.root={tmp / 'data'}"]
    keys += ["data.resize_px=20", "data.image_px=16", "model.name=test_resnet", "model.pretrained=false"]
    keys += ["optim.batch_size=8", "train.epochs=1", "train.precision=fp32", "train.device=cpu"]
    keys += ["report.write=false", f"run.root={tmp / 'runs'}", "run.name=field"]
    for verb in ("data", "train", "eval"):
        assert run([verb, *keys]) == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    picture = next(folder.rglob("*.jpg"))
    assert run(["predict", *keys, str(picture)]) == 0
    return evaluated, json.loads(capsys.readouterr().out)["predictions"][0]["classes"]
