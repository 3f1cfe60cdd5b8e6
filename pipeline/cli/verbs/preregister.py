"""The verb that registers configurations and comparisons before test is read."""

from argparse import ArgumentParser, Namespace

from pipeline.cli.verbs.many_runs import seeds_of
from pipeline.cli.verbs.verb import OVERRIDE, Result, Verb, importing, paths_and_overrides, user_path
from pipeline.common.errors import ConfigError

NUMBERS = ("top1", "top3", "top5", "per_class_mean", "macro_f1", "nll", "brier")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="CONFIG",
        help=f"configuration files, one per arm; and {OVERRIDE}: overrides for all of them",
    )
    parser.add_argument(
        "--seeds",
        type=seeds_of,
        required=True,
        metavar="SEEDS",
        help="seeds of every arm, such as 0-4 or 0,3,7",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="ARM",
        help="names of arms, such as those of the files: the first against each of the others",
    )
    parser.add_argument(
        "--soup",
        nargs="+",
        default=[],
        metavar="ARM",
        help="arms whose seeds' weights are also averaged; named soup-ARM in --compare",
    )
    parser.add_argument(
        "--number", default="top1", choices=NUMBERS, help="the primary number; default: %(default)s"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", help="default: in run.root/protocols")


def preregister(arguments: Namespace) -> Result:
    """Fix recipes, data and comparison before test is read.

    `eval` on test then says whether a run followed it (confirmatory) or not (exploratory), and why.
    """
    names = [*arguments.compare, *arguments.soup]
    behind = [word for word in names if "=" in word]  # overrides that follow the names of arms
    compared, soups = (
        [word for word in words if "=" not in word] for words in (arguments.compare, arguments.soup)
    )
    paths, overrides = paths_and_overrides([*arguments.positionals, *behind])
    if not paths:
        raise ConfigError(
            "preregister: no configuration is named; give files such as configs/strong_cpu.yaml"
        )
    with importing():
        from pipeline.protocol.preregister import preregister

    return preregister(
        *(paths, arguments.seeds, compared, soups),
        *(arguments.number, arguments.out, overrides),
    )


VERBS = {
    "preregister": Verb(
        preregister,
        _arguments,
        (
            "plumage preregister configs/strong_cpu.yaml --seeds 0-4",
            "plumage preregister configs/a.yaml configs/b.yaml --seeds 0-4 --compare a b",
        ),
    ),
}
