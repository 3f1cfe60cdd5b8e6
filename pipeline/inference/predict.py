"""One pass over rows of the sample table: every row predicted exactly once, on any number of ranks."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common import console, hardware
from pipeline.common.errors import DataError
from pipeline.data.image_store import map_in_order
from pipeline.data.loader import Batch, Loader
from pipeline.data.sampling import distribute_batches, in_order
from pipeline.distributed.data_parallel import is_sharded
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier
from pipeline.models.fusing import AT_ONCE, FusedClassifier
from pipeline.models.option_errors import memory_errors
from pipeline.models.precision import Precision, autocast

Rows = npt.NDArray[np.int64]
Network = Classifier | FusedClassifier
Part = tuple[Tensor, Tensor, Tensor]
"""rows, logits and features"""


@dataclass(frozen=True)
class Predictions:
    """Outputs for n rows. rows: int64 [n], rising; logits: float32 [n, C]; features: float32 [n, D].

    Features are the inputs of the model's last layer; D is 0 where none were asked for.
    """

    rows: Rows
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def top1_and_loss(self, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Top-1 (0..1) and mean cross-entropy (nats); labels: int64, of the whole table."""
        logits, label = torch.from_numpy(self.logits), torch.from_numpy(labels[self.rows])
        top1 = (logits.argmax(1) == label).double().mean()
        return float(top1), float(F.cross_entropy(logits.double(), label))


def predict_rows(
    model: Network,
    loader: Loader,
    rows: Rows,
    precision: Precision,
    ranks: Ranks,
    *,
    batch_size: int,
    features: bool = False,
    progress: str | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Predictions:
    """Predict every row exactly once; all ranks return the same bits, whatever their number.

    Args:
        rows: int64 [n], of the sample table, rising.
        batch_size: images of a batch; whole batches are distributed over the ranks.
        features: whether to keep the input of the last layer.
        progress: the label of a progress bar; None: no bar.
        before_batch: called before each batch, equally often on all ranks.

    Raises:
        ConfigError: memory does not suffice for a batch.
        DataError: there is no row, or one was predicted twice, or not at all.
    """
    batches, images_per_round = distribute_batches(in_order(rows, batch_size), ranks)
    served: Iterable[Batch] = loader.batches(0, batches)
    with memory_errors(
        f"eval.batch_size: memory does not suffice for a batch of {batch_size} images",
        f"lower eval.batch_size ({batch_size} now), or set train.device=cpu",
    ):
        if progress is None:
            return predict_batches(model, served, rows, precision, ranks, features, before_batch)
        with console.bar(progress, len(rows)) as bar:
            counted = bar.count(served, images_per_round)
            return predict_batches(model, counted, rows, precision, ranks, features, before_batch)


@torch.inference_mode()
def predict_batches(
    model: Network,
    batches: Iterable[Batch],
    rows: Rows,
    precision: Precision,
    ranks: Ranks,
    features: bool = False,
    before_batch: Callable[[], None] | None = None,
) -> Predictions:
    """As `predict_rows`, from this rank's share of the batches; a batch is empty where only other ranks have one.

    Nothing waits for the device before the last batch: outputs are copied while later ones are computed.
    """
    model.eval()
    announced = batches if before_batch is None else _announced(batches, before_batch)
    if isinstance(model, FusedClassifier):
        parts = list(_parts_in_threads(model, announced, precision, features))
    else:
        parts = _parts(model, announced, precision, ranks, features)
    return _gather(parts, rows, ranks)


def _announced(batches: Iterable[Batch], before_batch: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        before_batch()
        yield batch


def _parts(
    model: Classifier, batches: Iterable[Batch], precision: Precision, ranks: Ranks, features: bool
) -> list[Part]:
    parts: list[Part] = []
    hook: AbstractContextManager[list[Tensor]] = last_layer_inputs(model) if features else nullcontext([])
    with hook as inputs, hardware.repeatable_convolutions():
        for batch in batches:
            images = batch.to(ranks.device).image
            if not len(batch.row):
                if not is_sharded(model):
                    continue
                images = images.new_zeros((1, *images.shape[1:]))  # all ranks gather shards, or none
            with autocast(ranks.device, precision):
                logits = model(images)[: len(batch.row)].float()
            kept = inputs.pop()[: len(batch.row)] if features else torch.empty(len(batch.row), 0)
            # From a GPU these are copies into pinned memory, which nobody waits for.
            copies = logits.to("cpu", non_blocking=True), kept.to("cpu", non_blocking=True)
            parts.append((batch.row, *copies))
    if ranks.device.type == "cuda":
        torch.cuda.current_stream(ranks.device).synchronize()
    return parts


def _parts_in_threads(
    model: FusedClassifier, batches: Iterable[Batch], precision: Precision, features: bool
) -> Iterator[Part]:
    """A few images at a time, each in one thread, as many at once as torch may use threads.

    So no core waits for another at the end of each layer, activations stay in a core's cache, pictures are decoded
    meanwhile, and the bits do not depend on the number of threads.
    """
    threads = torch.get_num_threads()

    @torch.inference_mode()
    def answer(few: Batch) -> Part:
        with autocast(few.image.device, precision):
            logits, inputs = model(few.image)
        return few.row, logits, inputs if features else inputs[:, :0]

    few = (part for batch in batches if len(batch.row) for part in batch.split(-(-len(batch.row) // AT_ONCE)))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from map_in_order(pool, answer, few, ahead=2 * threads)
    finally:
        torch.set_num_threads(threads)


def average_views(views: list[Predictions]) -> Predictions:
    """The outputs over several views: logarithm of the mean probability, mean of the features."""
    if len(views) == 1:
        return views[0]
    log_probability = [log_softmax(view.logits.astype(np.float64), axis=1) for view in views]
    mean = logsumexp(log_probability, axis=0) - np.log(len(views))
    mean_features = np.mean([view.features for view in views], axis=0)
    return Predictions(views[0].rows, mean.astype(np.float32), mean_features.astype(np.float32))


def _gather(parts: list[Part], rows: Rows, ranks: Ranks) -> Predictions:
    """All ranks' outputs, in the order of the rows."""
    share = tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True)) if parts else None
    shares = [share for share in ranks.all_gather(share) if share is not None]
    if not shares:
        raise DataError(
            "prediction: there is no image to predict; hold some out for this split (data.val_fraction, "
            "data.test_fraction), or choose another split"
        )
    joined = shares[0] if len(shares) == 1 else map(np.concatenate, zip(*shares, strict=True))
    predicted, logits, features = joined
    order = np.argsort(predicted, kind="stable")
    if not np.array_equal(predicted[order], np.sort(rows)):
        raise DataError(
            f"{len(rows)} images were to be predicted, but {len(np.unique(predicted))} different ones were; report this"
        )
    if np.array_equal(order, np.arange(len(order))):  # as of one rank: a copy of all logits is saved
        return Predictions(predicted, logits, features)
    return Predictions(predicted[order], logits[order], features[order])


@contextmanager
def last_layer_inputs(model: Classifier) -> Iterator[list[Tensor]]:
    """Collect the input of the model's last layer in each forward pass: float32 [B, D], on its device.

    A network with two classifiers side by side (distillation) gives the input of the first.
    """
    inputs: list[Tensor] = []
    head = model.head[0] if isinstance(model.head, nn.ModuleList) else model.head

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].detach().float().flatten(1))

    handle = head.register_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        handle.remove()
