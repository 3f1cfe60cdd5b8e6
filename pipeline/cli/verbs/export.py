"""The verb that brings a trained model out of this program."""

from argparse import ArgumentParser, Namespace

from pipeline.cli.verbs.verb import OVERRIDE, OVERRIDES, Result, Verb, paths_and_overrides
from pipeline.common.errors import ConfigError, DataError

PACKAGES = "onnx", "onnxscript", "onnxruntime"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN",
        help=f"a run directory, such as runs/NAME; and {OVERRIDE}: {OVERRIDES}",
    )


def export(arguments: Namespace) -> Result:
    """Write RUN/export: an ONNX model with a script that needs no torch.

    Nothing is written unless the graph answers as the trained model does: on drawn images, and on the validation images
    where the data are at hand.
    """
    from importlib.util import find_spec

    from pipeline.api.configuration import config_of_run

    runs, overrides = paths_and_overrides(arguments.positionals)
    if len(runs) != 1:
        raise DataError(f"export: {len(runs)} runs are named; name one such as runs/NAME")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"export: needs the packages {', '.join(missing)}; install them from Plumage's folder: "
            ".venv/bin/pip install --editable '.[export]'"
        )
    config = config_of_run(runs[0], overrides)
    from pipeline.export.export_run import export_run

    return export_run(config)


VERBS = {
    "export": Verb(
        export,
        _arguments,
        ("plumage export runs/low_lr", "plumage export runs/low_lr eval.tta=flip"),
    ),
}
