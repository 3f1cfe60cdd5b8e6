"""What the model knows of a picture before it names a class: the input of its last layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.common import console, files
from pipeline.config.schema import Config
from pipeline.data import loader, sampling
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier
from pipeline.models.precision import Precision, autocast

Features = npt.NDArray[np.float32]


@contextmanager
def penultimate(model: Classifier) -> Iterator[list[Tensor]]:
    """Collect the input of the model's last layer in each forward pass: float32 [B, D], on the CPU.

    Of a network with two classifiers side by side (distillation) it is the input of the first.
    """
    seen: list[Tensor] = []
    head = model.head[0] if isinstance(model.head, nn.ModuleList) else model.head

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().float().flatten(1).cpu())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@torch.inference_mode()
def extract_features(
    config: Config,
    data: Prepared,
    model: Classifier,
    rows: npt.NDArray[np.int64],
    precision: Precision,
    ranks: Ranks,
) -> Features:
    """The pooled features of images in their centre crop, in the order of `rows`: float32 [n, D].

    Args:
        rows: int64 [n], of the sample table, rising.
    """
    model.eval()
    labels = data.samples["label"].to_numpy("int64", copy=True)
    images = loader.Images(data.store, labels, CentreCrop(config.data))
    server = loader.Loader(images, loader.worker_count(config.data.workers, ranks), ranks.device)
    batches, images_a_round = sampling.distribute_batches(
        sampling.in_order(rows, config.eval.batch_size), ranks
    )
    own_rows: list[Tensor] = []
    with console.bar("features", len(rows)) as bar, penultimate(model) as seen:
        served = bar.count(server.batches(0, batches), images_a_round)
        for batch in served:
            if not len(batch.row):  # another rank's turn
                continue
            with autocast(ranks.device, precision):
                model(batch.to(ranks.device).image)
            own_rows.append(batch.row)
    own = (torch.cat(own_rows).numpy(), torch.cat(seen).numpy()) if seen else None
    shares = [share for share in ranks.all_gather(own) if share is not None]
    order = np.argsort(np.concatenate([share[0] for share in shares]), kind="stable")
    return np.asarray(np.concatenate([share[1] for share in shares])[order], np.float32)


def cached(
    config: Config,
    data: Prepared,
    model: Classifier,
    split: str,
    precision: Precision,
    ranks: Ranks,
    checkpoint: str,
) -> Features:
    """The features of a whole split, float32 [n, D], computed once and kept in the run directory.

    Args:
        split: train, val or test; the rows are `data.rows(split)`.
        checkpoint: digest of the file that the model's weights are from; another one computes anew.
    """
    path = cache_path(config, split)
    ids = data.samples["id"].to_numpy()[data.rows(split)]
    found = read_cache(path, checkpoint, ids)
    if all(ranks.all_gather(found is not None)) and found is not None:
        return found
    made = extract_features(config, data, model, np.array(data.rows(split), np.int64), precision, ranks)
    if ranks.is_main:
        with files.replacing(path) as part, part.open("wb") as stream:
            np.savez(stream, id=ids, features=made, checkpoint=np.array(checkpoint))
    ranks.barrier()
    return made


def cache_path(config: Config, split: str) -> Path:
    """Where the features of a split are kept."""
    return config.run_dir / "eval" / "features" / f"{split}.npz"


def read_cache(path: Path, checkpoint: str, ids: npt.NDArray[np.int64]) -> Features | None:
    """The stored features, float32 [n, D]; None when they are of another checkpoint or of other images."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        if str(stored["checkpoint"]) != checkpoint or not np.array_equal(stored["id"], ids):
            return None
        return np.asarray(stored["features"], np.float32)
