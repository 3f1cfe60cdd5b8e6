"""The verb `verify`: which claims of a run hold on this machine, as a certificate.

Numbers are computed again from stored outputs, images predicted again, training steps taken again, digests compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.common.errors import CheckpointError, UserError
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.prepare import Prepared
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import results
from pipeline.protocol import (
    averaged,
    certificate,
    numbers,
    predicted_again,
    recorded,
    stored_data,
    trained_again,
)
from pipeline.protocol.claims import Claim
from pipeline.protocol.predicted_again import Again
from pipeline.protocol.recorded import Evaluated
from pipeline.protocol.stored_data import Recorded
from pipeline.runs import environment, history
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log

IMAGES, STEPS = 64, 10
BATCH_SIZE = 64
"""of evaluations by earlier versions, which do not say theirs"""


@dataclass(frozen=True)
class Effort:
    """images: predicted again of each split; steps: of the training taken again, at least; 0: none."""

    images: int = IMAGES
    steps: int = STEPS


def verify(config: Config, effort: Effort) -> dict[str, Any]:
    """Check a run, write RUN/certificate.json and RUN/certificate.txt, and show them; return the claims in short.

    Raises:
        CheckpointError: the run is being trained.
        DataError: its log or metrics.json cannot be read.
    """
    run = RunDirectory(config.run_dir)
    status = run.read_status()
    if status is not None and status.state == "running":
        raise CheckpointError(f"{run.path}: is being trained, and changes; verify it when that is over")
    threads = torch.get_num_threads()
    try:
        with process_group.join(config.train, config.distributed.timeout_s) as ranks:
            claims = list(_claims(config, run, effort, ranks))
            here = environment.describe(ranks.device)
    finally:
        torch.set_num_threads(threads)
    return certificate.write(run, claims, here)


def _claims(config: Config, run: RunDirectory, effort: Effort, ranks: Ranks) -> Iterator[Claim]:
    log, evaluated = run.read_log(), recorded.evaluations(run)
    of_checkpoints, contents = recorded.check_checkpoints(run, evaluated)
    yield of_checkpoints
    yield recorded.check_configuration(run, contents)
    yield recorded.check_weights(run, config)
    about = run.read_environment()
    if "soup" in about:
        yield averaged.check(run, about)
    else:
        yield recorded.check_history(run, contents)
    yield recorded.check_log(run, log, evaluated, contents)
    yield recorded.check_readings(run, evaluated)
    yield recorded.check_registration(run, evaluated, contents)
    of_data, data = stored_data.check(config, list(_recorded(run, evaluated, contents)))
    yield of_data
    if data is None:
        for what in ("numbers", "predictions", "training"):
            yield Claim.unchecked(what, "the data are not here, or not as they were made")
        return
    for each in evaluated:
        yield numbers.check(config_of(config, each), data, each.folder)
    if effort.images:
        images = effort.images
        if of_data.result == "holds":
            yield stored_data.check_pictures(config, data, images)
        else:  # all, to name those that changed
            images = len(data.samples)
        for each in evaluated:
            yield from _predictions(config, data, each, images, ranks)
    if effort.steps and "soup" not in about:  # a soup was not trained
        yield from _steps(config, run, log, contents, effort.steps, ranks)


def _recorded(
    run: RunDirectory, evaluated: list[Evaluated], contents: Mapping[str, Any]
) -> Iterator[Recorded]:
    """What the files of the run say of its data."""
    about = run.read_environment()
    yield Recorded(run.environment_file.name, about.get("samples"), about.get("pictures"))
    for name, content in contents.items():
        yield Recorded(name, content["samples"], None)
    for each in evaluated:
        place = f"eval/{each.folder.split}/{each.folder.environment_file.name}"
        of_other_size = "resize_px" in each.metrics  # with eval.image_px the store may be another one
        pictures = None if of_other_size else each.environment.get("pictures")
        yield Recorded(place, each.environment.get("samples"), pictures)


def config_of(config: Config, evaluated: Evaluated) -> Config:
    """The configuration of an evaluation: its split, its checkpoint and its views."""
    own = {"split": evaluated.folder.split, "checkpoint": str(evaluated.checkpoint)}
    config = results.config_of(config, evaluated.metrics)
    return config.model_copy(update={"eval": config.eval.model_copy(update=own)})


def _predictions(
    config: Config, data: Prepared, evaluated: Evaluated, images: int, ranks: Ranks
) -> Iterator[Claim]:
    about = evaluated.environment or RunDirectory(config.run_dir).read_environment()
    otherwise = environment.other_bits(about, environment.describe(ranks.device))
    if not otherwise:
        _compute_in(about.get("threads"))
    again = Again(images, evaluated.environment.get("batch_size", BATCH_SIZE), otherwise)
    own = config_of(config, evaluated)
    if own.data.resize_px != config.data.resize_px:
        try:
            data = prepare.load(own)
        except UserError as error:
            yield Claim.unchecked(f"predictions of {evaluated.folder.split}", str(error))
            return
    yield from predicted_again.check(own, data, evaluated.folder, again, ranks)


def _steps(
    config: Config, run: RunDirectory, log: Log, contents: Mapping[str, Any], wanted: int, ranks: Ranks
) -> Iterator[Claim]:
    """The first steps, and those behind the best checkpoint where the training went on from there."""
    about, first = run.read_environment(), "training"
    if about.get("ranks", 1) != 1:
        yield Claim.unchecked(first, f"the run was trained on {about['ranks']} ranks, and this is one")
        return
    steps, precision = trained_again.steps_to_take(log, wanted), about.get("precision")
    if steps is None or precision is None:
        yield Claim.unchecked(first, "the log has no step, or environment.json no precision")
        return
    otherwise = environment.other_bits(about, environment.describe(ranks.device))
    if config.optim.batch_size == "auto":
        otherwise.append("optim.batch_size (auto)")
    if ranks.device.type == "cuda" and not config.train.deterministic:
        otherwise.append("algorithms (train.deterministic is false)")
    if not otherwise:
        _compute_in(about.get("threads"))
    try:
        starts = history.read(run)
    except UserError as error:
        yield Claim.unchecked(first, str(error))
        return
    to_take, best = {first: steps}, run.checkpoint("best")
    since = contents[best.name]["step"] if best.name in contents else 0
    if since and (later := trained_again.steps_to_take(log, wanted, since, best.absolute())):
        to_take[f"training from step {since}"] = later
    for name, each in to_take.items():
        if reason := trained_again.why_not(starts, log, each):
            yield Claim.unchecked(name, reason)
        else:
            yield trained_again.check(name, config, log, each, precision, otherwise)


def _compute_in(threads: Any) -> None:
    """Compute in as many threads as an environment says, on which rounding depends."""
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
