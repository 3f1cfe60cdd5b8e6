"""RUN/export/hub: weights and configuration as timm reads them, `timm.create_model("local-dir:hub", pretrained=True)`.

The layout is that of the Hugging Face Hub: model.safetensors, config.json, README.md (the model card).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from pipeline.common import console
from pipeline.common.errors import ExportError
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.export import model_card
from pipeline.export.onnx_file import Images
from pipeline.export.proof import TOLERANCE
from pipeline.inference.load_model import LoadedModel, load_eval_weights
from pipeline.inference.predict import predict_batches
from pipeline.models import resnet
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier

OF_OTHER_WEIGHTS = ("tag", "origin_url", "notes", "description")
"""keys that describe timm's own weights, not these"""


def write(
    folder: Path,
    config: Config,
    loaded: LoadedModel,
    content: dict[str, Any],
    facts: dict[str, Any],
    batches: Sequence[Images],
) -> float | None:
    """Write the folder, and compare what timm makes of it with the trained network.

    Args:
        content: of the checkpoint; facts: the metadata of the export.
        batches: uint8 [B, 3, P, P] each, to compare on.

    Returns:
        The largest difference of logits, relative to the largest logit; None where timm has no such network.

    Raises:
        ExportError: timm's network answers differently.
    """
    model, _ = build_model(without_weights(config.model), len(facts["classes"]))
    load_eval_weights(model.eval(), content, loaded.path)
    if reason := _why_not(config, model):
        console.say(f"export  no hub folder, as {reason}")
        return None
    described = {
        "label_names": facts["classes"],
        "pretrained_cfg": dict.fromkeys(OF_OTHER_WEIGHTS) | {"license": facts["weights"]["licence"]},
    }
    pictures = {
        "input_size": (3, config.data.image_px, config.data.image_px),
        "crop_pct": config.data.image_px / config.data.resize_px,
        "interpolation": "bicubic",
        "mean": _of(model.mean),
        "std": _of(model.std),
    }
    save_for_hf(model.backbone, str(folder), described, safe_serialization=True, data_config=pictures)
    mode = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)  # safetensors lets nobody else read it
    (folder / "README.md").write_text(model_card.text(config, facts), encoding="utf-8")
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    difference = max(_difference(model, read, images) for images in batches)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{config.run_dir}: the network that timm loads from the hub folder answers differently: logits differ by "
            f"{difference:.2g} of the largest, where {TOLERANCE:g} is allowed; nothing was written; please report this"
        )
    return difference


def _why_not(config: Config, model: Classifier) -> str | None:
    """Why timm cannot make the network from a name, options and weights."""
    if config.model.name.startswith(resnet.PREFIX):
        return f"timm has no {config.model.name}"
    if config.model.mid_level_head or config.model.pool == "gem":
        return "timm has no such head (model.mid_level_head, model.pool=gem)"
    return "the network takes one grey channel" if model.grey else None


def _of(buffer: Tensor) -> tuple[float, ...]:
    """Mean or deviation of each channel, 0..1."""
    return tuple(round(value, 6) for value in (buffer / 255).flatten().tolist())


def _difference(model: Classifier, read: torch.nn.Module, images: Images) -> float:
    """The largest difference of logits, relative to the largest one."""
    rows = torch.arange(len(images))
    batch = Batch(torch.from_numpy(images), rows, rows)
    wanted = predict_batches(model, [batch], rows.numpy(), "fp32", Ranks.single(torch.device("cpu"))).logits
    settings: Any = read.pretrained_cfg
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        found = read((torch.from_numpy(images).float() / 255 - mean) / std).numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
