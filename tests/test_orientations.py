"""A picture that its file says is turned gets the logits of the upright one, by every verb, in every format."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pipeline as plumage
from pipeline.cli.main import run
from pipeline.data import prepare
from tests.helpers import own_pictures
from tests.helpers.orientations import SUFFIXES, THERE, as_shown, save

MATRIX = [*product(SUFFIXES, range(1, 9))]
BOX = {"box_x": 2, "box_y": 3, "box_width": 11, "box_height": 9}
Rows = dict[str, np.ndarray]


def name_of(format_: str, orientation: int) -> str:
    return f"{format_.lower()}{orientation}"


def write_matrix(folder: Path) -> pd.DataFrame:
    """Write a scene of each format with each orientation, beside what people see of it, losslessly; the table's rows.

    One scene is encoded with eight flags: also in a lossy format the pixels that people see are the same, turned.
    """
    rows = []
    for number, format_ in enumerate(THERE):
        scene = np.random.default_rng(number).integers(0, 256, (7, 9, 3)).astype(np.uint8)
        scene = np.asarray(Image.fromarray(scene).resize((36, 28), Image.Resampling.BICUBIC))
        for orientation in range(1, 9):
            name = name_of(format_, orientation)
            turned, seen = folder / f"{name}.{SUFFIXES[format_]}", folder / f"{name}-seen.png"
            save(turned, scene, orientation, format_)
            if orientation == 1:
                with Image.open(turned) as image:
                    stored = np.asarray(image.convert("RGB"))
            Image.fromarray(np.ascontiguousarray(as_shown(stored, orientation))).save(seen)
            rows += [{"path": path.name, "label": "bird", "split": "test", **BOX} for path in (turned, seen)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained on other pictures, evaluated and probed with the matrix as its test."""
    tmp = tmp_path_factory.mktemp("orientations")
    birds = own_pictures.class_folders(tmp / "birds", ["bird", "hill"])
    others = [
        {"path": f"{label}/{number}.png", "label": label, "split": "val" if number == 4 else "train", **BOX}
        for label in ("bird", "hill")
        for number in range(5)
    ]
    hill = birds / "hill" / "5.png"
    own_pictures.draw(hill)
    others.append({"path": "hill/5.png", "label": "hill", "split": "test", **BOX})
    pd.concat([write_matrix(birds), pd.DataFrame(others)]).to_csv(birds / "birds.csv", index=False)
    for verb in ("data", "train", "eval", "probe"):
        assert own_pictures.do(verb, tmp, "csv", birds / "birds.csv", "report.write=false") == 0
    return tmp


@pytest.fixture(scope="module")
def samples(world: Path) -> pd.DataFrame:
    (path,) = (world / "data").glob("*/samples*.csv")
    return pd.read_csv(path)


@pytest.fixture(scope="module")
def stored(world: Path, samples: pd.DataFrame) -> dict[str, Rows]:
    """What the verbs made of each picture, by its file's name: pixels, logits, features."""

    def of(path: Path, key: str) -> Rows:
        with np.load(path) as arrays:
            values = dict(zip(arrays["id"].tolist(), arrays[key], strict=True))
        names = samples.set_index("id")["path"]
        return {Path(names[number]).name: value for number, value in values.items()}

    outputs = world / "runs/own/eval/test/outputs.npz"
    config = plumage.load(world / "runs/own", device="cpu").config
    data = prepare.load(config)
    pixels = {Path(path).name: data.store[row] for row, path in enumerate(data.samples["path"])}
    return {
        "pixels": pixels,
        "eval": of(outputs, "logits"),
        "features": of(outputs, "features"),
        "probe": of(world / "runs/own/probe/features.npz", "features"),
    }


@pytest.fixture(scope="module")
def predicted(world: Path) -> Iterator[dict[str, Rows]]:
    """What `predict` and the Python interface say of each picture: logits, and `predict`'s heat maps."""
    paths = sorted(path for path in (world / "birds").iterdir() if path.suffix != ".csv" and path.is_file())
    words = ["predict", str(world / "runs/own"), *map(str, paths), "--logits"]
    made = ["--json", str(world / "a.json"), "--heatmap", str(world / "maps")]
    assert run([*words, *made]) == 0
    answers = map(json.loads, (world / "a.json").read_text().splitlines())
    maps = sorted((world / "maps").iterdir())
    model = plumage.load(world / "runs/own", device="cpu")

    images = [Image.open(path) for path in paths]
    yield {
        "predict": {Path(answer["image"]).name: np.float32(answer["logits"]) for answer in answers},
        "heat maps": {
            path.name: np.asarray(Image.open(found)) for path, found in zip(paths, maps, strict=True)
        },
        **{
            how: {
                path.name: one.logits
                for path, one in zip(paths, model.predict(given, logits=True), strict=True)
            }
            for how, given in (("paths", paths), ("images of Pillow", images))
        },
    }


@pytest.mark.parametrize(("format_", "orientation"), MATRIX)
def test_a_turned_picture_is_the_upright_one_for_every_verb(
    stored: dict[str, Rows],
    predicted: dict[str, Rows],
    samples: pd.DataFrame,
    format_: str,
    orientation: int,
) -> None:
    if format_ not in THERE:
        pytest.skip(f"{format_} cannot be read here")
    name = name_of(format_, orientation)
    turned, seen = f"{name}.{SUFFIXES[format_]}", f"{name}-seen.png"
    for what, found in (stored | predicted).items():
        assert np.array_equal(found[turned], found[seen]), what
    assert np.array_equal(predicted["predict"][turned], predicted["paths"][turned])
    assert np.allclose(predicted["predict"][turned], stored["eval"][turned], atol=1e-6)
    facts = samples.set_index("path")[["width", "height", "box_x", "box_y", "box_w", "box_h"]]
    assert facts.loc[turned].equals(facts.loc[seen])
    assert tuple(facts.loc[turned, ["width", "height"]]) == ((28, 36) if orientation > 4 else (36, 28))


def test_the_pictures_of_the_matrix_differ(stored: dict[str, Rows]) -> None:
    """Else equal logits would prove nothing."""
    for format_ in THERE:
        logits = [stored["eval"][f"{name_of(format_, orientation)}-seen.png"] for orientation in range(1, 9)]
        assert len(np.unique(np.stack(logits), axis=0)) == 8
