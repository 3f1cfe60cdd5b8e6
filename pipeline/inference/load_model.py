"""A run's checkpoint becomes the model that it holds, ready to predict; what does not fit is refused."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.common import console, files
from pipeline.common.errors import CheckpointError
from pipeline.config.key_effects import effect_of
from pipeline.config.load import differences
from pipeline.config.schema import Config
from pipeline.data import sample_table
from pipeline.distributed.process_group import Ranks
from pipeline.inference.predicting_form import predicting_form
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.fusing import FusedClassifier
from pipeline.models.option_errors import memory_errors
from pipeline.models.precision import Precision, has_units
from pipeline.models.pretrained import load_weights
from pipeline.runs.checkpoints import check_data, read
from pipeline.runs.directory import RunDirectory


@dataclass(frozen=True)
class LoadedModel:
    """A model with where it is from: the checkpoint's path, SHA-256, epoch, step and precision.

    fused: the same model, for answers alone, faster on a CPU; None where it has no such form.
    """

    model: Classifier
    path: Path
    sha256: str
    epoch: int
    step: int
    precision: Precision
    fused: FusedClassifier | None = None

    @property
    def network(self) -> Classifier | FusedClassifier:
        """The fastest form of the model for predicting."""
        return self.fused or self.model


def checkpoint_path(config: Config) -> Path:
    """The checkpoint that `eval.checkpoint` names: best, last, or a path."""
    run, name = RunDirectory(config.run_dir), config.eval.checkpoint
    return run.checkpoint("best" if name == "best" else "last") if name in ("best", "last") else Path(name)


def load_model(
    config: Config, samples: pd.DataFrame, path: Path, ranks: Ranks, *, as_trained: bool = False
) -> LoadedModel:
    """The model of a checkpoint, in evaluation mode; the first rank reads the file.

    Args:
        as_trained: with all its batch norms, and not fused; else they are folded into convolutions, which is faster.

    Raises:
        CheckpointError: it is missing or damaged, or the configuration describes another model or
            other data than it was trained on.
        ConfigError: the network does not take images of the configured size.
    """
    content, digest = _read(path, ranks)
    check_data(content, path, sample_table.class_names(samples), sample_table.digest(samples))
    return _loaded_model(config, content, path, digest, ranks, as_trained)


def load_model_without_data(config: Config, path: Path, ranks: Ranks) -> tuple[LoadedModel, list[str]]:
    """The model of a checkpoint and the names of its classes, where its data are not at hand.

    Raises:
        CheckpointError: it is missing or damaged, or the configuration describes another model.
    """
    content, digest = _read(path, ranks)
    return _loaded_model(config, content, path, digest, ranks), content["classes"]


def _read(path: Path, ranks: Ranks) -> tuple[dict[str, Any], str]:
    """A checkpoint's content and SHA-256, as the first rank has them."""
    return ranks.broadcast(_read_with_digest(path) if ranks.is_main else ({}, ""))


def _read_with_digest(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file, and again if a training replaced it meanwhile, so that content and digest belong together."""
    while True:
        before = _version(path)
        content, digest = read(path), files.digest_of_file(path)
        if _version(path) == before:
            return content, digest


def _version(path: Path) -> tuple[int, int] | None:
    """What differs for another file under the same name; None where there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _loaded_model(
    config: Config, content: dict[str, Any], path: Path, digest: str, ranks: Ranks, as_trained: bool = False
) -> LoadedModel:
    _warn_where_slow(content["precision"], ranks.device)
    with memory_errors(
        f"train.device: the memory of {ranks.device} does not suffice for the model",
        "end what else uses it, or set train.device=cpu",
    ):
        model = _model(config, content, path).eval()
        precision, fused = content["precision"], None
        if as_trained:
            layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
            model = model.to(memory_format=layout).to(ranks.device)
        else:
            model, fused = predicting_form(model, config, precision, ranks.device)
    return LoadedModel(model, path, digest, content["epoch"], content["step"], precision, fused)


@functools.cache  # once a process, however many models it loads
def _warn_where_slow(precision: Precision, device: torch.device) -> None:
    if not has_units(precision, device):
        console.warn(
            f"train.precision: the model predicts in {precision}, in which it was trained; this processor has no units "
            "for it, so this is slow"
        )


def _model(config: Config, content: dict[str, Any], path: Path) -> Classifier:
    """The checkpoint's model; the configuration has to describe the one that was trained."""
    before = content["config"]["model"]
    now = {key: value for key, value in config.model.model_dump(mode="json").items() if key in before}
    before = {key: before[key] for key in now}
    changed = [
        f"model.{key} {a} -> {b}"
        for key, a, b in differences(before, now)
        if effect_of(f"model.{key}").effect == "identity"
    ]
    if changed:
        raise CheckpointError(
            f"{path}: was trained with another model ({', '.join(changed)}); give the configuration it was trained with"
        )
    model, _ = build_model(without_weights(config.model), len(content["classes"]))
    load_eval_weights(model, content, path)
    return model


def load_eval_weights(model: Classifier, content: dict[str, Any], path: Path) -> None:
    """Load all weights that were validated: the average (EMA), if there is one."""
    load_weights(model, content["ema"] or content["model"], content, path)
