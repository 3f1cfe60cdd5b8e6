"""Does the model look at the object? Its answers to the object's box alone, and to the background alone.

What is hidden has the mean colour that the network subtracts. Many right answers to the background alone are a shortcut
(Xiao et al. 2021, "Noise or Signal", arXiv:2006.09994).
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.common import console, hardware
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import build_loader
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import statistics
from pipeline.explain.annotations import Floats
from pipeline.inference.load_model import LoadedModel
from pipeline.models.option_errors import memory_errors
from pipeline.models.precision import autocast

VIEWS = ("whole picture", "box alone", "background alone")
COLUMNS = ("whole", "box", "background")


def answers(
    config: Config,
    data: Prepared,
    loaded: LoadedModel,
    rows: npt.NDArray[np.int64],
    boxes: Floats,
    ranks: Ranks,
) -> npt.NDArray[np.int64]:
    """The class that the model names for each of `VIEWS` of each picture's centre crop: int64 [n, 3].

    Args:
        rows: int64 [n], of the sample table.
        boxes: float64 [n, 4], x0 y0 x1 y1 in pixels of the crop.

    Raises:
        ConfigError: memory does not suffice.
    """
    size = config.eval.batch_size
    loader = build_loader(data, CentreCrop(config.data), config.data.workers, ranks)
    fill = loaded.model.mean.round().to(torch.uint8)
    found = []
    too_little = memory_errors(
        f"report.sanity_checks: memory does not suffice for {size} images at once", "lower eval.batch_size"
    )
    with (
        too_little,
        torch.inference_mode(),
        autocast(ranks.device, loaded.precision),
        hardware.repeatable_convolutions(),
        console.bar("box alone", len(rows)) as bar,
    ):
        batches = sampling.in_order(rows, size)
        served = bar.count(loader.batches(0, batches), map(len, batches))
        for batch, start in zip(served, range(0, len(rows), size), strict=True):
            images = batch.to(ranks.device).image
            inside = inside_boxes(boxes[start : start + size], images.shape[2]).to(ranks.device)
            views = (images, torch.where(inside, images, fill), torch.where(inside, fill, images))
            found.append(torch.stack([loaded.model(view).argmax(1) for view in views], dim=1).cpu())
    return torch.cat(found).numpy()


def inside_boxes(boxes: Floats, image_px: int) -> Tensor:
    """Which pixels have their centre in a box, x0 y0 x1 y1: float64 [B, 4] -> bool [B, 1, image_px, image_px]."""
    centre = torch.arange(image_px) + 0.5
    x0, y0, x1, y1 = torch.from_numpy(boxes)[:, :, None].unbind(1)
    across, down = (x0 <= centre) & (centre < x1), (y0 <= centre) & (centre < y1)
    return (down[:, :, None] & across[:, None])[:, None]


def accuracies(images: pd.DataFrame) -> pd.DataFrame:
    """The accuracy on each of `VIEWS`, and the paired difference to the whole picture.

    Columns: view, n, correct, top1 with Wilson's 95 % interval top1_low and top1_high; difference (box or background
    minus whole) with the interval of the paired bootstrap, difference_low and difference_high; box_share (mean share of
    the crop in the box).

    Args:
        images: a row a picture: label, box_share, and the class named for each view, columns `COLUMNS`.
    """
    right = (images[list(COLUMNS)].to_numpy() == images[["label"]].to_numpy()).astype(np.float64)
    rows = []
    for view, of_view in zip(VIEWS, right.T, strict=True):
        low, high = statistics.wilson(int(of_view.sum()), len(of_view))
        gain, gain_low, gain_high = statistics.difference(right[:, 0], of_view)
        rows.append(
            {
                "view": view,
                "n": len(of_view),
                "correct": int(of_view.sum()),
                "top1": float(of_view.mean()),
                "top1_low": low,
                "top1_high": high,
                "difference": gain,
                "difference_low": gain_low,
                "difference_high": gain_high,
                "box_share": float(images["box_share"].mean()),
            }
        )
    return pd.DataFrame(rows)
