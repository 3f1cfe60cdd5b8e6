"""A network becomes an ONNX file, by one of torch's two exporters; and such a file as a session of ONNX Runtime."""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from pipeline.common.errors import Stopped, UserError, refused
from pipeline.export.network import INPUT, ExportedNetwork

Images = npt.NDArray[np.uint8]
Outputs = dict[str, npt.NDArray[np.floating[Any]]]


class GraphFault(Exception):
    """An exporter, or ONNX Runtime, cannot cope with a network; the message says in a line why."""


@contextlib.contextmanager
def graph_faults() -> Iterator[None]:
    """What an exporter or ONNX Runtime raises, which may be anything, is a `GraphFault`."""
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        if refused(error) is not None:  # a full disk, say
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise GraphFault(
            f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
        ) from error


def by_dynamo(network: ExportedNetwork, images: Tensor, path: Path) -> None:
    """The exporter on torch.export."""
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=True,
        input_names=[INPUT],
        output_names=network.output_names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


def by_torchscript(network: ExportedNetwork, images: Tensor, path: Path) -> None:
    """The older exporter, which traces."""
    names = network.output_names
    torch.onnx.export(
        network,
        (images,),
        str(path),
        dynamo=False,
        input_names=[INPUT],
        output_names=names,
        dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)},
    )


Exporter = Callable[[ExportedNetwork, Tensor, Path], None]
EXPORTERS: dict[str, Exporter] = {"dynamo": by_dynamo, "torchscript": by_torchscript}
"""in the order in which they are tried"""


def write(exporter: Exporter, network: ExportedNetwork, image_px: int, path: Path) -> None:
    """Write the ONNX file of a network, for any batch size, without a trace of the machine that wrote it.

    Raises:
        GraphFault: the exporter fails, or writes no valid graph.
    """
    images = torch.zeros(2, 3, image_px, image_px, dtype=torch.uint8)
    with (
        graph_faults(),
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter(
            "ignore"
        )  # of tracing and of age: what the file computes is compared afterwards
        exporter(network, images, path)
        model = onnx.load(path)
        onnx.checker.check_model(model)
    _forget_sources(model)
    onnx.save(model, path)


def _forget_sources(model: onnx.ModelProto) -> None:
    """Delete the names and lines of source files that exporters leave in a graph."""
    del model.metadata_props[:]
    graph = model.graph
    values = *graph.input, *graph.output, *graph.initializer, *graph.value_info
    functions = [item for function in model.functions for item in (function, *function.node)]
    for item in (graph, *graph.node, *values, *functions):
        del item.metadata_props[:]
        item.doc_string = ""


def describe(path: Path, facts: Mapping[str, Any]) -> None:
    """Put facts into a file's metadata, each as JSON."""
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}
    )
    onnx.save(model, path)


class Graph:
    """An ONNX file as ONNX Runtime computes it, on as many threads of the CPU as torch takes."""

    def __init__(self, path: Path) -> None:
        """Raises: GraphFault: ONNX Runtime does not take it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with graph_faults():
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def outputs(self, images: Images) -> Outputs:
        """uint8 [B, 3, P, P] -> its outputs by name, [B, ...].

        Raises:
            GraphFault: it does not take a batch of this size, say.
        """
        with graph_faults():
            found = self._session.run(None, {INPUT: np.ascontiguousarray(images)})
        return dict(zip(self._names, found, strict=True))
