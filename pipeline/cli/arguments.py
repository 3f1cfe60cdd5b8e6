"""argv becomes the arguments of a verb."""

import difflib
import inspect
import shutil
import textwrap
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

from pipeline import __version__
from pipeline.cli.verbs import (
    evaluate,
    export,
    many_runs,
    page,
    prepare,
    preregister,
    serve,
    show_config,
    train,
    unknown,
    verify,
)
from pipeline.cli.verbs.verb import OVERRIDE, Verb

GROUPS = {
    "prepare": prepare.VERBS,
    "train": train.VERBS,
    "evaluate": evaluate.VERBS | unknown.VERBS | preregister.VERBS | verify.VERBS,
    "deploy": export.VERBS | page.VERBS | serve.VERBS,
    "many runs": many_runs.VERBS,
    "configuration": show_config.VERBS,
}
NARROWEST = 24  # columns of a terminal: the names of verbs, and some words
DESCRIPTION = "Plumage: fine-grained image classification, from an archive to accuracy per class."
EPILOG = """\
`plumage VERB --help` shows the options of a verb, with examples.

standard output: one line of JSON (config: YAML; runs: the list)
standard error:  everything else
exit codes:      0  done
                 1  a bug, with its traceback
                 2  an error that you can fix; one sentence says how
                75  stopped by a signal; the same command resumes
"""


def parse(argv: Sequence[str]) -> tuple[Verb, Namespace]:
    """Parse the command line; argparse answers `--help` and unknown verbs itself."""
    parser = ArgumentParser(
        prog="plumage",
        usage="%(prog)s [-h] [--version] VERB ...",
        description=f"{DESCRIPTION}\n\n{_list_of_verbs()}",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plumage {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog="plumage", help=SUPPRESS)
    table = {name: verb for group in GROUPS.values() for name, verb in group.items()}
    for name, verb in table.items():
        examples = "\n".join(f"  {example}" for example in verb.examples)
        parser_of_verb = verbs.add_parser(
            name,
            description=inspect.getdoc(verb.run),
            epilog=f"examples:\n{examples}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        verb.arguments(parser_of_verb)
    if argv and argv[0] not in table and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], table, n=1)
        hint = f"did you mean {near[0]}?" if near else "`plumage --help` lists them"
        parser.error(f"{argv[0]}: no such verb; {hint}")
    # argparse takes no positional arguments both before and behind an option
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [text for text in rest if text.startswith("-") and text != "-"]:
        parser.error(f"unknown option {' '.join(unknown)}; overrides are written {OVERRIDE}")
    arguments.positionals += rest
    return table[arguments.verb], arguments


def _list_of_verbs() -> str:
    """The verbs in their groups, each with the first line of its help, as wide as the terminal."""
    width = max(shutil.get_terminal_size().columns, NARROWEST) - 2
    lines = []
    for title, verbs in GROUPS.items():
        lines.append(f"{title}:")
        for name, verb in verbs.items():
            summary = (inspect.getdoc(verb.run) or "").partition("\n")[0]
            lines.append(
                textwrap.fill(f"{name:<12}{summary}", width, initial_indent="  ", subsequent_indent=" " * 14)
            )
    return "\n".join(lines)
