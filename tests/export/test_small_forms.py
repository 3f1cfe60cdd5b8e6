"""Smaller forms of the graph are written where validation says that they answer as it does, and only there."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.cli.main import run
from pipeline.data import prepare
from pipeline.export import gate, int8, layers, onnx_file, small_forms
from pipeline.export.gate import Agreement, Yardstick
from pipeline.export.onnx_file import Graph
from pipeline.runs.directory import RunDirectory
from tests.helpers import folders, tiny

PER_TENSOR = int8.Candidate("a scale in all", 0, last=False, per_channel=False)
PER_CHANNEL = int8.Candidate("a scale for each channel", 0, last=False)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of the tiny run with an export, by the older exporter, which is the quicker one."""
    tmp = tmp_path_factory.mktemp("exported")
    shutil.copytree(trained / "runs", tmp / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "EXPORTERS", {"torchscript": onnx_file.by_torchscript})
        assert run(["export", str(tmp / "runs/tiny")]) == 0
    return RunDirectory(tmp / "runs/tiny")


@pytest.fixture
def folder(exported: RunDirectory, tmp_path: Path) -> Path:
    """A copy of the export."""
    shutil.copytree(exported.export, tmp_path / "export")
    return tmp_path / "export"


def write(folder: Path, form: small_forms.Form) -> dict[str, Any]:
    """Write a form into an export; what was measured of it."""
    config = tiny.config(folder.parent)
    facts = json.loads((folder / "export.json").read_text())["metadata"]
    measured: dict[str, Any] = small_forms.write(folder, config, prepare.load(config), [form], facts)[form]
    return measured


def check(folder: Path, model: str) -> tuple[int, str]:
    """The exit code of predict.py --check, and what it says."""
    done = tiny.launch([sys.executable, str(folder / "predict.py"), "--check", "--model", model])
    return done.returncode, done.stderr


