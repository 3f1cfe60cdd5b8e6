"""The layers of an exported graph that hold its weights, and smaller forms in which a graph can store these.

A stored form is turned back into float32 by nodes on constants, which ONNX Runtime computes once, when it opens the
file: it then computes as with float32 weights, on any processor, and in a browser.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPERATORS = "Conv", "Gemm", "MatMul"
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Layer:
    """The nodes that share one array of weights: their names, that of the weights, and the axis of output channels."""

    nodes: tuple[str, ...]
    weights: str
    axis: int


def layers_of(model: ModelProto) -> list[Layer]:
    """The convolutions and matrix products with float32 weights, in the order of the graph; nodes are given names."""
    arrays = {one.name: one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT}
    nodes: dict[tuple[str, int], list[str]] = {}
    for number, node in enumerate(model.graph.node):
        if node.op_type in OPERATORS and node.input[1] in arrays:
            node.name = node.name or f"layer_{number}"
            axis = _output_axis(node, len(arrays[node.input[1]].dims))
            nodes.setdefault((node.input[1], axis), []).append(node.name)
    return [Layer(tuple(names), weights, axis) for (weights, axis), names in nodes.items()]


def _output_axis(node: NodeProto, dimensions: int) -> int:
    """The axis of a node's weights that the channels of its output are on."""
    is_transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else dimensions - 1


def store_as_float16(model: ModelProto, layers: Iterable[Layer]) -> None:
    """Store weights as float16; those with a number that float16 does not hold stay as they are."""
    arrays, before = {one.name: one for one in model.graph.initializer}, []
    for name in {layer.weights: None for layer in layers}:
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(arrays[name]).astype(np.float16)
        if np.isfinite(half).all():
            arrays[name].CopyFrom(numpy_helper.from_array(half, f"{name}.float16"))
            before.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    _put_first(model, before)


def store_as_int8(model: ModelProto, layers: Iterable[Layer]) -> None:
    """Store weights as int8 with a factor for each output channel: the largest weight of a channel becomes 127."""
    arrays, before = {one.name: one for one in model.graph.initializer}, []
    for layer in {layer.weights: layer for layer in layers}.values():
        name = layer.weights
        levels, factors = _levels(numpy_helper.to_array(arrays[name]), layer.axis)
        arrays[name].CopyFrom(numpy_helper.from_array(levels, f"{name}.int8"))
        model.graph.initializer.append(numpy_helper.from_array(factors, f"{name}.factors"))
        before += [
            helper.make_node("Cast", [f"{name}.int8"], [f"{name}.levels"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.levels", f"{name}.factors"], [name]),
        ]
    _put_first(model, before)


def _levels(
    weights: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Whole numbers from -127 to 127, and the factors of the channels that make weights of them."""
    others = tuple(one for one in range(weights.ndim) if one != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    factors = np.where(largest > 0, largest / LARGEST_INT8, 1).astype(np.float32)
    return np.rint(weights / factors).astype(np.int8), factors


def _put_first(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Put nodes, whose inputs are constants, before all others."""
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
