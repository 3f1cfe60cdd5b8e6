"""Fire hostile input at the program, class by class; none may end in a traceback, a hang or a wrong result.

    python scripts/fuzz [CLASS ...] [--cases N] [--seed S] [--folder DIR]

Each class prints how many cases were tried, refused in one sentence, taken and found right, and failed. A case is
a function of (class, seed, number). The folders of failed cases stay. Exit code 1 if one failed.
"""

import argparse
import importlib
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # a forked process has none of its parent's threads
os.environ["NO_ALBUMENTATIONS_UPDATE"] = os.environ["PYTHONUTF8"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

CLASSES = {  # and the cases of each in a full run
    "configurations": 1000,
    "command_line": 500,
    "archives": 350,
    "text_files": 600,
    "folders": 500,
    "pictures": 500,
    "checkpoints": 400,
    "weights": 250,
    "artefacts": 500,
    "sweeps": 100,
    "disks": 100,
    "kills": 60,
    "pairs": 60,
}
PRELOADED = [
    "pipeline.training.trainer",
    "pipeline.evaluation.evaluate",
    "pipeline.report.page",
    "pipeline.audit.audit",
]


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "classes", nargs="*", metavar="CLASS", help=f"of {', '.join(CLASSES)}; all if none is named"
    )
    parser.add_argument(
        "--cases", type=int, help="of each class; else " + str(sum(CLASSES.values())) + " in all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="for data and for cases that failed; else a temporary one"
    )
    arguments = parser.parse_args()
    names = arguments.classes or list(CLASSES)
    if unknown := set(names) - CLASSES.keys():
        parser.error(f"no such class: {', '.join(sorted(unknown))}; there are {', '.join(CLASSES)}")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="plumage-fuzz-"))
    folder = folder.resolve() / f"seed{arguments.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    return fuzz(names, arguments.cases, arguments.seed, folder)


def fuzz(names: list[str], cases: int | None, seed: int, folder: Path) -> int:
    """Run the classes; the exit code."""
    from harness import Count, run_cases
    from world import World

    for module in PRELOADED:
        importlib.import_module(module)
    world, at_once = World.make(folder / "world"), max(2, len(os.sched_getaffinity(0)))
    line = "{:<16}{:>8}{:>10}{:>8}{:>8}{:>10}".format
    print(line("class", "tried", "refused", "right", "failed", "seconds"), flush=True)
    total = Count()
    for name in names:
        started = time.monotonic()
        stream = importlib.import_module(name).cases(world, random.Random(f"{name} {seed}"))
        count = run_cases(name, itertools.islice(stream, cases or CLASSES[name]), folder, at_once)
        seconds = round(time.monotonic() - started)
        print(line(name, count.tried, count.refused, count.right, count.failed, seconds), flush=True)
        for failure in count.failures:
            print(f"\nFAILED {failure}\n", file=sys.stderr, flush=True)
            total.failures.append(failure)
        for verdict in ("tried", "refused", "right", "failed"):
            setattr(total, verdict, getattr(total, verdict) + getattr(count, verdict))
    print(line("all", total.tried, total.refused, total.right, total.failed, ""))
    if total.failed:
        print(f"the folders of failed cases are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