def with_a_silent_channel(path: Path) -> None:
    """Give a channel of the first convolution a thousand times its weights, and a bias that ReLU lets nothing by."""
    model = onnx.load(path)
    arrays = {one.name: one for one in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    for name, factor, added in ((first.input[1], 1000, 0), (first.input[2], 0, -1e6)):
        values = numpy_helper.to_array(arrays[name]).copy()
        values[0] = values[0] * factor + added
        arrays[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def facts_of(path: Path) -> dict[str, Any]:
    return {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}


def test_weights_of_16_bits_are_written_with_their_golden_logits(folder: Path) -> None:
    measured = write(folder, "fp16")
    assert measured["file"] == "model.fp16.onnx"
    (only,) = measured["candidates"]
    assert [only[name] for name in ("images", "views", "views_equal", "drop", "faults")] == [6, 60, 60, 0, []]
    small, large = (folder / name for name in ("model.fp16.onnx", "model.onnx"))
    assert small.stat().st_size < 0.65 * large.stat().st_size
    assert facts_of(small) == facts_of(large) | {"form": {"form": "fp16", **only}}
    golden = [
        json.loads((folder / "golden" / name).read_text()) for name in ("golden.json", "golden.fp16.json")
    ]
    logits = [np.array([picture["logits"] for picture in one["pictures"]]) for one in golden]
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.01 * np.abs(logits[0]).max()
    for one in golden:
        for picture in one["pictures"]:
            del picture["logits"]
    assert golden[0] == golden[1]
    assert check(folder, "model.fp16.onnx") == (0, "")


def test_a_scale_in_all_is_refused_and_a_scale_for_each_channel_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_a_silent_channel(folder / "model.onnx")
    monkeypatch.setattr(int8, "CANDIDATES", (PER_TENSOR, PER_CHANNEL))
    measured = write(folder, "int8")
    refused, written = measured["candidates"]
    assert refused["views_equal"] < 40
    assert f"{refused['views_equal']} of 60 labels equal" in refused["faults"][0]
    assert (written["name"], written["faults"]) == (PER_CHANNEL.name, [])
    assert written["views_equal"] >= 59
    assert facts_of(folder / "model.int8.onnx")["form"]["name"] == PER_CHANNEL.name
    operators = [node.op_type for node in onnx.load(folder / "model.int8.onnx").graph.node]
    assert "QuantizeLinear" in operators
    assert json.loads((folder / "golden/golden.int8.json").read_text())["tolerance"] == 0.15
    assert check(folder, "model.int8.onnx") == (0, "")
    said = capsys.readouterr().err
    assert f"int8, {PER_TENSOR.name}: {refused['faults'][0]}" in said
    assert f"int8, {PER_CHANNEL.name}: {written['views_equal']} of 60 labels equal" in said


def test_where_no_candidate_passes_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_a_silent_channel(folder / "model.onnx")
    before = folders.digests(folder)
    monkeypatch.setattr(int8, "CANDIDATES", (PER_TENSOR,))
    measured = write(folder, "int8")
    assert measured["file"] is None
    assert measured["candidates"][0]["faults"]
    assert folders.digests(folder) == before
    assert "warning: int8 is not written: no form of it answers as model.onnx does" in capsys.readouterr().err


def test_the_weights_alone_may_be_of_8_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = int8.Candidate("the weights alone", 0, last=False, activations=False)
    monkeypatch.setattr(int8, "CANDIDATES", (alone,))
    monkeypatch.setattr(int8, "calibrate", None)  # not needed
    measured = write(folder, "int8")
    assert measured["candidates"][0]["faults"] == []
    assert (folder / "model.int8.onnx").stat().st_size < 0.35 * (folder / "model.onnx").stat().st_size
    assert json.loads((folder / "golden/golden.int8.json").read_text())["tolerance"] == 1e-5
    assert check(folder, "model.int8.onnx") == (0, "")


def test_a_candidate_that_cannot_be_made_is_refused_and_the_next_one_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(*_: object) -> None:
        raise RuntimeError("an operator is unknown\nand a long report")

    monkeypatch.setattr(int8, "calibrate", calibrate)
    measured = write(folder, "int8")
    assert [one["faults"] for one in measured["candidates"][:-1]] == [
        ["RuntimeError: an operator is unknown"]
    ] * 4
    assert measured["file"] == "model.int8.onnx"


def test_golden_labels_and_logits_of_a_form_that_are_not_reached_are_named(folder: Path) -> None:
    """A label is one of another class where that is further away than the tolerance."""
    write(folder, "fp16")
    path = folder / "golden/golden.fp16.json"
    golden = json.loads(path.read_text())
    golden["pictures"][1]["logits"] = [-logit for logit in golden["pictures"][1]["logits"]]
    path.write_text(json.dumps(golden))
    code, said = check(folder, "model.fp16.onnx")
    assert code == 2
    label, logits = said.splitlines()
    assert label.startswith("2-turned.jpg: label ")
    assert logits.startswith("2-turned.jpg: logits differ by ")
    path.write_text(json.dumps(golden | {"tolerance": 10}))
    assert check(folder, "model.fp16.onnx") == (0, "")
    assert check(folder, "model.onnx") == (0, "")


def test_the_verb_says_which_forms_it_has_written(
    exported: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onnx_file, "EXPORTERS", {"torchscript": onnx_file.by_torchscript})
    monkeypatch.setattr(layers, "store_as_float16", negated)
    shutil.copytree(exported.path, tmp_path / "runs/tiny")
    assert run(["export", str(tmp_path / "runs/tiny"), "--fp16", "--int8"]) == 0
    printed = json.loads(capsys.readouterr().out)
    folder = RunDirectory(tmp_path / "runs/tiny").export
    said = json.loads((folder / "export.json").read_text())
    assert {name: said[name] for name in ("fp16", "int8")} == {
        name: printed[name] for name in ("fp16", "int8")
    }
    assert (printed["fp16"]["file"], printed["int8"]["file"]) == (None, "model.int8.onnx")
    assert sorted(path.name for path in folder.glob("model*")) == ["model.int8.onnx", "model.onnx"]
    assert run(["export", str(tmp_path / "runs/tiny"), f"data.root={tmp_path / 'nowhere'}", "--int8"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["int8"] == {"file": None, "candidates": []}
    assert json.loads(output.out)["fp16"] is None
    assert "int8 is not written, as there are no validation images at hand" in output.err
    assert [path.name for path in folder.glob("model*")] == ["model.onnx"]


def negated(model: onnx.ModelProto, chosen: list[layers.Layer]) -> None:
    """Weights of the last layer with the wrong sign."""
    (last,) = (one for one in model.graph.initializer if one.name == chosen[-1].weights)
    last.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(last), last.name))


def agreement(views: int, equal: int, drop: float = 0.0) -> Agreement:
    return Agreement(75, 75, views, equal, 0.9 - drop, 0.9, drop, drop, drop, 70, 0)


@pytest.mark.parametrize(
    ("form", "found", "said"),
    [
        ("int8", agreement(750, 735), []),
        ("int8", agreement(750, 734), ["734 of 750 labels equal (views of 75 validation images), where 735"]),
        ("int8", agreement(750, 750, 0.005), []),
        ("int8", agreement(750, 750, 0.0051), ["top-1 falls by 0.51 points, where 0.50 are allowed"]),
        ("int8", agreement(75, 74), []),
        ("int8", agreement(75, 73, 0.02), ["73 of 75 labels equal", "top-1 falls by 2.00 points"]),
        ("fp16", agreement(1000, 998), []),
        ("fp16", agreement(1000, 997), ["997 of 1,000 labels equal"]),
        ("fp16", agreement(75, 74), ["74 of 75 labels equal (views of 75 validation images), where 75 are"]),
        ("int8", agreement(750, 750, -0.02), []),
    ],
)
def test_a_form_passes_with_equal_labels_and_without_a_fall_of_accuracy(
    form: small_forms.Form, found: Agreement, said: list[str]
) -> None:
    faults = small_forms.GATES[form].faults(found)
    assert len(faults) == len(said)
    assert all(fault.startswith(start) for fault, start in zip(faults, said, strict=True))


@pytest.mark.parametrize(
    ("enough", "tta", "views"), [(1000, "none", 60), (1000, "flip", 30), (7, "none", 12), (6, "none", 6)]
)
def test_few_validation_images_are_seen_in_several_crops(
    folder: Path, enough: int, tta: str, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that averages the mirror image has no other answer for it."""
    monkeypatch.setattr(gate, "ENOUGH_VIEWS", enough)
    config = tiny.config(folder.parent, f"eval.tta={tta}")
    graph = Graph(folder / "model.onnx")
    found = Yardstick(config, prepare.load(config), graph).agreement(graph, "itself")
    assert (found.images, found.views, found.views_equal, found.drop) == (6, views, views, 0)


def test_accuracy_is_that_of_the_centre_crops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a graph that names every picture as the class after the right one's."""
    config = tiny.config(folder.parent)
    data = prepare.load(config)
    graph = Graph(folder / "model.onnx")
    yardstick = Yardstick(config, data, graph)
    own = yardstick.agreement(graph, "itself")
    true = Graph.outputs

    def shifted(self: Graph, images: np.ndarray) -> onnx_file.Outputs:
        return {"logits": np.roll(true(self, images)["logits"], 1, axis=1)}

    monkeypatch.setattr(Graph, "outputs", shifted)
    found = yardstick.agreement(graph, "shifted")
    assert (found.images_equal, found.views_equal, found.drawn_equal, found.top1_fp32) == (0, 0, 0, own.top1)
    assert found.drop == pytest.approx(own.top1 - found.top1)
    assert found.drop_low <= found.drop <= found.drop_high
