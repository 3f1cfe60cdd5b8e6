"""The verb that prepares the data."""

from argparse import ArgumentParser, Namespace

from pipeline.cli.verbs.verb import (
    Result,
    Verb,
    config_of,
    config_with_data,
    configuration,
    importing,
)
from pipeline.distributed.environment import world_size


def data(arguments: Namespace) -> None:
    """Get the data; check, store and split the images.

    The archive is downloaded unless data.archive names it. A stage that is up to date is skipped. With --verify all
    prepared files are read again, and those that have changed are rebuilt.
    """
    config = config_of(arguments)
    if world_size() > 1:
        from pipeline.data.prepare_distributed import prepare_distributed as prepare
    else:
        from pipeline.data.prepare import prepare  # type: ignore[assignment]  # starts without torch

    prepare(config, arguments.verify)


def inspect(arguments: Namespace) -> Result:
    """Describe prepared data: sizes, duplicates, losses by cropping.

    A page with pictures is written beside the sample table. Nothing is trained, and nothing is chosen by test images.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.inspection.inspect_data import inspect_data

    return inspect_data(config)


def _arguments(parser: ArgumentParser) -> None:
    configuration(parser)
    parser.add_argument("--verify", action="store_true", help="compare the digests of all prepared files")


VERBS = {
    "data": Verb(
        data,
        _arguments,
        (
            "plumage data --config configs/cub200_resnet50.yaml",
            "plumage data --config configs/demo.yaml --verify",
        ),
    ),
    "inspect": Verb(
        inspect,
        configuration,
        (
            "plumage inspect --config configs/cub200_resnet50.yaml",
            "plumage inspect data.source=folder data.path=birds/",
        ),
    ),
}
