"""The verb that shows the configuration."""

from argparse import Namespace

from pipeline.cli.verbs.verb import Verb, config_of, configuration
from pipeline.common import console


def config(arguments: Namespace) -> None:
    """Print every key of a configuration with its value and meaning."""
    from pipeline.config.load import dump_config

    console.put_out(dump_config(config_of(arguments), comments=True).rstrip())


VERBS = {
    "config": Verb(
        config,
        configuration,
        (
            "plumage config --config configs/demo.yaml",
            "plumage config --config configs/cub200_resnet50.yaml optim.lr=0.01 > low_lr.yaml",
        ),
    ),
}
