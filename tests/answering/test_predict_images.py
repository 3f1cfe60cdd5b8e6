"""Single pictures are seen as evaluation sees those of the store."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
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


def put_aside(trained: Path, tmp_path: Path) -> Path:
    """The folder of a trained run, under another name than it was trained with."""
    shutil.copytree(trained / "runs" / "tiny", tmp_path / "a run")
    return tmp_path / "a run"


def pictures_in(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.effect_noise((50, 40), 80).convert("RGB").save(path)
    return paths


def probabilities(said: dict[str, Any]) -> list[dict[str, float]]:
    return [{entry["class"]: entry["probability"] for entry in one["classes"]} for one in said["predictions"]]


def test_a_run_is_named_by_its_folder_and_batches_give_what_single_pictures_give(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, paths = put_aside(trained, tmp_path), pictures_in(tmp_path / "mine", 7)
    (tmp_path / "mine" / "3.png").write_bytes(b"")
    found = []
    for size in (1, 3, 64):
        assert (
            main.run(["predict", str(run), str(tmp_path / "mine"), f"eval.batch_size={size}", "--logits"])
            == 2
        )
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["checkpoint"] == str(run / "checkpoints/best.pt") and len(found[0]["classes"]) == 6
    assert [one["image"] for one in found[0]["predictions"]] == [
        str(path) for path in paths if path.stem != "3"
    ]
    logits = [[one["logits"] for one in said["predictions"]] for said in found]
    assert np.allclose(logits[0], logits[1], atol=1e-5) and np.allclose(logits[0], logits[2], atol=1e-5)


def test_the_temperature_of_an_evaluation_of_the_same_checkpoint_and_views_calibrates(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (path,) = put_aside(trained, tmp_path), pictures_in(tmp_path, 1)
    words = ["predict", str(run), str(path), "--top", "6", "--logits"]
    assert main.run(words) == 0
    said = capsys.readouterr()
    plain = json.loads(said.out)
    assert plain["temperature"] is None and "not calibrated, as no `eval` of it" in said.err
    metrics = {"temperature": 2.5, "temperature_at_bound": False, "tta": "none"}
    metrics["checkpoint_sha256"] = plain["checkpoint_sha256"]
    file = run / "eval/test/metrics.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(metrics))
    assert main.run(words) == 0
    said = capsys.readouterr()
    calibrated = json.loads(said.out)
    assert calibrated["temperature"] == 2.5 and "calibrated, temperature 2.500 of" in said.err
    expected = dict(
        zip(plain["classes"], softmax(np.array(plain["predictions"][0]["logits"]) / 2.5), strict=True)
    )
    assert probabilities(calibrated)[0] == pytest.approx(expected, abs=1e-6)
    others = [{"tta": "flip"}, {"checkpoint_sha256": "of another"}, {"temperature_at_bound": True}]
    for other in others:
        file.write_text(json.dumps(metrics | other))
        assert main.run(words) == 0
        assert json.loads(capsys.readouterr().out)["temperature"] is None
    file.write_text(json.dumps(metrics | {"temperature": -1.0}))
    assert main.run(words) == 2
    assert f"{file}: damaged (temperature: " in capsys.readouterr().err


def test_a_prior_changes_the_order_and_a_class_that_does_not_occur_is_never_answered(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (path,) = put_aside(trained, tmp_path), pictures_in(tmp_path, 1)
    words = ["predict", str(run), str(path), "--top", "10"]
    assert main.run(words) == 0
    before = probabilities(json.loads(capsys.readouterr().out))[0]
    best, second, *others = before
    weights = {best: 0, second: 1} | dict.fromkeys(others, 3)
    prior = tmp_path / "prior.csv"
    prior.write_text("".join(f"{name},{weight}\n" for name, weight in {"class": "weight", **weights}.items()))
    assert main.run([*words, "--prior", str(prior)]) == 0
    said = capsys.readouterr()
    after = probabilities(json.loads(said.out))[0]
    assert f"prior {prior}, with equal shares in training" in said.err
    total = sum(before[name] * weights[name] for name in before)
    assert after == pytest.approx({name: before[name] * weights[name] / total for name in [second, *others]})
    prior.write_text("class,weight\nDodo,1\n")
    assert main.run([*words, "--prior", str(prior)]) == 2
    assert "the model has no class Dodo" in capsys.readouterr().err


def test_the_option_tta_averages_the_mirror_image(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (path,) = put_aside(trained, tmp_path), pictures_in(tmp_path, 1)
    mirrored = tmp_path / "mirrored.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)

    def found(*options: str) -> list[dict[str, float]]:
        assert main.run(["predict", str(run), str(path), str(mirrored), "--top", "6", *options]) == 0
        return probabilities(json.loads(capsys.readouterr().out))

    single, both = found(), found("--tta")
    mean = {name: (single[0][name] + single[1][name]) / 2 for name in single[0]}
    assert both[0] == pytest.approx(mean, abs=1e-5) and both[1] == pytest.approx(mean, abs=1e-5)
    assert single[0] != pytest.approx(mean, abs=1e-5)


def test_rows_of_a_file_hold_what_is_wrong_with_bad_pictures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, paths = put_aside(trained, tmp_path), pictures_in(tmp_path / "mine", 3)
    paths[1].write_bytes(b"no picture")
    words = ["predict", str(run), str(tmp_path / "mine"), "--top", "2", "--features"]
    assert main.run([*words, "--csv", str(tmp_path / "a.csv")]) == 2
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["pictures"], summary["refused"]) == (3, 1) and summary["file"] == str(tmp_path / "a.csv")
    assert "error: 1 of 3 pictures cannot be read, and their rows say why" in said.err
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert table["image"].tolist() == list(map(str, paths))
    assert table["error"].tolist() == ["", "not a picture, or of an unknown format", ""]
    assert "class_3" not in table and table["class_2"].astype(bool).tolist() == [True, False, True]
    assert len(json.loads(table["features"][0])) > 6
    assert main.run([*words, "--json", "-"]) == 2
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["image"] for row in rows] == list(map(str, paths)) and "error" in rows[1]
    assert main.run([*words[:2], str(paths[0]), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(paths[0])


def test_heat_maps_are_written_of_the_pictures_that_can_be_read_and_change_no_answer(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, paths = put_aside(trained, tmp_path), pictures_in(tmp_path / "mine", 4)
    paths[1].write_bytes(b"")
    words = ["predict", str(run), str(tmp_path / "mine"), "eval.batch_size=2"]
    assert main.run(words) == 2
    before = json.loads(capsys.readouterr().out)
    folder = tmp_path / "maps" / "new"
    assert main.run([*words, "--heatmap", str(folder)]) == 2
    assert json.loads(capsys.readouterr().out) == before
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["000001-0.png", "000003-2.png", "000004-3.png"]
    maps = [np.asarray(Image.open(folder / name)) for name in written]
    assert all(shown.shape == (32, 32, 3) for shown in maps) and not np.array_equal(maps[0], maps[1])
    assert main.run([*words, "--heatmap", str(tmp_path / "mine")]) == 2
    assert f"--heatmap {tmp_path / 'mine'}: exists and is not empty" in capsys.readouterr().err


def test_a_first_name_that_is_no_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["predict", "runs/typo", "a.png"]) == 2
    assert "error: runs/typo: not a run directory, as it has no config.yaml; name" in capsys.readouterr().err


def test_standard_input_lists_pictures_also_behind_an_option(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = pictures_in(tmp_path, 2)
    listed = SimpleNamespace(buffer=io.BytesIO("\n".join(map(str, paths)).encode()))
    monkeypatch.setattr("sys.stdin", listed)
    assert main.run(["predict", str(put_aside(trained, tmp_path)), "--top", "1", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in said["predictions"]] == list(map(str, paths))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--csv", "bird.png"], "--csv bird.png: would be written over"),
        ([""], "one of the names is empty"),
        (["--top", "0"], "0: not a whole number from 1"),
        (["--csv", "a.csv", "--json", "-"], "not allowed with argument"),
    ],
)
def test_wrong_options_are_one_sentence(
    trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    try:
        code = main.run(["predict", str(trained / "runs/tiny"), "x.png", *words])
    except SystemExit as ended:  # argparse
        code = ended.code
    assert code == 2 and sentence in capsys.readouterr().err
