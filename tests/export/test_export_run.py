"""A run becomes a folder that answers as the run does, without this program and without torch; or nothing is written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from pipeline.answering.unknown_scores import Score
from pipeline.answering.unknown_threshold import UnknownThreshold
from pipeline.cli.main import run
from pipeline.common import files
from pipeline.export import description, onnx_file
from pipeline.export.network import ExportedNetwork
from pipeline.runs.directory import RunDirectory
from tests.helpers import folders, orientations, own_pictures, tiny

TEMPERATURE = 0.7
SET_THRESHOLD = 0.85
WITHOUT_TORCH = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pipeline", "albumentations", "scipy"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refusing())
"""
SCRIPT = (
    WITHOUT_TORCH + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
LOGITS = """
import json; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import predict
model = predict.Exported(Path(sys.argv[1]))
for name in sys.argv[2:]:
    crop = predict.crop_of(Path(name), model.facts["preprocessing"])
    print(json.dumps(model.outputs(crop)["logits"].tolist()))
"""


def evaluated_copy(trained: Path, tmp: Path) -> RunDirectory:
    """The tiny run with an evaluation whose temperature is known."""
    shutil.copytree(trained / "runs", tmp / "runs")
    assert tiny.do("eval", tmp) == 0
    own_run = RunDirectory(tmp / "runs/tiny")
    metrics = own_run.evaluation("test").metrics_file
    rule = {"method": "lac", "coverage": 0.8, "n": 99, "threshold": SET_THRESHOLD}
    clean = {"n": 17, "relabelled": 0, "left_out": 1, "top1": 0.5, "top1_low": 0.3, "top1_high": 0.7}
    fitted = {
        "temperature": TEMPERATURE,
        "temperature_at_bound": False,
        "prediction_sets": {"lac": rule},
        "label_sets": {"clean": clean},
    }
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | fitted))
    return own_run


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, and one with an orientation beside what people see of it."""
    folder = tmp_path_factory.mktemp("pictures")
    own_pictures.class_folders(folder, ["a", "b", "c", "d"], count=2)
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC))
    orientations.save(folder / "turned.png", scene, 6, "PNG")
    orientations.save(folder / "upright.png", orientations.as_shown(scene, 6), 1, "PNG")
    return folder


@pytest.fixture(scope="module")
def own_run(trained: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a temperature, and with a threshold that refuses some of the pictures."""
    made = evaluated_copy(trained, tmp_path_factory.mktemp("exported"))
    answers = made.path / "answers.json"
    assert run(["predict", str(made.path), str(pictures), "--logits", "--json", str(answers)]) == 0
    largest = np.unique([max(answer["logits"]) for answer in json_lines(answers.read_text())])
    threshold = float(largest[4:6].mean())  # between two scores, where rounding decides nothing
    digest = files.digest_of_file(made.checkpoint("best"))
    UnknownThreshold(Score("max_logit", {}), threshold, 0.95, digest, "none").write(
        made.unknown_threshold_file
    )
    return made


@pytest.fixture(scope="module")
def result(own_run: RunDirectory) -> dict[str, Any]:
    """What the verb prints, in a process of its own."""
    done = tiny.launch([sys.executable, "-m", "pipeline", "export", str(own_run.path)])
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    printed: dict[str, Any] = json.loads(line)
    return printed


def script(own_run: RunDirectory, *words: object) -> subprocess.CompletedProcess[str]:
    """predict.py in a process that cannot import torch or this program."""
    return tiny.launch(
        [sys.executable, "-c", SCRIPT, str(own_run.export / "predict.py"), *map(str, words)], cwd="/"
    )


def test_the_verb_says_what_was_compared(own_run: RunDirectory, result: dict[str, Any]) -> None:
    assert result["export"] == str(own_run.export)
    assert result["exporter"] == "dynamo"
    assert result["size_bytes"] == (own_run.export / "model.onnx").stat().st_size
    for images, count in (("drawn", 70), ("val", 6)):
        compared = result["compared"][images]
        assert (compared["images"], compared["labels_equal"]) == (count, count)
        assert 0 < compared["logits"] <= result["tolerance"] == 1e-5
        assert 0 < compared["heat_maps"] <= 1e-4


