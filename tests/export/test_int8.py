"""Graphs of several kinds of networks in int8: which layers are, and that what they compute is near."""

from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.config.model import ModelConfig
from pipeline.data.tta import Kind
from pipeline.export import heat_maps, int8, onnx_file
from pipeline.export.layers import layers_of
from pipeline.export.network import ExportedNetwork
from pipeline.export.onnx_file import Graph
from pipeline.export.proof import drawn_batches
from pipeline.models.folding import fold_batchnorms
from tests.helpers.trained_statistics import drawn_network

PX = 64
IMAGES = np.concatenate(list(islice(drawn_batches(PX), 3)))
NETWORKS: dict[str, tuple[ModelConfig, Kind]] = {
    "with the mirror image": (ModelConfig(name="plumage/resnet_small", pretrained=False), "flip"),
    "of transformer blocks": (
        ModelConfig(name="test_vit", pretrained=False, options={"img_size": PX}),
        "none",
    ),
}


@pytest.fixture(params=NETWORKS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The graph of a network."""
    config, tta = NETWORKS[request.param]
    model = fold_batchnorms(drawn_network(config, 7, PX), PX)
    network = ExportedNetwork(model, 1.0, tta, None, maps=heat_maps.are_logits(model, PX))
    onnx_file.write(onnx_file.by_torchscript, network, PX, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("candidate", int8.CANDIDATES[:2], ids=lambda one: one.name)
def test_layers_are_stored_in_int8_and_the_logits_are_near(path: Path, candidate: int8.Candidate) -> None:
    before, before_outputs = onnx.load(path), Graph(path).outputs(IMAGES)
    plain = before_outputs["logits"]
    model = int8.converted(path, candidate, lambda: int8.calibrate(path, np.array_split(IMAGES, 2)))
    onnx.save(model, path)
    every = layers_of(before)
    assert len(candidate.layers_of(before)) == len(every) - candidate.first - candidate.last
    assert [layer.weights for layer in layers_of(model)] == [
        layer.weights for layer in every if layer not in candidate.layers_of(before)
    ]
    arrays = [numpy_helper.to_array(one) for one in model.graph.initializer]
    assert {one.name for one in model.graph.initializer}.isdisjoint(
        layer.weights for layer in candidate.layers_of(before)
    )  # nor kept in float32 for the heat maps
    assert sum(one.dtype == np.int8 and one.ndim > 1 for one in arrays) == len(candidate.layers_of(before))
    outputs = Graph(path).outputs(IMAGES)
    found = outputs["logits"]
    assert 0 < np.abs(found - plain).max() < 0.1 * np.abs(plain).max()
    assert ("heat_maps" in outputs) == ("heat_maps" in before_outputs)


def test_a_network_with_too_few_layers_has_no_such_candidate(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((2, 2), np.float32), "weights")
    node = onnx.helper.make_node("MatMul", ["images", "weights"], ["logits"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "one layer", [], [], [weights]))
    assert [bool(one.layers_of(model)) for one in int8.CANDIDATES] == [True, False, False, False, False]
