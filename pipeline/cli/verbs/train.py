"""The verb that trains, and the verbs to run before it."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from pipeline.cli.verbs.verb import (
    Result,
    Verb,
    check_data,
    config_of,
    config_with_data,
    configuration,
    importing,
)
from pipeline.common.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config.schema import Config


def train(arguments: Namespace) -> Result:
    """Train, or resume an interrupted run.

    With train.refit=RUN and no configuration, that run's recipe is trained on train and validation together.
    """
    config = _refit_of(arguments) or config_of(arguments)
    check_data(config)
    with importing():
        from pipeline.training.trainer import train

    return train(config)


def _refit_of(arguments: Namespace) -> "Config | None":
    """The configuration that `train.refit=RUN` of the command line asks for; None where it is not there."""
    given = [text for text in arguments.positionals if text.startswith("train.refit=")]
    if not given:
        return None
    with importing():
        from pipeline.config.load import load_config

    run = load_config(None, given).train.refit
    if run is None:
        return None
    if arguments.config is not None:
        raise ConfigError(f"train.refit: takes the configuration of {run}; drop --config {arguments.config}")
    with importing():
        from pipeline.training import refit

    return refit.configuration(run, arguments.positionals)


def schedule(arguments: Namespace) -> Result:
    """Draw learning rate, momentum and optimizer over a planned run."""
    config = config_of(arguments)
    with importing():
        from pipeline.training.schedule_preview import preview

    return preview(config)


def lr_find(arguments: Namespace) -> Result:
    """Propose a learning rate, by a short training in which it grows.

    This is the range test; nothing of that short training is kept.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.training.lr_finder import find_lr

    return find_lr(config)


def _doctor_arguments(parser: ArgumentParser) -> None:
    configuration(parser)
    parser.add_argument(
        "--quick", action="store_true", help="skip checks that take training steps or read all data"
    )


def doctor(arguments: Namespace) -> Result:
    """Check machine, data and configuration before an expensive run.

    It tries what the run will do, and keeps nothing of it.
    """
    config = config_of(arguments)
    with importing():
        from pipeline.doctor.doctor import doctor

    return doctor(config, arguments.quick)


def summary(arguments: Namespace) -> Result:
    """Show a network's layers: shapes, parameters, multiply-adds.

    It needs no data and no weights.
    """
    config = config_of(arguments)
    with importing():
        from pipeline.models.summary import summarise

    return summarise(config)


VERBS = {
    "train": Verb(
        train,
        configuration,
        (
            "plumage train --config configs/cub200_resnet50.yaml optim.lr=0.01 run.name=low_lr",
            "python -m pipeline.launch --standalone --nproc-per-node 4 train --config configs/cub200_resnet50.yaml",
        ),
    ),
    "schedule": Verb(
        schedule,
        configuration,
        (
            "plumage schedule --config configs/adam_to_sgd.yaml",
            "plumage schedule --config configs/demo.yaml schedule.warmup_epochs=1 train.epochs=10",
        ),
    ),
    "lr-find": Verb(
        lr_find,
        configuration,
        (
            "plumage lr-find --config configs/demo.yaml",
            "plumage lr-find --config configs/demo.yaml lr_find.steps=50",
        ),
    ),
    "doctor": Verb(
        doctor,
        _doctor_arguments,
        (
            "plumage doctor --config configs/cub200_resnet50.yaml",
            "plumage doctor --config configs/demo.yaml --quick",
        ),
    ),
    "summary": Verb(
        summary,
        configuration,
        (
            "plumage summary --config configs/cub200_resnet50.yaml",
            "plumage summary --config configs/digits_resnet18.yaml summary.depth=3",
        ),
    ),
}
