"""Speeds, memory and growth, each beside what others reach in the same run: goal, measured, ratio.

    python scripts/bench [PART ...] [--tiny] [--folder DIR] [section.key=value ...]

loader     crops from the store, against torchvision (PIL, and its own decoder) and timm
step       a training step, against timm's, and against this machine's matrix products
inference  predictions a second, against timm's validation and ONNX Runtime
export     the forms that `plumage export` writes, in ONNX Runtime, against PyTorch: speed and size
data       the data stage, against decoding and resizing on all cores
start      seconds until a verb does its work
growth     time and memory for ten thousand, a hundred thousand and a million images
memory     whether a long run keeps what it does not need
tracking   what a run's records cost
ddp        two ranks against one, and a plan for many GPUs
contest    accuracy against seconds, beside other tools on the same photographs; hours, in parts (--minutes)

Without a PART all of them. Images are drawn birds, unless the command line names data: `data.archive=...`,
`model.weights=...`. The measurements go into docs/benchmarks.jsonl, in the place of earlier ones of the same part, and
the tables of docs/benchmarks.md are made from them. A part that breaks off leaves the earlier ones in their place. Exit
code 0 only when all was measured; a goal that is missed is a measurement, too.

--tiny runs all of it as small as it can be, in a minute or two, and writes nothing: it shows that the bench works.
"""

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import page
from measuring import Options, machine

from pipeline.common import console
from pipeline.common.errors import UserError

PARTS = (
    "loader",
    "step",
    "inference",
    "export",
    "data",
    "start",
    "growth",
    "memory",
    "tracking",
    "ddp",
    "contest",
)
DOCS = Path(__file__).resolve().parents[2] / "docs"
LINES, PAGE = DOCS / "benchmarks.jsonl", DOCS / "benchmarks.md"
INCOMPLETE = 3  # exit code of a part that came to its end and says itself that it could not measure all


def main() -> int:
    """Run what the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="PART | section.key=value")
    parser.add_argument("--tiny", action="store_true", help="as small as it can be; writes nothing")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for data, runs, environments")
    parser.add_argument("--minutes", type=float, default=30, help="of the contest, in all (%(default)s)")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    parts = [word for word in arguments.words if "=" not in word and word != "all"] or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    overrides = tuple(word for word in arguments.words if "=" in word)
    options = Options(overrides, arguments.folder.resolve(), arguments.tiny, arguments.minutes)
    if arguments.in_this_process:
        return measure(parts[0], options)
    return run(parts, options)


def run(parts: list[str], options: Options) -> int:
    """Each part in a process of its own, which keeps nothing of the others; the exit code."""
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts:
        lines = [json.dumps({"part": part, "machine": machine()})]
        words = [part, "--in-this-process", f"--folder={options.folder}", f"--minutes={options.minutes}"]
        command = [sys.executable, __file__, *words, *options.overrides, *["--tiny"] * options.tiny]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(page.sentence(json.loads(line)), flush=True)
                lines.append(line.strip())
        if process.returncode or len(lines) == 1:
            failed.append(part)
        if not options.tiny:
            keep(part, lines, process.returncode)
    if failed:
        print(f"not measured, or not all of it: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def keep(part: str, lines: list[str], exit_code: int) -> None:
    """Put the measurements of a part in the place of its earlier ones, unless it broke off.

    Args:
        lines: the machine's, then one a measurement.
        exit_code: of the part's process.
    """
    if exit_code not in (0, INCOMPLETE) or len(lines) == 1:
        console.warn(
            f"{part}: broke off with exit code {exit_code} after {len(lines) - 1} measurements; {LINES} keeps the "
            "earlier ones, measure the part again"
        )
        return
    page.replace_part(LINES, part, lines)
    page.refresh(PAGE, LINES)


def measure(part: str, options: Options) -> int:
    """Print the measurements of a part, a line of JSON each; 0 where all of it was measured, else `INCOMPLETE`."""
    complete = True
    for measurement in importlib.import_module(part).measure(options):
        complete &= measurement.is_complete
        print(json.dumps(dataclasses.asdict(measurement), ensure_ascii=False), flush=True)
    return 0 if complete else INCOMPLETE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)
