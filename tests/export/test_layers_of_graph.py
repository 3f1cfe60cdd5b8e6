"""The layers of a graph, and what it computes when their weights are stored in fewer bits."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.layers import Layer, layers_of, store_as_float16, store_as_int8

RANDOM = np.random.default_rng(0)
CONVOLUTION = RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32)
PRODUCT = RANDOM.normal(size=(5, 4)).astype(np.float32)
LAST = RANDOM.normal(size=(5, 2)).astype(np.float32)


def graph(convolution: np.ndarray = CONVOLUTION, product: np.ndarray = PRODUCT) -> onnx.ModelProto:
    """Two convolutions with the same weights, a transposed product, a plain one, and a product in float64."""
    nodes = [
        helper.make_node("Conv", ["images", "a"], ["one"]),
        helper.make_node("Conv", ["images", "a"], ["other"]),
        helper.make_node("Add", ["one", "other"], ["both"]),
        helper.make_node("GlobalAveragePool", ["both"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "b"], ["hidden"], transB=1),
        helper.make_node("MatMul", ["hidden", "c"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "d"], ["score"]),
    ]
    arrays = {"a": convolution, "b": product, "c": LAST, "d": np.eye(2)}
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["n", 2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def scores(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    images = np.random.default_rng(1).normal(size=(6, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    return np.asarray(found)


def stored(model: onnx.ModelProto) -> dict[str, np.dtype]:
    return {one.name: numpy_helper.to_array(one).dtype for one in model.graph.initializer}


def test_nodes_with_the_same_weights_are_one_layer_and_float64_is_none() -> None:
    model = graph()
    assert layers_of(model) == [
        Layer(("layer_0", "layer_1"), "a", 0),
        Layer(("layer_5",), "b", 0),
        Layer(("layer_6",), "c", 1),
    ]


def test_weights_as_float16_are_rounded_and_computed_in_float32() -> None:
    model, rounded = (
        graph(),
        graph(*(one.astype(np.float16).astype(np.float32) for one in (CONVOLUTION, PRODUCT))),
    )
    store_as_float16(model, layers_of(model)[:2])
    assert stored(model) == {
        "a.float16": np.float16,
        "b.float16": np.float16,
        "c": np.float32,
        "d": np.float64,
    }
    assert np.array_equal(scores(model), scores(rounded))
    assert not np.array_equal(scores(model), scores(graph()))


def test_weights_that_float16_does_not_hold_stay() -> None:
    large = PRODUCT.copy()
    large[0, 0] = 70000
    model = graph(product=large)
    store_as_float16(model, layers_of(model))
    assert stored(model)["b"] == np.float32
    assert stored(model)["a.float16"] == np.float16
    assert np.isfinite(scores(model)).all()


def test_weights_as_int8_have_a_factor_for_each_output_channel() -> None:
    """By hand: a channel's largest weight is 127 steps; a channel of zeros stays one."""
    product = PRODUCT.copy()
    product[1], product[2] = 0, [127, -63.4, 0.6, 1]
    model, expected = graph(product=product), product.copy()
    expected[2] = [127, -63, 1, 1]
    for row in (0, 3, 4):
        step = np.abs(product[row]).max() / 127
        expected[row] = np.rint(product[row] / step) * step
    chosen = [layer for layer in layers_of(model) if layer.weights == "b"]
    store_as_int8(model, chosen)
    assert stored(model)["b.int8"] == np.int8
    assert scores(model) == pytest.approx(scores(graph(product=expected)), rel=1e-5)


def test_the_axis_of_a_plain_product_is_its_last() -> None:
    model = graph()
    store_as_int8(model, [layer for layer in layers_of(model) if layer.weights == "c"])
    (factors,) = (one for one in model.graph.initializer if one.name == "c.factors")
    assert numpy_helper.to_array(factors) == pytest.approx(np.abs(LAST).max(axis=0, keepdims=True) / 127)


def test_a_file_of_float16_is_smaller() -> None:
    model = graph(
        RANDOM.normal(size=(400, 3, 5, 5)).astype(np.float32), RANDOM.normal(size=(5, 400)).astype(np.float32)
    )
    before = len(model.SerializeToString())
    store_as_float16(model, layers_of(model))
    assert len(model.SerializeToString()) < 0.55 * before
