"""What only a pass of the true size finds out, found before a training begins.

A forward and a backward pass of noise and a step of each phase's optimizer: a model of another image size, a batch norm
that sees one value, an optimizer that needs second derivatives, options of a phase that begins in three days are one
sentence then. The model is afterwards as it was, bit for bit, and nothing is drawn from a global stream.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from pipeline.common import seeding
from pipeline.common.errors import ConfigError, name_some
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import is_sharded
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier, evaluating
from pipeline.models.option_errors import memory_errors, option_errors, quoted, where_size_matters
from pipeline.models.precision import Precision, autocast
from pipeline.training import trial
from pipeline.training.compilation import check_compiler
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.loss import cross_entropy_sum
from pipeline.training.mixing import MixedBatch, semantic_share
from pipeline.training.optimizer import Optimizer, build_optimizer, carry_momentum, set_rates
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import StepClock
from pipeline.training.state import TrainState
from pipeline.training.step import accumulation_steps

MOST_IMAGES = 2  # of a rank at once: enough for what is taken over a batch
ONE_VALUE = "Expected more than 1 value per channel"  # torch.nn.functional.batch_norm
NOT_DETERMINISTIC = "does not have a deterministic implementation"  # torch.use_deterministic_algorithms
Build = Callable[[nn.Module, PhaseState], Optimizer]


def check_passes(
    config: Config,
    ranks: Ranks,
    state: TrainState,
    precision: Precision,
    images: dict[int, int],
    classes: int,
    build: Build,
) -> None:
    """Try a forward and backward pass of each image size, and a step of each phase's optimizer.

    All ranks call it; in shards, they compute together.

    Args:
        images: of a rank's pass, by the epochs (from 0) that are tried; see `epochs_to_try`.
        build: makes the optimizer of a phase over a model's parameters.

    Raises:
        ConfigError: the model cannot be trained, or an optimizer cannot take a step, with these settings.
    """
    undone = trial.undone(state.model, ranks.device)
    streams = torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else [])
    with training_memory_errors(config), _determinism_errors(config), _untimed(), streams, undone:
        schedule = FreezeSchedule(config, state.model)
        for epoch, count in images.items():
            schedule.apply(epoch)
            state.model.zero_grad(set_to_none=True)
            batch = _noise(_image_px(config, epoch), count, classes).to(ranks.device)
            _learn(config, ranks, state.model, batch, precision, classes)
        _evaluate(config, ranks, state.eval_model, precision, classes)
        _step_optimizers(config, state.model, build)
    if config.train.compile:
        check_compiler(config, ranks.device)


def epochs_to_try(
    config: Config, clock: StepClock, images: int, micro_batch_size: int | None, world_size: int
) -> dict[int, int]:
    """The epochs whose passes differ from one another's, each with the images of its smallest pass, at most 2.

    Passes differ in the size of their images, and in what is frozen.

    Args:
        images: of an epoch.
        micro_batch_size: images that a rank computes at once; None: not known yet.
    """
    thaw, found = config.optim.unfreeze_epoch, dict[tuple[int, bool], tuple[int, int]]()
    for epoch, steps in enumerate(clock.steps):
        count = MOST_IMAGES
        for batch in (images // steps, math.ceil(images / steps)):
            micro = micro_batch_size or batch
            parts = accumulation_steps(batch, micro, world_size)
            count = min(count, max(1, batch // world_size // parts))
        kind = _image_px(config, epoch), thaw is not None and epoch >= thaw
        first, before = found.get(kind, (epoch, count))
        found[kind] = first, min(before, count)
    return dict(found.values())


def _image_px(config: Config, epoch: int) -> int:
    stage = config.data.stage(epoch)
    return stage.image_px if stage else config.data.image_px


def _noise(image_px: int, images: int, classes: int) -> Batch:
    """Pictures as the loader gives them: uint8, channels last in memory."""
    pixels = seeding.generator("preflight", image_px).integers(
        0, 256, (images, image_px, image_px, 3), "uint8"
    )
    label = torch.arange(images) % classes
    return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), label, label)


def _learn(
    config: Config, ranks: Ranks, model: Classifier, batch: Batch, precision: Precision, classes: int
) -> None:
    """One forward and backward pass in training mode; the parameters have gradients afterwards."""
    images, side_px = len(batch.label), batch.image.shape[2]
    where, advice = where_size_matters(config, model.backbone, side_px)
    try:
        with option_errors(where, advice), autocast(ranks.device, precision):
            logits = model(batch.image).float()
    except ConfigError as error:
        if ONE_VALUE not in str(error):
            raise
        raise ConfigError(
            f"optim.batch_size: a pass of {images} image(s) of {side_px} px a rank leaves batch norm one value "
            f"({quoted(error.__cause__ or error)}); take a larger optim.batch_size, fewer ranks, larger images or "
            "model.freeze_batchnorm=true"
        ) from error
    _check_shape(config, logits, (len(logits), images, classes))
    mixed = MixedBatch.unmixed(batch.image, batch.label)
    loss = cross_entropy_sum(logits, mixed, config.train.label_smoothing)
    with option_errors(where, advice):
        loss.backward()  # type: ignore[no-untyped-call]
    _check_all_learn(config, ranks, model)
    following = [way.name for way in config.train.mix if way.follows_activation]
    if images > 1 and following:
        what = f"train.mix: {following[0]} does not find where {config.model.name} sees a class"
        with option_errors(what, "take mixup or cutmix"), autocast(ranks.device, precision):
            semantic_share(model, batch)


def _check_shape(config: Config, logits: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(logits.shape) != expected:
        raise ConfigError(
            f"model.options: {config.model.name} gives {list(logits.shape[1:])} numbers for {expected[-2]} images, and "
            f"not {list(expected[1:])}, one a class; drop the option that changes its output"
        )


def _check_all_learn(config: Config, ranks: Ranks, model: Classifier) -> None:
    """Several ranks exchange the gradients of all parameters, and would wait for one that has none."""
    if ranks.world_size == 1 or is_sharded(model) or config.distributed.static_graph:
        return
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise ConfigError(
            f"model.name={config.model.name}: training does not use {name_some(idle)}, and several ranks would wait "
            "for their gradients; take another model, one rank, or distributed.static_graph=true"
        )


def _evaluate(config: Config, ranks: Ranks, model: Classifier, precision: Precision, classes: int) -> None:
    """One image in evaluation mode: the last batch of validation may have no more."""
    side_px = config.data.image_px
    image = _noise(side_px, 1, classes).to(ranks.device).image
    with (
        evaluating(model),
        option_errors(*where_size_matters(config, model.backbone, side_px)),
        autocast(ranks.device, precision),
    ):
        logits = model(image)
    _check_shape(config, logits[None], (1, 1, classes))


def _step_optimizers(config: Config, model: Classifier, build: Build) -> None:
    """Take a step with the optimizer of each phase, handing momentum over as the run will."""
    before: Optimizer | None = None
    for index, phase in enumerate(config.optim.resolved_phases):
        key = f"optim.phases.{index}" if config.optim.phases else "optim"
        lr = phase.lr or config.optim.lr  # after SWATS it has none yet
        where = f"{key}.name={phase.name} with {key}.options={phase.options}: cannot train this model"
        advice = "take other options, or another optimizer"
        with option_errors(where, advice):
            optimizer = build(model, PhaseState(index=index, lr=lr))
            set_rates(optimizer, lr, phase.momentum)
        if before is not None and phase.carry_momentum:
            _carry(before, optimizer, f"{key}.carry_momentum", phase.momentum)
        with option_errors(where, advice):
            optimizer.step()
        before = optimizer


def check_optimizers(config: Config) -> None:
    """Build the optimizer of each phase over a matrix, where there is no model.

    Raises:
        ConfigError: there is no such optimizer, or it does not take one of the options.
    """
    for phase in config.optim.resolved_phases:
        group = {"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": phase.weight_decay}
        build_optimizer([group], phase, lr=phase.lr or config.optim.lr)


def _carry(before: Optimizer, to: Optimizer, key: str, momentum: float) -> None:
    what = f"{key}: {type(before).__name__} has no mean gradient that could be carried on"
    advice = "set it to false, or take adam or sgd before"
    with option_errors(what, advice):
        carry_momentum(before, to, momentum)
    if not to.state:
        raise ConfigError(f"{what}; {advice}")


@contextmanager
def _determinism_errors(config: Config) -> Iterator[None]:
    """Raise a `ConfigError` where train.deterministic forbids what the block computes."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:
        if NOT_DETERMINISTIC not in str(error):
            raise
        raise ConfigError(
            f"train.deterministic: {config.model.name} has an operation without a deterministic algorithm "
            f"({quoted(error.__cause__ or error)}); set train.deterministic=false, or take another model"
        ) from error


def training_memory_errors(config: Config, batch_size: int | None = None) -> AbstractContextManager[None]:
    """Raise a `ConfigError` where memory does not suffice for a block that trains.

    Args:
        batch_size: images computed at once, over all ranks; None: not known yet, where it is auto.
    """
    optim, images = config.optim, config.optim.images_per_step
    found = "auto" if batch_size is None else f"auto, which found {batch_size}"
    now = found if optim.batch_size == "auto" else f"{optim.batch_size} now"
    return memory_errors(
        "optim.batch_size: memory does not suffice",
        f"lower optim.batch_size ({now}) and set optim.effective_batch_size={images}, which keeps {images} images a "
        f"step, lower eval.batch_size ({config.eval.batch_size} now) if it was evaluation, or take a smaller model or "
        "data.image_px",
    )


@contextmanager
def _untimed() -> Iterator[None]:
    """Time no algorithms of cuDNN, and so choose none, for sizes that are only tried."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
