"""The verb that finds the threshold for unknown classes."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from pipeline.cli.verbs.verb import (
    OVERRIDE,
    OVERRIDES,
    Result,
    Verb,
    check_data,
    importing,
    paths_and_overrides,
)
from pipeline.common.errors import DataError

SCORES = ("msp", "max_logit", "energy", "gen", "rmds", "knn")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN|IMAGE",
        help="a run directory first, such as runs/NAME; then pictures or folders of unknown classes to measure on, "
        f"if you have any; and {OVERRIDE}: {OVERRIDES}",
    )
    parser.add_argument("--score", choices=SCORES, help="score that decides; default: rmds")
    parser.add_argument(
        "--keep",
        type=_share,
        default=0.95,
        metavar="SHARE",
        help="share of pictures of known classes to answer, 0..1; default: %(default)s",
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value <= 0.999:
        raise ArgumentTypeError(f"{text}: not a share from 0.5 to 0.999")
    return value


def unknown(arguments: Namespace) -> Result:
    """Find the threshold below which `predict` says "none of these".

    Validation images guarantee the share of known pictures kept; left-out known classes estimate the share refused.
    """
    from pipeline.api.configuration import config_of_run

    names, overrides = paths_and_overrides(arguments.positionals)
    if not names:
        raise DataError("unknown: no run is named; name one such as runs/NAME first")
    run, *pictures = names
    config = config_of_run(run, overrides)
    check_data(config)
    with importing():
        from pipeline.unknown.find_threshold import DEFAULT, ThresholdOptions, find_threshold

    options = ThresholdOptions(arguments.score or DEFAULT, arguments.keep, pictures)
    return find_threshold(config, options)


VERBS = {
    "unknown": Verb(
        unknown,
        _arguments,
        (
            "plumage unknown runs/low_lr",
            "plumage unknown runs/low_lr other_birds/ --score knn --keep 0.9",
        ),
    ),
}
