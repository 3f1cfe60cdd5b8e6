"""Runs of a recipe with several seeds, for their mean, without a training each."""

import shutil
from pathlib import Path

import torch

from pipeline.common import files
from pipeline.config.load import dump_config, load_config
from pipeline.runs import checkpoints, history
from pipeline.runs.directory import RunDirectory


def write_run(trained: Path, root: Path, seed: int, apart: float, *overrides: str) -> Path:
    """A run of another seed with the validation split of seed 0: the trained weights, and so far apart from them."""
    source, run = trained / "runs/tiny", root / f"seed{seed}"
    shutil.copytree(source, run)
    config = load_config(
        source / "config.yaml",
        [f"seed={seed}", "data.split_seed=0", f"run.root={root}", f"run.name={run.name}", *overrides],
    )
    files.write_text(run / "config.yaml", dump_config(config))
    random = torch.Generator().manual_seed(0)
    path, last = run / "checkpoints/best.pt", run / "checkpoints/last.pt"
    trained_with = config.model_dump(mode="json")
    (start,) = history.plain(history.read(RunDirectory(run)))
    other = {"config": trained_with, "history": [start | {"configuration": trained_with}]}
    files.write_json(run / "history.json", other["history"])
    checkpoints.save(last, checkpoints.read(last) | other)
    content = checkpoints.read(path)
    content["model"] = {
        name: tensor + apart * torch.randn(tensor.shape, generator=random) * tensor.abs().mean()
        if name.endswith(("weight", "running_mean"))
        else tensor
        for name, tensor in content["model"].items()
    }
    checkpoints.save(path, content | other)
    return run
