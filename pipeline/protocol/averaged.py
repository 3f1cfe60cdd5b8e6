"""Whether the weights of a soup are the mean of the runs that it names."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import CheckpointError
from pipeline.protocol.claims import Claim
from pipeline.runs import checkpoints
from pipeline.runs.directory import Checkpoint, RunDirectory
from pipeline.training import weight_soup

ABOUT = "mean of the weights"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""of a batch norm: where means or variances differ between the runs, a soup takes new ones"""


def check(run: RunDirectory, about: Mapping[str, Any]) -> Claim:
    """Compare best.pt with the mean of the checkpoints that it was made of, where these are here.

    Args:
        about: environment.json of a soup.
    """
    made_of = about["weights"]["soup"]
    parts, which = made_of["of"], made_of.get("checkpoint", "best")
    paths = [_checkpoint(run, Path(part["run"]), which) for part in parts]
    if absent := [part["run"] for part, path in zip(parts, paths, strict=True) if path is None]:
        return Claim.unchecked(ABOUT, f"{', '.join(absent)}: not here")
    found = [path for path in paths if path is not None]
    others = [
        f"{path}: is not the file that the mean was taken of"
        for path, part in zip(found, parts, strict=True)
        if files.digest_of_file(path) != part["checkpoint_sha256"]
    ]
    if others:
        return Claim.of(ABOUT, others, "")
    try:
        contents = [checkpoints.read(path) for path in (*found, run.checkpoint("best"))]
    except CheckpointError as error:
        return Claim(ABOUT, "fails", [str(error)])
    *weights, soup = (content["ema"] or content["model"] for content in contents)
    return Claim.of(
        ABOUT, list(_faults(weights, soup)), f"best.pt is the mean of {len(found)} runs, bit for bit"
    )


def _checkpoint(run: RunDirectory, named: Path, which: Checkpoint) -> Path | None:
    """A checkpoint of a run that lies where it is named, or beside the soup."""
    places = (RunDirectory(path).checkpoint(which) for path in (named, run.path.parent / named.name))
    return next((path for path in places if path.is_file()), None)


def _faults(weights: Sequence[Mapping[str, Tensor]], soup: Mapping[str, Tensor]) -> Iterator[str]:
    mean = weight_soup.average(weights)
    if mean.keys() != soup.keys():
        yield "best.pt: has other tensors than the runs"
        return
    moved = {
        name.rpartition(".")[0]
        for name, tensor in weights[0].items()
        if name.endswith(STATISTICS) and any(not torch.equal(tensor, other[name]) for other in weights[1:])
    }
    for name, tensor in mean.items():
        module, _, kind = name.rpartition(".")
        renewed = kind in STATISTICS and module in moved
        if not renewed and not torch.equal(tensor, soup[name]):
            yield f"best.pt: {name} is not the mean of the runs"