def test_the_folder_is_whole_and_nothing_else_is_left(own_run: RunDirectory, result: dict[str, Any]) -> None:
    golden = [
        "1-plain.jpg",
        "2-turned.jpg",
        "3-large.jpg",
        "4-transparent.png",
        "5-grey-16-bits.png",
        "golden.json",
    ]
    hub = ["README.md", "config.json", "model.safetensors"]
    inner = [*(f"golden/{name}" for name in golden), *(f"hub/{name}" for name in hub)]
    names = ["export.json", *inner, "model.onnx", "predict.py", "requirements.txt"]
    assert list(folders.digests(own_run.export)) == names
    assert [path.name for path in own_run.path.glob("export*")] == ["export"]
    said = json.loads((own_run.export / "export.json").read_text())
    assert said["compared"] == result["compared"]


def test_the_metadata_say_what_the_model_is(own_run: RunDirectory, result: dict[str, Any]) -> None:
    model = onnx.load(own_run.export / "model.onnx")
    facts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert facts == json.loads((own_run.export / "export.json").read_text())["metadata"]
    assert len(facts["classes"]) == tiny.SPECIES
    assert facts["temperature"] == TEMPERATURE
    assert facts["unknown"]["score"] == "max_logit"
    rule = {"method": "lac", "coverage": 0.8, "n": 99, "threshold": SET_THRESHOLD}
    assert facts["prediction_set"] == rule
    assert facts["preprocessing"]["resize_px"] == 40
    assert facts["origin"]["checkpoint_sha256"] == files.digest_of_file(own_run.checkpoint("best"))
    assert facts["origin"]["config_sha256"] == files.digest_of_file(own_run.config_file)
    assert facts["weights"] == {"source": "random", "sha256": None, "licence": "random weights"}
    assert str(own_run.path.parent).encode() not in (own_run.export / "model.onnx").read_bytes()
    assert [one.name for one in model.graph.output] == ["logits", "probabilities", "known_score", "heat_maps"]
    assert facts["heat_maps"] == 5
    metrics = json.loads(own_run.evaluation("test").metrics_file.read_text())
    official, clean = facts["numbers"]
    place = {"split": "test", "protocol": "exploratory"}
    top1 = {"value": 0.5, "low": 0.3, "high": 0.7}
    assert clean == {**place, "labels": "clean", "n": 17, "top1": top1}
    assert official == {
        **place,
        "labels": None,
        "n": 18,
        **{
            name: {"value": metrics[name], "low": metrics[f"{name}_low"], "high": metrics[f"{name}_high"]}
            for name in ("top1", "top5", "per_class_mean", "nll")
        },
    }
    batch = model.graph.input[0].type.tensor_type
    assert (batch.elem_type, batch.shape.dim[0].dim_param) == (onnx.TensorProto.UINT8, "batch")


