"""One pass over rows of the sample table: every row predicted exactly once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common.errors import DataError
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import is_sharded
from pipeline.distributed.process_group import Ranks
from pipeline.models.precision import Precision, autocast


@dataclass(frozen=True)
class Predictions:
    """What a pass over a split gives. rows: int64 [n], rising; logits: float32 [n, C]; features: [n, D].

    Features are float32, and of width 0 where none were asked for.
    """

    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def top1_and_loss(self, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Top-1 (0..1) and mean cross-entropy (nats); labels: int64, of the whole table."""
        logits, label = torch.from_numpy(self.logits), torch.from_numpy(labels[self.rows])
        top1 = (logits.argmax(1) == label).double().mean()
        return float(top1), float(F.cross_entropy(logits.double(), label))


@torch.inference_mode()
def look(
    model: nn.Module,
    batches: Iterable[Batch],
    wanted: npt.NDArray[np.int64],
    precision: Precision,
    ranks: Ranks,
    seen: Sequence[Tensor] | None = None,
) -> Predictions:
    """Predict every wanted row exactly once, whatever the number of ranks; the same answer on all of them.

    Args:
        batches: this rank's share of the rows.
        wanted: int64 [n], rows of the table over all ranks.
        seen: a list that `features.penultimate` fills while the model runs, a float32 [B, D] a batch.

    Raises:
        DataError: a row was predicted twice, or not at all.
    """
    model.eval()
    rows, logits = [], []
    for batch in batches:
        image = batch.to(ranks.device).image
        if not len(batch.row):  # another rank's turn
            if not is_sharded(model):
                continue
            image = image.new_zeros((1, *image.shape[1:]))  # all ranks gather shards, or none
        with autocast(ranks.device, precision):
            logits.append(model(image)[: len(batch.row)].float().cpu())
        rows.append(batch.row)
    inner = seen if seen is not None else [torch.empty(len(row), 0) for row in rows]
    own = tuple(torch.cat(list(parts)).numpy() for parts in (rows, logits, inner)) if rows else None
    shares = [share for share in ranks.all_gather(own) if share is not None]
    row = np.concatenate([share[0] for share in shares])
    order = np.argsort(row, kind="stable")
    if not np.array_equal(row[order], np.sort(wanted)):
        raise DataError(
            f"{len(wanted)} images were to be predicted and {len(np.unique(row))} different ones were; report this"
        )
    return Predictions(
        row[order], *(np.concatenate([share[part] for share in shares])[order] for part in (1, 2))
    )


def _mean(looks: list[Predictions]) -> Predictions:
    """The outputs over several views: logarithm of the mean probability, mean of the features."""
    log_probability = [log_softmax(look.logits.astype(np.float64), axis=1) for look in looks]
    mean = logsumexp(log_probability, axis=0) - np.log(len(looks))
    features_mean = np.mean([look.features for look in looks], axis=0)
    return Predictions(looks[0].rows, mean.astype(np.float32), features_mean.astype(np.float32))
