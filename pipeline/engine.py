"""One pass over the data: learning, or looking."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import optim
from pipeline.checkpoint import TrainState
from pipeline.common import seeding
from pipeline.common.errors import DataError
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import is_sharded, without_exchange
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import running_statistics
from pipeline.mixing import mix
from pipeline.models.precision import Precision, autocast
from pipeline.phases import Rates


@dataclass(frozen=True)
class Learning:
    """How a step learns, the same for all steps."""

    seed: int
    label_smoothing: float
    mix: tuple[MixConfig, ...]
    clip_norm: float | None
    images_per_pass: int
    """images that a rank computes at once; gradients of a step's passes are accumulated"""
    precision: Precision
    ranks: Ranks


def learn(
    state: TrainState,
    parallel: nn.Module,
    batch: Batch,
    images: int,
    rates: Rates,
    how: Learning,
    inspect: Callable[[], None] | None = None,
) -> Tensor:
    """Take one optimizer step; return this rank's sums: float64 [3], loss, correct, and the gradient's norm.

    The loss is the mean cross-entropy over the whole batch, whatever the shares of ranks and passes in it.
    The norm (over all ranks and parameters, before clipping) is given on the first rank, and 0 on others.

    Args:
        parallel: `state.model`, wrapped to average gradients over ranks.
        batch: this rank's share.
        images: size of the batch over all ranks.
        inspect: called while the parameters have the step's gradients, before clipping.
    """
    # Dropout and stochastic depth draw from a stream named by the step: nothing to save or restore.
    torch.manual_seed(seeding.seed_of("step", how.seed, state.step, how.ranks.rank))
    draws = seeding.generator("mix", how.seed, state.step, how.ranks.rank)
    optim.set_rates(state.optimizer, *rates)
    batch = batch.to(how.ranks.device)
    sums = torch.zeros(3, dtype=torch.float64, device=how.ranks.device)
    passes = batch.split(passes_of(images, how.images_per_pass, how.ranks.world))
    for number, part in enumerate(passes, start=1):
        how.ranks.come()  # to the exchange of gradients
        with without_exchange(parallel, while_=number < len(passes)):
            sums[:2] += _backward(state, parallel, part, images, draws, how)
    state.scaler.unscale_(state.optimizer)
    if inspect is not None:
        inspect()
    norm = optim.clip(state.optimizer, how.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    how.ranks.average(running_statistics(state.model))
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    sums[2] = norm if how.ranks.first else 0.0
    return sums


def passes_of(images: int, images_per_pass: int, world: int) -> int:
    """Into how many passes every rank cuts its share of a batch: the same on all, and none of them empty."""
    largest_share, smallest_share = -(-images // world), images // world
    return max(1, min(-(-largest_share // images_per_pass), smallest_share))


def _backward(
    state: TrainState,
    parallel: nn.Module,
    batch: Batch,
    images: int,
    draws: np.random.Generator,
    how: Learning,
) -> Tensor:
    """Add the gradients of one pass; return float64 [2]: sums of losses (a mean over heads) and correct images."""
    with autocast(how.ranks.device, how.precision):
        mixed = mix(batch, how.mix, draws, state.model)
        logits = parallel(mixed.image).float()
    loss = mixed.loss(logits, how.label_smoothing)
    # DistributedDataParallel divides by the number of ranks; the batch is divided by its images.
    state.scaler.scale(loss * how.ranks.world / images).backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss.detach().double() / len(logits), mixed.correct(logits.detach()).double()])


@dataclass(frozen=True)
class Looked:
    """What a pass over a split gives. rows: int64 [n], rising; logits: float32 [n, C]; features: [n, D].

    Features are float32, and of width 0 where none were asked for.
    """

    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def scores(self, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
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
) -> Looked:
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
    shares = [share for share in ranks.gather(own) if share is not None]
    row = np.concatenate([share[0] for share in shares])
    order = np.argsort(row, kind="stable")
    if not np.array_equal(row[order], np.sort(wanted)):
        raise DataError(
            f"{len(wanted)} images were to be predicted and {len(np.unique(row))} different ones were; report this"
        )
    return Looked(row[order], *(np.concatenate([share[part] for share in shares])[order] for part in (1, 2)))
