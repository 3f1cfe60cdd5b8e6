"""The graphs of the recipes' networks give what the networks give; those of other networks are told from them."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.answering.unknown_scores import NAMES, Score, fit
from pipeline.config.model import ModelConfig
from pipeline.export import heat_maps, onnx_file, proof
from pipeline.export.network import ExportedNetwork
from pipeline.export.onnx_file import Graph
from pipeline.inference.linear_head import Images
from pipeline.models.folding import fold_batchnorms
from tests.helpers.trained_statistics import drawn_network

CLASSES, IMAGE_PX, TEMPERATURE = 7, 64, 0.6
CONFIGS = {
    "resnet18": ModelConfig(name="resnet18", pretrained=False),
    "resnet50": ModelConfig(name="resnet50", pretrained=False),
    "mobilenetv2": ModelConfig(name="mobilenetv2_100", pretrained=False, options={"pad_type": "same"}),
    "efficientnet_lite0": ModelConfig(name="tf_efficientnet_lite0", pretrained=False),
    "convnext_atto": ModelConfig(name="convnext_atto", pretrained=False),
    "vit": ModelConfig(name="test_vit", pretrained=False, options={"img_size": IMAGE_PX}),
    "plumage": ModelConfig(name="plumage/resnet_small", pretrained=False),
    "two heads": ModelConfig(name="test_resnet", pretrained=False, mid_level_head=True),
    "two heads, gem": ModelConfig(name="test_resnet", pretrained=False, mid_level_head=True, pool="gem"),
}

QUICK = "mobilenetv2", "vit", "plumage", "two heads"
WITH_MAPS = "resnet18", "resnet50", "mobilenetv2", "efficientnet_lite0", "plumage", "two heads"
"""whose heads are a mean over positions and one linear layer"""


def trained(config: ModelConfig, **other: object) -> proof.Trained:
    model = fold_batchnorms(drawn_network(config, CLASSES, IMAGE_PX), IMAGE_PX)
    mapped = model if heat_maps.are_logits(model, IMAGE_PX) else None
    keys = {"temperature": TEMPERATURE, "tta": "none", "score": None, "mapped": mapped, **other}
    return proof.Trained(model, **keys)  # type: ignore[arg-type]


def some_batches() -> list[np.ndarray]:
    """Of 1, 2 and 3 images."""
    return list(islice(proof.drawn_batches(IMAGE_PX), 3))


def exported(one: proof.Trained, path: Path, exporter: str = "dynamo") -> Graph:
    maps = one.mapped is not None
    network = ExportedNetwork(one.network, one.temperature, one.tta, one.score, maps=maps)
    onnx_file.write(onnx_file.EXPORTERS[exporter], network, IMAGE_PX, path)
    return Graph(path)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_the_graph_of_a_network_agrees_in_batches_of_1_2_3_and_64(name: str, tmp_path: Path) -> None:
    one = trained(CONFIGS[name])
    agreement = proof.compare(one, exported(one, tmp_path / "a.onnx"), proof.drawn_batches(IMAGE_PX))
    assert agreement.faults == []
    assert (agreement.images, agreement.labels_equal) == (70, 70)
    assert 0 < agreement.logits <= 1e-5
    assert (agreement.heat_maps > 0) == (name in WITH_MAPS)
    assert agreement.largest_logit > 0.01


@pytest.mark.parametrize("exporter", onnx_file.EXPORTERS)
def test_the_mirror_image_is_a_part_of_the_graph(exporter: str, tmp_path: Path) -> None:
    one, plain = (trained(CONFIGS["plumage"], tta=tta) for tta in ("flip", "none"))
    graph = exported(one, tmp_path / "a.onnx", exporter)
    assert proof.compare(one, graph, some_batches()).faults == []
    assert proof.compare(plain, graph, some_batches()).faults != []


@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_the_known_is_a_part_of_the_graph(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = np.abs(random.normal(size=(60, 64))).astype(np.float32)
    one = trained(CONFIGS["plumage"], score=fit(name, Images(features, np.arange(60) % CLASSES)))
    graph = exported(one, tmp_path / "a.onnx", "torchscript")
    agreement = proof.compare(one, graph, some_batches())
    assert agreement.faults == []
    scores = graph.outputs(some_batches()[0])["known_score"]
    assert scores.dtype == np.float64
    assert scores.shape == (1,)


def test_another_score_than_that_of_the_threshold_is_a_fault(tmp_path: Path) -> None:
    one, other = (trained(CONFIGS["plumage"], score=Score(name, {})) for name in ("energy", "max_logit"))
    graph = exported(one, tmp_path / "a.onnx", "torchscript")
    (fault,) = proof.compare(other, graph, some_batches()).faults
    assert fault.startswith("known_score differ by ")


def last_weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith("fc.weight"))


def swap_two_classes(model: onnx.ModelProto) -> None:
    tensor = last_weight(model)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))


def not_a_number(model: onnx.ModelProto) -> None:
    tensor = last_weight(model)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))


def a_little_off(model: onnx.ModelProto) -> None:
    tensor = last_weight(model)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.0001), tensor.name))


@pytest.mark.parametrize(
    ("corrupt", "said"),
    [
        (swap_two_classes, "labels differ"),
        (not_a_number, "logits differ by nan"),
        (a_little_off, "logits differ by 0.0001"),
    ],
)
def test_a_corrupted_graph_is_told_from_the_network(
    corrupt: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path
) -> None:
    one, path = trained(CONFIGS["plumage"]), tmp_path / "a.onnx"
    exported(one, path, "torchscript")
    model = onnx.load(path)
    corrupt(model)
    onnx.save(model, path)
    faults = proof.compare(one, Graph(path), some_batches()).faults
    assert any(said in fault for fault in faults)


def test_a_graph_holds_no_name_of_a_file_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    for exporter in onnx_file.EXPORTERS:
        exported(trained(CONFIGS["plumage"]), tmp_path / "a.onnx", exporter)
        content = (tmp_path / "a.onnx").read_bytes()
        assert b".py" not in content
        assert str(Path(proof.__file__).parents[2]).encode() not in content


def test_a_file_that_is_no_graph_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(onnx_file.GraphFault, match="InvalidProtobuf"):
        Graph(tmp_path / "a.onnx")


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("exporter", onnx_file.EXPORTERS)
def test_the_mean_of_a_heat_map_and_the_bias_are_the_logit(exporter: str, tta: str, tmp_path: Path) -> None:
    """Parts that speak against a class are 0 in the output: here all speak for it."""
    one = trained(CONFIGS["plumage"], tta=tta)
    with torch.no_grad():
        one.network.head.weight.abs_()
    graph, images = exported(one, tmp_path / "a.onnx", exporter), some_batches()[2]
    found = graph.outputs(images)
    order = np.argsort(-found["logits"], axis=1, kind="stable")[:, :5]
    assert found["heat_maps"].shape == (3, 5, 16, 16)
    views = [images, images[..., ::-1]] if tta == "flip" else [images]
    with torch.no_grad():
        logits = np.mean([one.network(torch.from_numpy(view.copy())).numpy() for view in views], axis=0)
    bias = one.network.head.bias.detach().numpy()
    said = found["heat_maps"].mean((2, 3)) + bias[order]
    np.testing.assert_allclose(said, np.take_along_axis(logits, order, 1), rtol=1e-4)
    assert proof.compare(one, graph, [images]).faults == []


def test_heat_maps_of_other_classes_are_told_from_those_that_are_wanted(tmp_path: Path) -> None:
    one = trained(CONFIGS["plumage"])
    graph = exported(one, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    (last,) = (node for node in model.graph.node if "heat_maps" in node.output)
    last.output[0] = "unturned"
    model.graph.node.append(onnx.helper.make_node("Gather", ["unturned", "order"], ["heat_maps"], axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 2, 3, 4]), "order"))
    onnx.save(model, tmp_path / "b.onnx")
    assert proof.compare(one, graph, some_batches()).faults == []
    (fault,) = proof.compare(one, Graph(tmp_path / "b.onnx"), some_batches()).faults
    assert fault.startswith("heat_maps differ by ")


def test_a_head_that_is_no_mean_of_positions_has_no_heat_maps() -> None:
    """A maximum in place of the mean: the evidence of a position is not what it adds."""
    model = drawn_network(CONFIGS["plumage"], CLASSES, IMAGE_PX)
    assert heat_maps.are_logits(model, IMAGE_PX)
    model.backbone.global_pool = torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten())
    assert not heat_maps.are_logits(model, IMAGE_PX)
