"""The verb that writes a page for people without Python."""

from argparse import ArgumentParser, Namespace

from pipeline.cli.verbs.verb import OVERRIDE, OVERRIDES, Result, Verb, importing, paths_and_overrides
from pipeline.common.errors import ConfigError, DataError


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN",
        help=f"a run directory that was exported, such as runs/NAME; and {OVERRIDE}: {OVERRIDES}",
    )
    parser.add_argument(
        "--model",
        choices=("fp32", "fp16", "int8"),
        help="form of the exported model; default: the smaller of fp32 and fp16",
    )
    parser.add_argument(
        "--folder",
        action="store_true",
        help="instead write RUN/export/page/, a folder for a web server that phones can install",
    )
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="leave out pictures of the data set, which may not be yours to publish",
    )


def page(arguments: Namespace) -> Result:
    """Write one HTML file that classifies pictures offline.

    RUN/export/page.html contains the model, checks it on the golden pictures as it opens, and contacts no server.
    With --folder it is a folder for a web server, which the browser stores at the first visit.
    """
    from importlib.util import find_spec

    from pipeline.api.configuration import config_of_run

    runs, overrides = paths_and_overrides(arguments.positionals)
    if len(runs) != 1:
        raise DataError(f"page: {len(runs)} runs are named; name one such as runs/NAME")
    if find_spec("onnxruntime") is None:
        raise ConfigError(
            "page: needs the package onnxruntime; install it from Plumage's folder: "
            ".venv/bin/pip install --editable '.[export]'"
        )
    config = config_of_run(runs[0], overrides)
    with importing():
        from pipeline.webpage.write_page import write_page

    return write_page(config, arguments.model, pictures=not arguments.no_pictures, as_folder=arguments.folder)


VERBS = {
    "page": Verb(
        page,
        _arguments,
        ("plumage page runs/low_lr", "plumage page runs/low_lr --folder --model int8 --no-pictures"),
    ),
}
