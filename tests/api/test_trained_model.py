"""A loaded model answers with the numbers of `plumage predict`, whatever a picture is given as."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import pipeline as plumage
from pipeline.cli import main
from pipeline.common.errors import ConfigError, DataError, UserError
from tests.helpers import tiny


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, evaluated, so that it has a temperature."""
    tmp = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained / "runs", tmp / "runs")
    assert tiny.do("eval", tmp) == 0
    return tmp / "runs" / "tiny"


@pytest.fixture(scope="module")
def model(run: Path) -> plumage.TrainedModel:
    return plumage.load(run, device="cpu")


def draw(folder: Path, count: int = 5) -> list[Path]:
    """Pictures of several sizes; the last one's file is turned."""
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if number == count - 1 else 1
        Image.effect_noise((50 + 9 * number, 60), 80).convert("RGB").save(path, exif=exif)
    return paths


def as_objects(predictions: list[plumage.Prediction]) -> list[dict[str, Any]]:
    """Predictions as `plumage predict --json` writes them."""
    return [
        {
            "image": one.image,
            "classes": [
                {"class": name, "probability": probability}
                for name, probability in zip(one.classes, one.probabilities, strict=True)
            ],
            **one.judgement,
            "logits": None if one.logits is None else one.logits.tolist(),
            "features": None if one.features is None else one.features.tolist(),
        }
        for one in predictions
    ]


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_answers_are_those_of_the_verb(run: Path, tmp_path: Path, tta: str) -> None:
    paths = draw(tmp_path)
    prior = tmp_path / "prior.csv"
    names = plumage.load(run, device="cpu").classes
    prior.write_text("class,weight\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names)))
    words = [
        "predict",
        str(run),
        str(tmp_path),
        "--logits",
        "--features",
        "--top",
        "3",
        "--prior",
        str(prior),
    ]
    assert main.run([*words, f"eval.tta={tta}", "--json", str(tmp_path / "a.json")]) == 0
    expected = list(map(json.loads, (tmp_path / "a.json").read_text().splitlines()))
    model = plumage.load(run, device="cpu", overrides={"eval.tta": tta})
    found = model.predict(paths, logits=True, features=True, top=3, prior=prior)
    assert as_objects(found) == expected
    assert as_objects(model.predict(tmp_path, logits=True, features=True, top=3, prior=prior)) == expected


def test_a_picture_has_the_same_logits_as_a_path_an_image_an_array_and_a_tensor(
    model: plumage.TrainedModel, tmp_path: Path
) -> None:
    paths = draw(tmp_path)
    from_paths = model.predict(map(str, paths), logits=True)
    images = [Image.open(path) for path in paths]
    kept = [image.size for image in images]
    arrays = [np.array(image.convert("RGB")) for image in images]
    arrays[-1] = np.rot90(arrays[-1], -1)  # as it is seen
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for given in (images, arrays, tensors):
        answers = model.predict(given, logits=True)
        assert [one.image for one in answers] == [f"images[{number}]" for number in range(5)]
        assert all(np.array_equal(a.logits, b.logits) for a, b in zip(answers, from_paths, strict=True))
        assert np.array_equal(model.features(given), model.features(paths))
    assert [image.size for image in images] == kept
    mixed = model.predict([paths[0], arrays[1], tensors[4]])
    assert [one.classes for one in mixed] == [from_paths[number].classes for number in (0, 1, 4)]


def test_one_picture_and_an_array_of_several_are_lists_too(
    model: plumage.TrainedModel, tmp_path: Path
) -> None:
    (path,) = draw(tmp_path, 1)
    array = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)
    (one,) = model.predict(path, top=2)
    assert len(one.classes) == 2 and one.classes[0] in model.classes and one.logits is None
    assert sum(model.predict(path, top=99)[0].probabilities) == pytest.approx(1)
    batch = model.predict(array, logits=True)
    tensors = model.predict(torch.from_numpy(array).permute(0, 3, 1, 2), logits=True)
    assert len(batch) == 2 and np.array_equal(batch[1].logits, tensors[1].logits)
    assert model.predict(array[1], logits=True)[0].logits == pytest.approx(batch[1].logits, abs=1e-6)
    assert model.predict([]) == []


