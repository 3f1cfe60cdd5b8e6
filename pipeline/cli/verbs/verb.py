"""A verb of the command line, and the arguments that several verbs share."""

import gc
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.distributed.environment import world_size

if TYPE_CHECKING:  # help is printed without pydantic
    from pipeline.config.schema import Config

Result = dict[str, Any] | None  # printed as JSON; None on ranks other than the first
OVERRIDE = "section.key=value"
OVERRIDES = "overrides of the configuration, such as optim.lr=0.01; `plumage config` lists every key"


class Verb(NamedTuple):
    """One verb of the command line."""

    run: Callable[[Namespace], Result]
    """its docstring is the verb's help; the first line stands in the list of verbs"""
    arguments: Callable[[ArgumentParser], None]
    """adds the arguments to a parser; the positional ones become `Namespace.positionals`"""
    examples: tuple[str, str]


def configuration(parser: ArgumentParser) -> None:
    """The arguments of a verb that needs a configuration and nothing else."""
    parser.add_argument("positionals", nargs="*", metavar=OVERRIDE, help=OVERRIDES)
    config_option(parser)


def config_option(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=user_path, metavar="FILE", help="YAML; default: the baseline recipe")


def user_path(text: str) -> Path:
    """The path of an option; a shell does not expand the `~` of --config=~/birds.yaml."""
    from pipeline.config.types import expand_path

    try:
        return expand_path(Path(text))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def config_of(arguments: Namespace) -> "Config":
    """The configuration of a verb whose arguments are `configuration`."""
    with importing():
        from pipeline.config.load import load_config

    return load_config(arguments.config, arguments.positionals)


def config_with_data(arguments: Namespace) -> "Config":
    """As `config_of`, of a verb that reads prepared data, see `check_data`."""
    config = config_of(arguments)
    check_data(config)
    return config


def check_data(config: "Config") -> None:
    """Raise a `DataError` if the data of a configuration are not prepared, before torch is imported.

    One rank of several leaves that to the group, which reports it once.
    """
    if world_size() == 1:
        with importing():
            from pipeline.data import prepare

        prepare.check(config)


@contextmanager
def importing() -> Iterator[None]:
    """Import modules in the block without garbage collection, a quarter of the time that torch and timm take.

    They stay until the process ends, so no later collection has to scan them either.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        gc.enable()


def paths_and_overrides(positionals: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Separate paths from overrides: an override holds a "=" and is not an existing path."""
    paths: list[Path] = []
    overrides: list[str] = []
    for text in positionals:
        if "=" in text and not os.path.exists(text):  # noqa: PTH110  # Path.exists raises for a text that is too long
            overrides.append(text)
        else:
            paths.append(Path(text))
    return paths, overrides
