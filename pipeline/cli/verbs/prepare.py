"""The verb that prepares the data."""

import os
from argparse import Namespace

from pipeline.cli.verbs.verb import (
    Verb,
    config_of,
    configuration,
)


def data(arguments: Namespace) -> None:
    """Download or take the archive; check, store and split the images.

    A stage that is up to date is skipped.
    """
    config = config_of(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from pipeline.data.prepare_distributed import prepare_distributed as prepare
    else:
        from pipeline.data.prepare import prepare  # type: ignore[assignment]  # starts without torch

    prepare(config)


VERBS = {
    "data": Verb(
        data,
        configuration,
        (
            "plumage data --config configs/cub200_resnet50.yaml",
            "plumage data --config configs/demo.yaml data.root=/scratch/data",
        ),
    ),
}
