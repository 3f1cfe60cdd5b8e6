"""The verb that checks which claims of a run hold on this machine."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from pipeline.cli.verbs.verb import OVERRIDE, OVERRIDES, Result, Verb, importing, paths_and_overrides
from pipeline.common.errors import DataError


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN",
        help=f"a run directory, such as runs/NAME; and {OVERRIDE}, such as data.root=data: {OVERRIDES}",
    )
    for name, default, what in (
        ("images", 64, "images of each split to predict again, in whole batches"),
        ("steps", 10, "training steps to repeat, up to the next record of the log"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_count,
            default=default,
            metavar="N",
            help=f"{what}; default: %(default)s; 0: none",
        )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text}: not a whole number from 0")
    return int(text)


def verify(arguments: Namespace) -> Result:
    """Check which claims of a run hold on this machine.

    It recomputes numbers from stored outputs, predicts some images and repeats some training steps, compares digests,
    and writes RUN/certificate.json. The exit code is 2 if a claim fails.
    """
    from pipeline.api.configuration import config_of_run

    runs, overrides = paths_and_overrides(arguments.positionals)
    if len(runs) != 1:
        raise DataError(f"verify: {len(runs)} runs are named; name one such as runs/NAME")
    config = config_of_run(runs[0], overrides)
    with importing():
        from pipeline.protocol.verify import Effort
        from pipeline.protocol.verify import verify as verify_run

    return verify_run(config, Effort(arguments.images, arguments.steps))


VERBS = {
    "verify": Verb(
        verify,
        _arguments,
        ("plumage verify runs/low_lr", "plumage verify runs/low_lr data.root=data --images 500 --steps 100"),
    ),
}
