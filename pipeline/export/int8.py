"""Ways to compute a graph in int8: static quantisation by ONNX Runtime (Jacob et al. 2018, arXiv:1712.05877).

Activations become uint8 by one scale a tensor: from the lowest to the highest `PERCENTILE` of what training pictures
make of it. Weights become int8 by one scale an output channel. What this costs in accuracy depends on the network; so
several ways are tried, from the quickest to compute to the nearest to float32.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
)
from onnxruntime.quantization.calibrate import TensorsData

from pipeline.export import layers
from pipeline.export.network import INPUT
from pipeline.export.onnx_file import Images

PERCENTILE = 99.99
CLIPPING = "Relu", "Clip"
"""operators that become a part of the layer before them, by the range of its output"""
QUANTISED = [*layers.OPERATORS, *CLIPPING]


@dataclass(frozen=True)
class Candidate:
    """A way to int8.

    first: number of first layers that stay in float32; last: whether the last one does. activations: whether these are
    int8 too, and not the weights alone. per_channel: a scale for each output channel of the weights, not one in all.
    """

    name: str
    first: int
    last: bool
    activations: bool = True
    per_channel: bool = True

    def layers_of(self, model: onnx.ModelProto) -> list[layers.Layer]:
        """The layers that become int8; none, where a network has not more than those that stay."""
        every = layers.layers_of(model)
        return every[self.first : -1 if self.last else None]


CANDIDATES = (
    Candidate("all layers", 0, last=False),
    Candidate("all layers but the first and the last", 1, last=True),
    Candidate("all layers but the first 4 and the last", 4, last=True),
    Candidate("all layers but the first 8 and the last", 8, last=True),
    Candidate(
        "the weights alone, of all layers but the first 8 and the last", 8, last=True, activations=False
    ),
)
"""in the order in which they are tried"""


class _Batch(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """One batch, as the calibrator takes it: it keeps what it was given until it has seen all."""

    def __init__(self, images: Images) -> None:
        self._batches = iter([{INPUT: images}])

    def get_next(self) -> dict[str, Images] | None:
        return next(self._batches, None)


def calibrate(path: Path, batches: Iterable[Images]) -> TensorsData:
    """The ranges of a graph's activations; batches: uint8 [B, 3, P, P] each."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            path,
            QUANTISED,
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"percentile": PERCENTILE},
        )
        for images in batches:
            calibrator.collect_data(_Batch(images))
        return calibrator.compute_data()


def converted(path: Path, candidate: Candidate, ranges: Callable[[], TensorsData]) -> onnx.ModelProto:
    """A graph of float32 in the form of a candidate; ranges: what `calibrate` gives, where activations are int8 too."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    chosen = candidate.layers_of(model)
    if not candidate.activations:
        layers.store_as_int8(model, chosen)
        return model
    quantizer = QDQQuantizer(
        model,
        per_channel=candidate.per_channel,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges(),
        nodes_to_quantize=_with_clipping(model, {name for layer in chosen for name in layer.nodes}),
        nodes_to_exclude=[],
        op_types_to_quantize=QUANTISED,
        extra_options={},
    )
    quantizer.quantize_model()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def _with_clipping(model: onnx.ModelProto, nodes: set[str]) -> list[str]:
    """Names of nodes, and of those that clip their outputs."""
    outputs = {output for node in model.graph.node if node.name in nodes for output in node.output}
    clipping = []
    for number, node in enumerate(model.graph.node):
        if node.op_type in CLIPPING and node.input[0] in outputs:
            node.name = node.name or f"clipping_{number}"
            clipping.append(node.name)
    return [*nodes, *clipping]
