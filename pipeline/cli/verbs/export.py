"""The verb that exports a trained model."""

from argparse import ArgumentParser, Namespace

from pipeline.cli.verbs.verb import OVERRIDE, OVERRIDES, Result, Verb, paths_and_overrides
from pipeline.common.errors import ConfigError, DataError

PACKAGES = "onnx", "onnxscript", "onnxruntime"
IF_IT_AGREES = "written if it agrees with model.onnx on the validation images"
FORMS = {
    "fp16": f"also model.fp16.onnx, with weights of 16 bits; {IF_IT_AGREES}",
    "int8": f"also model.int8.onnx, with weights and arithmetic of 8 bits; {IF_IT_AGREES}",
}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN",
        help=f"a run directory, such as runs/NAME; and {OVERRIDE}: {OVERRIDES}",
    )
    for form, words in FORMS.items():
        parser.add_argument(f"--{form}", action="store_true", help=words)


def export(arguments: Namespace) -> Result:
    """Write RUN/export: an ONNX model and a script without torch.

    Nothing is written unless the graph gives the trained model's answers: on drawn images, and on the validation images
    if the data are available.
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
    from pipeline.export import small_forms
    from pipeline.export.export_run import export_run

    return export_run(config, [form for form in small_forms.FORMS if getattr(arguments, form)])


VERBS = {
    "export": Verb(
        export,
        _arguments,
        ("plumage export runs/low_lr --fp16", "plumage export runs/low_lr eval.tta=flip"),
    ),
}