def test_the_script_answers_as_predict_does(
    own_run: RunDirectory, pictures: Path, result: dict[str, Any]
) -> None:
    answers = own_run.path / "answers.json"
    paths = sorted(pictures.rglob("*.png"))
    assert run(["predict", str(own_run.path), *map(str, paths), "--logits", "--json", str(answers)]) == 0
    expected = json_lines(answers.read_text())
    done = script(own_run, *paths)
    assert done.returncode == 0, done.stderr
    for found, wanted in zip(json_lines(done.stdout), expected, strict=True):
        assert found["image"] == wanted["image"]
        assert [one["class"] for one in found["classes"]] == [one["class"] for one in wanted["classes"]]
        probabilities = [[one["probability"] for one in answer["classes"]] for answer in (found, wanted)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
        assert found["none_of_these"] == wanted["none_of_these"]
        assert found["prediction_set"] == wanted["prediction_set"]
    assert len({len(answer["prediction_set"]) for answer in expected}) > 1
    assert {answer["none_of_these"] for answer in expected} == {True, False}
    words = [sys.executable, "-c", WITHOUT_TORCH + LOGITS, str(own_run.export), *map(str, paths)]
    logits = np.array(json_lines(tiny.launch(words, cwd="/").stdout))
    wanted_logits = np.array([answer["logits"] for answer in expected])
    assert np.abs(logits - wanted_logits).max() <= 1e-5 * np.abs(wanted_logits).max()


def test_a_turned_picture_is_the_upright_one(
    own_run: RunDirectory, pictures: Path, result: dict[str, Any]
) -> None:
    done = script(own_run, pictures / "turned.png", pictures / "upright.png", "--top", 2)
    turned, upright = (answer["classes"] for answer in json_lines(done.stdout))
    assert turned == upright
    assert len(turned) == 2


def test_what_is_no_picture_is_said_and_the_others_are_answered(
    own_run: RunDirectory, pictures: Path, result: dict[str, Any]
) -> None:
    done = script(own_run, own_run.export / "predict.py", pictures / "upright.png")
    refused, answered = json_lines(done.stdout)
    assert done.returncode == 2
    assert refused["error"] == "not a picture, or of an unknown format"
    assert answered["classes"]


def test_the_pictures_of_golden_are_verified(own_run: RunDirectory, result: dict[str, Any]) -> None:
    done = script(own_run, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.fixture
def other_run(own_run: RunDirectory, result: dict[str, Any], tmp_path: Path) -> RunDirectory:
    """A copy of the exported run."""
    shutil.copytree(own_run.path, tmp_path / "runs/tiny")
    return RunDirectory(tmp_path / "runs/tiny")


def test_a_golden_picture_with_other_pixels_is_named(other_run: RunDirectory) -> None:
    golden = other_run.export / "golden"
    shutil.copy(golden / "3-large.jpg", golden / "1-plain.jpg")
    done = script(other_run, "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert "1-plain.jpg: different pixels" in done.stderr
    assert "2-turned.jpg" not in done.stderr


def test_golden_logits_that_are_not_reached_are_named(other_run: RunDirectory) -> None:
    path = other_run.export / "golden" / "golden.json"
    golden = json.loads(path.read_text())
    golden["pictures"][1]["logits"] = golden["pictures"][1]["logits"][::-1]
    path.write_text(json.dumps(golden))
    done = script(other_run, "--check")
    assert done.returncode == 2
    assert "2-turned.jpg: logits differ by" in done.stderr


def corrupted(exporter: onnx_file.Exporter) -> onnx_file.Exporter:
    """An exporter whose graphs have a classifier of zeros."""

    def export(network: ExportedNetwork, images: Any, path: Path) -> None:
        exporter(network, images, path)
        model = onnx.load(path)
        weights = [one for one in model.graph.initializer if one.name.endswith(("fc.weight", "fc.bias"))]
        assert len(weights) == 2
        for one in weights:
            zeros = np.zeros_like(onnx.numpy_helper.to_array(one))
            one.CopyFrom(onnx.numpy_helper.from_array(zeros, one.name))
        onnx.save(model, path)

    return export


def failing(network: ExportedNetwork, images: Any, path: Path) -> None:
    raise RuntimeError("an operator is missing\nand a long report")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The older exporter alone, which is the quicker one."""
    monkeypatch.setattr(onnx_file, "EXPORTERS", {"torchscript": onnx_file.by_torchscript})
    yield monkeypatch


def test_where_one_exporter_fails_the_other_one_is_taken(
    other_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(onnx_file.EXPORTERS, "dynamo", failing)
    assert run(["export", str(other_run.path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["exporter"] == "torchscript"
    assert "the exporter dynamo: RuntimeError: an operator is missing\n" in said.err


def test_where_no_graph_agrees_nothing_is_written(
    other_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders.digests(other_run.path)
    exporters = {"dynamo": failing, "torchscript": corrupted(onnx_file.by_torchscript)}
    monkeypatch.setattr(onnx_file, "EXPORTERS", exporters)
    assert run(["export", str(other_run.path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        "no ONNX graph reproduces the trained model: dynamo: RuntimeError: an operator is missing;"
        in said.err
    )
    assert "logits differ by 1, where 1e-05 is allowed (val)" in said.err
    assert folders.digests(other_run.path) == before


def test_a_script_that_answers_otherwise_is_refused(
    other_run: RunDirectory, quickly: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders.digests(other_run.export)
    true = description.preprocessing
    quickly.setattr(description, "preprocessing", lambda config: true(config) | {"resize_px": 33})
    assert run(["export", str(other_run.path)]) == 2
    assert (
        "predict.py does not reproduce the trained model: 1-plain.jpg: different pixels"
        in capsys.readouterr().err
    )
    assert folders.digests(other_run.export) == before


def test_without_the_data_drawn_images_are_compared(
    other_run: RunDirectory, quickly: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(other_run.path), f"data.root={tmp_path / 'elsewhere'}"]) == 0
    said = capsys.readouterr()
    compared = json.loads(said.out)["compared"]
    assert compared["val"] is None
    assert compared["drawn"]["labels_equal"] == 70
    assert "not on the validation images: " in said.err


def test_an_evaluation_of_mirror_images_is_exported_as_such(
    other_run: RunDirectory, quickly: pytest.MonkeyPatch, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(pictures / "upright.png")
    assert run(["export", str(other_run.path), "eval.tta=flip"]) == 0
    assert run(["predict", str(other_run.path), picture, "--tta"]) == 0
    exported, predicted = json_lines(capsys.readouterr().out)
    assert exported["compared"]["val"]["labels_equal"] == 6
    facts = json.loads((other_run.export / "export.json").read_text())["metadata"]
    of_one_view = [facts[name] for name in ("temperature", "unknown", "prediction_set")]
    assert of_one_view == [None, None, None]  # they are of the picture as it is
    (answer,) = json_lines(script(other_run, picture).stdout)
    expected = [one["probability"] for one in predicted["predictions"][0]["classes"]]
    assert [one["probability"] for one in answer["classes"]] == pytest.approx(expected, abs=1e-5)


def test_a_run_in_bfloat16_is_compared_in_float32(
    birds: Path, tmp_path: Path, quickly: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.epochs=1", "train.precision=bf16") == 0
    capsys.readouterr()
    assert run(["export", str(tmp_path / "runs/tiny")]) == 0
    said = capsys.readouterr()
    assert "compared with the model in fp32, not bf16" in said.err
    assert json.loads(said.out)["compared"]["val"]["labels_equal"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.tta=ten_crop"], "eval.tta: ten_crop takes its crops from the whole picture"),
        (["eval.checkpoint=/nowhere.pt"], "/nowhere.pt: no such checkpoint"),
        (["other"], "2 runs are named; name one"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    own_run: RunDirectory, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(own_run.path), *words]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""


def test_a_package_that_is_missing_is_named(
    own_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert run(["export", str(own_run.path)]) == 2
    assert "needs the packages onnxscript; install them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "origin", "expected"),
    [
        (
            "resnet50.tv_in1k",
            {"source": "timm/resnet50.tv_in1k"},
            {"source": "timm/resnet50.tv_in1k", "sha256": None, "licence": "bsd-3-clause"},
        ),
        (
            "plumage/resnet18",
            {"source": "timm/resnet18.tv_in1k"},
            {"source": "timm/resnet18.tv_in1k", "sha256": None, "licence": "bsd-3-clause"},
        ),
        (
            "mobilenetv2_100",
            {"source": "/home/someone/weights.pth", "sha256": "ab"},
            {"source": "weights.pth", "sha256": "ab", "licence": None},
        ),
        (
            "tf_efficientnet_lite0",
            {"source": "efficientnet 1.0", "sha256": "cd", "licence": "Apache License"},
            {"source": "efficientnet 1.0", "sha256": "cd", "licence": "Apache License"},
        ),
    ],
)
def test_the_licence_of_the_weights_is_said_where_it_is_known(
    model: str, origin: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert description.weights(model, origin) == expected


def test_onnxruntime_for_gpus_may_stand_in_place_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.31.0"

    monkeypatch.setattr(description.metadata, "version", version)
    assert "onnxruntime==1.31.0" in description.requirements().splitlines()