def test_the_network_is_the_one_that_answers(model: plumage.TrainedModel) -> None:
    crop = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)  # as large as the store holds it
    with torch.inference_mode():
        logits = model.network(crop[:, :, 4:36, 4:36].to(model.device))
    (answer,) = model.predict(crop, logits=True)
    assert answer.logits == pytest.approx(logits[0].numpy(), abs=1e-5)
    assert (model.epoch, model.checkpoint.name) == (model.epoch, "best.pt")


def test_what_cannot_be_read_is_named_all_at_once_or_kept_as_an_entry(
    model: plumage.TrainedModel, tmp_path: Path
) -> None:
    (good,) = draw(tmp_path, 1)
    (bad := tmp_path / "bad.jpg").write_bytes(b"no picture")
    long = np.zeros((10, 400, 3), np.uint8)
    given = [bad, good, tmp_path / "missing.png", long, Path("-")]
    with pytest.raises(plumage.PictureError) as caught:
        model.predict(given)
    assert str(caught.value).startswith(
        f"{bad}: not a picture, or of an unknown format; {tmp_path / 'missing.png'}: missing; images[3]: 400 x 10 pixels"
    )
    answers = model.predict(given, on_bad="keep")
    assert [one.error is None for one in answers] == [False, True, False, False, False]
    assert answers[0].error == "not a picture, or of an unknown format" and answers[0].classes == ()
    assert answers[1].classes == model.predict(good)[0].classes
    with pytest.raises(plumage.PictureError):
        model.features(given)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (7, "images: of type int; give a path, an image of Pillow"),
        ([None], "images[0]: of type NoneType; give"),
        (np.zeros((5, 6), np.uint8), "images[0]: an array uint8 [5, 6]; give"),
        (np.zeros((3, 5, 6), np.uint8), "images[0]: an array uint8 [3, 5, 6]; give"),
        ([np.zeros((5, 6, 3))], "images[0]: an array float64 [5, 6, 3]; give"),
        ([np.zeros((0, 6, 3), np.uint8)], "images[0]: an array uint8 [0, 6, 3]; give"),
        (torch.zeros(5, 6, 3, dtype=torch.uint8), "images[0]: a tensor uint8 [5, 6, 3]; give"),
        ([torch.zeros(3, 5, 6)], "images[0]: a tensor float32 [3, 5, 6]; give"),
    ],
)
def test_what_is_no_picture_is_one_sentence(model: plumage.TrainedModel, images: Any, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        model.predict(images, on_bad="keep")
    assert str(caught.value).startswith(sentence)


def test_other_wrong_calls_are_one_sentence_too(
    model: plumage.TrainedModel, run: Path, tmp_path: Path
) -> None:
    (good,) = draw(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    for wrong in (
        lambda: model.predict(good, top=0),
        lambda: model.predict(good, rank="order"),
        lambda: model.predict(good, prior=tmp_path / "none.csv"),
        lambda: model.predict(tmp_path / "empty"),
        lambda: model.features([]),
        lambda: plumage.load(tmp_path),
        lambda: plumage.load(run, overrides={"eval.checkpoint": str(tmp_path / "none.pt")}),
    ):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        plumage.load(run, overrides={"optim.lrr": 1})


def test_the_temperature_of_an_evaluation_calibrates(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("eval"))
    model = plumage.load(tmp_path / "tiny", device="cpu")
    assert model.temperature is None
    (folder := tmp_path / "tiny/eval/test").mkdir(parents=True)
    fitted = {"split": "test", "top1": 0.5, "temperature": 2.0, "tta": "none"}
    fitted["checkpoint_sha256"] = model._loaded.sha256  # what binds a temperature to a checkpoint
    (folder / "metrics.json").write_text(json.dumps(fitted))
    (path,) = draw(tmp_path, 1)
    (answer,) = model.predict(path, top=99, logits=True)
    assert model.temperature == 2
    scaled = torch.from_numpy(answer.logits).double().div(2).softmax(0).sort(descending=True).values
    assert answer.probabilities == pytest.approx(scaled.tolist())
