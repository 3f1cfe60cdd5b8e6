"""A classifier that only predicts, on a CPU: each convolution with its sum and its activation in one operation.

A network by single operations writes the output of a convolution to memory, and reads and writes it again for the
activation and for the sum of a residual block. oneDNN does both while the values are in registers ("post-ops"). Torch
has these operations for its compiler (`torch._inductor.fx_passes.mkldnn_fusion`); here nothing is compiled. They are
private to torch: where they are missing, or change the logits, the classifier stays as it is.
"""

import operator
from collections.abc import Sequence
from types import NoneType
from typing import Any

import numpy as np
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.common import seeding
from pipeline.models.classifier import Classifier, evaluating
from pipeline.models.precision import DTYPES, Precision, autocast

TOLERANCE = 1e-5  # of the largest logit
AT_ONCE = 4  # images of a call: their activations stay in a core's cache, and calls cost little (docs/benchmarks.md)
ACTIVATIONS: dict[type[nn.Module | None], tuple[str | None, list[float]]] = {
    NoneType: (None, []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}  # as oneDNN names them, and their parameters
AFTER_A_SUM = (nn.ReLU,)
SUMS = (operator.add, operator.iadd, torch.add)
OPERATIONS = torch.ops.mkldnn
CPU = torch.device("cpu")


class FusedClassifier(nn.Module):
    """A classifier's answers, uint8 [B, 3, H, W] -> logits float32 [B, C] and features float32 [B, D], of a CPU.

    Features are the inputs of the last layer. Several threads may call it at once. It has no gradients.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.graph(images.float())
        return logits.float(), features.float().flatten(1)


class FusedConvolution(nn.Module):
    """A convolution, optionally what is added to its output, and an activation, as one operation of oneDNN."""

    def __init__(
        self, convolution: nn.Conv2d, shape: Sequence[int], dtype: torch.dtype, activation: nn.Module | None
    ) -> None:
        """shape: of the input, [B, C, H, W]; the weights are laid out for it."""
        super().__init__()
        weight, padding = _with_equal_padding(convolution, shape)
        geometry = padding, convolution.stride, convolution.dilation, convolution.groups
        packed = OPERATIONS._reorder_convolution_weight(
            weight.detach().to(dtype), *geometry, [AT_ONCE, *shape[1:]]
        )
        bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        self.dtype, self.with_weights = dtype, (packed, bias, *geometry)
        self.activation = ACTIVATIONS[type(activation)]

    def forward(self, images: Tensor, summand: Tensor | None = None) -> Tensor:
        """summand: added before the activation."""
        name, parameters = self.activation
        images = images.to(self.dtype)
        output: Tensor
        if summand is None:
            fused = OPERATIONS._convolution_pointwise.default
            output = fused(images, *self.with_weights, name or "none", parameters, None)
        else:
            fused = OPERATIONS._convolution_pointwise.binary
            output = fused(images, summand, *self.with_weights, "add", None, name, parameters, None)
        return output


def fuse_convolutions(model: Classifier, image_px: int, precision: Precision) -> FusedClassifier | None:
    """The fused form of a classifier in evaluation mode, on the CPU; None where it has none that answers as it does.

    Whether it does is seen on two drawn images: in float32 their logits stay within `TOLERANCE`; in bfloat16 their error
    is at most twice that of the classifier itself under autocast.

    Args:
        model: without batch norms after convolutions (`fold_batchnorms`), in the memory format in which it is to run.
        image_px: the size of all images to come.
        precision: of the convolutions; fp16 has no fused form.
    """
    names = "_convolution_pointwise", "_reorder_convolution_weight"
    if precision == "fp16" or not all(hasattr(OPERATIONS, name) for name in names):
        return None
    drawn = seeding.generator("fusing").integers(0, 256, (2, image_px, image_px, 3), np.uint8)
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    with evaluating(model):
        graph = _traced(model)
        if graph is None:
            return None
        expected = _Shapes(graph).run(images)[0]
        _normalise_by_rows(graph, image_px)
        _drop_idle_modules(graph)
        _replace_convolutions(graph, DTYPES[precision], set(model.head.modules()))
        fused = FusedClassifier(graph).eval()
        with autocast(CPU, precision):
            rounded = expected if precision == "fp32" else model(images)
            try:
                got, _ = fused(images)
            except RuntimeError:  # an operation does not take what it is given
                return None
    allowed = TOLERANCE * expected.abs().max() if precision == "fp32" else 2 * _distance(rounded, expected)
    return fused if _distance(got, expected) <= allowed else None


def _distance(some: Tensor, others: Tensor) -> Tensor:
    return (some.float() - others.float()).abs().max()


class _Tracer(fx.Tracer):
    """Does not trace into layers, also those of timm and of `compute_in_float32`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: Classifier) -> fx.GraphModule | None:
    """What a classifier does, layer by layer: images -> logits, input of the last layer. None: it cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a network's own code raises where it meets no numbers
        return None
    head = model.head[0] if isinstance(model.head, nn.ModuleList) else model.head
    names = {name for name, module in model.named_modules() if module is head}
    ends = [node for node in graph.nodes if node.op == "call_module" and node.target in names]
    if len(ends) != 1:
        return None
    (output,) = [node for node in graph.nodes if node.op == "output"]
    output.args = ((output.args[0], ends[0].args[0]),)
    return fx.GraphModule(model, graph)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each value at its node."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def _normalise_by_rows(graph: fx.GraphModule, image_px: int) -> None:
    """Repeat mean and standard deviation along a row, which torch takes five times as fast as three values in turn."""
    for name in ("mean", "std"):
        a_row = getattr(graph, name).expand(-1, -1, -1, image_px)
        setattr(graph, name, a_row.contiguous(memory_format=torch.channels_last))


def _drop_idle_modules(graph: fx.GraphModule) -> None:
    """Remove what does nothing in evaluation, so that a convolution's activation follows it."""
    for node in graph.graph.nodes:
        if isinstance(_module(graph, node), nn.Identity | nn.Dropout | nn.Dropout2d):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _replace_convolutions(graph: fx.GraphModule, dtype: torch.dtype, kept: set[nn.Module]) -> None:
    """Put a `FusedConvolution` in the place of each convolution, except those of `kept`, with what follows it."""
    for number, node in enumerate(list(graph.graph.nodes)):
        convolution = _module(graph, node)
        if not isinstance(convolution, nn.Conv2d) or convolution in kept or not _is_plain(convolution):
            continue
        shape, done = node.args[0].meta["shape"], [node]
        summand = _summand(node)
        if summand is not None:
            done += node.users
        users = list(done[-1].users)
        follower = _module(graph, users[0]) if len(users) == 1 else None
        fusable = ACTIVATIONS if summand is None else AFTER_A_SUM
        activation = follower if type(follower) in fusable else None
        if activation is not None:
            done += users
        name = f"fused_{number}"
        graph.add_submodule(name, FusedConvolution(convolution, shape, dtype, activation))
        with graph.graph.inserting_before(node):
            added = () if summand is None else (summand,)
            new = graph.graph.call_module(name, (node.args[0], *added))
        new.meta = node.meta
        done[-1].replace_all_uses_with(new)
        for old in reversed(done):
            graph.graph.erase_node(old)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it only convolves, with zeros around: a subclass may change its weights on the way."""
    if type(convolution) is Conv2dSame:
        return convolution.dilation == (1, 1)
    is_padded = isinstance(convolution.padding, str) or convolution.padding_mode != "zeros"
    return type(convolution) is nn.Conv2d and not is_padded


def _summand(node: fx.Node) -> fx.Node | None:
    """What is added to a convolution's output, which nothing else uses, if it is there before and of the same shape."""
    if len(node.users) != 1:
        return None
    (total,) = node.users
    if total.op != "call_function" or total.target not in SUMS or len(total.all_input_nodes) != 2:
        return None
    (other,) = (one for one in total.all_input_nodes if one is not node)
    is_same_shape = other.meta.get("shape") == node.meta["shape"] and not total.kwargs
    return other if is_same_shape and other < node else None


def _with_equal_padding(convolution: nn.Conv2d, shape: Sequence[int]) -> tuple[Tensor, list[int]]:
    """A convolution's weight, and its padding, the same before and behind, by height and by width.

    TensorFlow pads some images by one more behind. A row of zeros before the kernel has the same effect.
    """
    if not isinstance(convolution, Conv2dSame):
        return convolution.weight, [int(side) for side in convolution.padding]
    sides = zip(shape[2:], convolution.kernel_size, convolution.stride, strict=True)
    total = [get_same_padding(length, kernel, stride, 1) for length, kernel, stride in sides]
    rows, columns = (side % 2 for side in total)
    return F.pad(convolution.weight, (columns, 0, rows, 0)), [(side + 1) // 2 for side in total]
