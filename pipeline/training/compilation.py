"""torch.compile of the training step: one graph of fixed shapes for each size of a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.models.option_errors import quoted

COMPILERS = ("torch._dynamo", "torch._inductor", "triton")
# Graphs of one function before torch computes without one; its own 8 are for shapes that come by accident.
MOST_GRAPHS = 64
GRAPHS_OF_AN_IMAGE_SIZE = 8  # up to 4 sizes of a pass, with frozen stages and without


def compiled(model: nn.Module, config: Config) -> nn.Module:
    """A model that torch compiles where it is called, for each shape anew; it shares the weights.

    Batches come in two sizes that differ by one image: a graph for any size would be slower for both.
    """
    graphs = GRAPHS_OF_AN_IMAGE_SIZE * (1 + len(config.data.progressive))
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, graphs)
    torch._inductor.config.deterministic = config.train.deterministic
    mode = "reduce-overhead" if config.train.cuda_graphs else None
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


class Compilation:
    """What the steps of a run have been compiled for; nothing, where `train.compile` is off."""

    def __init__(self, config: Config) -> None:
        self.config, self.enabled = config, config.train.compile
        self._sizes: set[tuple[int, int]] = set()

    def of(self, model: nn.Module) -> nn.Module:
        """The model, compiled if it is to be; its sizes are all new."""
        self._sizes.clear()
        return compiled(model, self.config) if self.enabled else model

    def is_due(self, batch: Batch, global_batch_size: int) -> bool:
        """Whether a batch is the first of its size, so that its step compiles: on each rank alike."""
        size = batch.image.shape[2], global_batch_size
        if not self.enabled or size in self._sizes:
            return False
        self._sizes.add(size)
        return True

    @contextmanager
    def errors(self) -> Iterator[None]:
        """As `compile_errors`, where anything is compiled."""
        if not self.enabled:
            yield
            return
        with compile_errors():
            yield


def check_compiler(config: Config, device: torch.device) -> None:
    """Compile a function of one line; the model itself is compiled for the sizes of its own batches.

    Raises:
        ConfigError: torch.compile fails here, or there is nothing that CUDA graphs could be replayed on.
    """
    if config.train.cuda_graphs and device.type != "cuda":
        raise ConfigError(
            "train.cuda_graphs needs a GPU, and this run is on the CPU; set train.cuda_graphs=false"
        )
    with compile_errors():
        torch.compile(_double)(torch.ones(2, device=device))


def _double(tensor: Tensor) -> Tensor:
    return tensor * 2


@contextmanager
def compile_errors() -> Iterator[None]:
    """Raise a `ConfigError` where torch.compile, or the compiler that it calls, fails within the block."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILERS) or hardware.is_out_of_memory(error):
            raise
        raise ConfigError(
            f"train.compile: torch.compile fails here ({quoted(error)}); install a C++ compiler (g++) if that is what "
            "is missing, or set train.compile=false"
        ) from error
