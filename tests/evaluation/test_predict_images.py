"""Single pictures are seen as evaluation sees those of the store."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from scipy.special import softmax

from pipeline.cli import main
from pipeline.data import prepare
from pipeline.data.pictures import WHAT_TO_GIVE
from tests.helpers import tiny

JPEGS = ["data.resize=short_side", "data.store=jpeg", "eval.tta=flip", "train.epochs=1"]


@pytest.mark.parametrize("how", [[], JPEGS])
def test_a_data_sets_own_pictures_get_the_probabilities_of_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    if how:
        how = [*how, tiny.own_data(tmp_path)]
        assert tiny.do("data", tmp_path, *how) == 0
        assert tiny.do("train", tmp_path, *how) == 0
    else:
        shutil.copytree(trained / "runs", tmp_path / "runs")
    assert tiny.do("eval", tmp_path, "eval.split=val", *how) == 0
    capsys.readouterr()
    config = tiny.config(tmp_path, *how)
    samples, root = prepare.load(config).samples, prepare.find_root(config.data)
    assert root is not None
    with np.load(tmp_path / "runs/tiny/eval/val/outputs.npz") as outputs:
        expected = dict(zip(outputs["id"].tolist(), softmax(outputs["logits"], axis=1), strict=True))
    of_val = samples[samples["split"] == "val"]
    images = [str(root / "images" / path) for path in of_val["path"]]
    assert main.run(["predict", *images, *tiny.overrides(tmp_path, *how)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checkpoint"] == str(tmp_path / "runs/tiny/checkpoints/best.pt")
    names = samples.drop_duplicates("label").sort_values("label")["class_name"].tolist()
    for image, row, prediction in zip(images, of_val.itertuples(), said["predictions"], strict=True):
        assert prediction["image"] == image
        order = np.argsort(-expected[row.id])[:5]
        assert [entry["class"] for entry in prediction["classes"]] == [names[label] for label in order]
        probability = [entry["probability"] for entry in prediction["classes"]]
        assert probability == pytest.approx(expected[row.id][order].tolist(), abs=1e-6)


def test_a_picture_of_any_size_and_mode_is_classified_without_the_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mode, size in (
        ("a=1.png", "L", (90, 31)),
        ("b.webp", "RGBA", (16, 200)),
        ("c.gif", "P", (40, 40)),
    ):
        Image.new(mode, size, 7).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("a=1.png", "b.webp", "c.gif")]
    words = tiny.overrides(trained, f"data.root={tmp_path / 'nothing'}")
    assert main.run(["predict", *images, *words]) == 0
    said = capsys.readouterr()
    predictions = json.loads(said.out)["predictions"]
    assert [entry["image"] for entry in predictions] == images
    assert all(len(entry["classes"]) == 5 for entry in predictions)
    assert said.err.count("\n") == 2 + 3 * 5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "missing"),
        (b"no picture", "not a picture, or of an unknown format"),
        (b"\x89PNG\r\n\x1a\n0000", "not a picture, or of an unknown format"),
    ],
)
def test_what_is_no_picture_is_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    assert main.run(["predict", str(path), *tiny.overrides(trained)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: {path}: {sentence}; give pictures that can be read ({WHAT_TO_GIVE})\n"


def test_the_good_ones_of_several_pictures_are_classified_and_all_bad_ones_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["good.png", "cut.jpg", "long.png", "fine.jpg"]
    images = [tmp_path / name for name in names]
    for path in images:
        size = (1000, 10) if path.stem == "long" else (50, 40)
        Image.effect_noise(size, 80).convert("RGB").save(path)
    images[1].write_bytes(images[1].read_bytes()[:-300])
    assert main.run(["predict", *map(str, images), *tiny.overrides(trained)]) == 2
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert [entry["image"] for entry in result["predictions"]] == [str(images[0]), str(images[3])]
    assert len(result["refused"]) == 2
    table, _, error = said.err.partition("error: ")
    assert str(images[0]) in table and str(images[3]) in table
    assert error.startswith(f"{images[1]}: image file is truncated")
    assert f"; {images[2]}: 1000 x 10 pixels" in error and error.count("\n") == 1


def test_a_turned_photograph_is_classified_as_the_upright_one(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = prepare.find_root(tiny.config(trained).data)
    assert root is not None
    upright = next((root / "images").rglob("*.jpg"))
    with Image.open(upright) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        image.save(tmp_path / "upright.png")
    images = [str(tmp_path / "turned.png"), str(tmp_path / "upright.png")]
    assert main.run(["predict", *images, *tiny.overrides(trained)]) == 0
    turned, straight = json.loads(capsys.readouterr().out)["predictions"]
    assert turned["classes"] == straight["classes"]


def test_outputs_that_are_not_finite_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    best = tiny.checkpoints(tmp_path) / "best.pt"
    state = torch.load(best, weights_only=True)
    next(value for name, value in reversed(state["model"].items()) if name.endswith("bias")).fill_(torch.nan)
    torch.save(state, best)
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    assert main.run(["predict", str(tmp_path / "a.png"), *tiny.overrides(tmp_path)]) == 2
    said = capsys.readouterr()
    assert (
        said.out == "" and f"{best}: the model's outputs for {tmp_path / 'a.png'} are not finite" in said.err
    )


def test_no_picture_and_no_checkpoint_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["predict", *tiny.overrides(tmp_path)]) == 2
    assert "no picture is given" in capsys.readouterr().err
    assert main.run(["predict", "x.png", *tiny.overrides(tmp_path)]) == 2
    assert "best.pt: no such checkpoint" in capsys.readouterr().err
