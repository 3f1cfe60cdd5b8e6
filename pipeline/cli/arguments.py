"""argv becomes the arguments of a verb."""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cli.verbs import OF_A_CONFIG, compare, doctor, predict, runs, study, sweep, sync

EXAMPLES = """
    examples:
      python -m pipeline data  --config configs/cub200_resnet50.yaml
      python -m pipeline train --config configs/cub200_resnet50.yaml optim.lr=0.01 run.name=low_lr
      python -m pipeline eval  --config configs/cub200_resnet50.yaml run.name=low_lr eval.split=val
      python -m pipeline schedule --config configs/adam_to_sgd.yaml   # what the rates will be
      python -m pipeline lr-find  --config configs/demo.yaml          # which rate to begin with
      python -m pipeline doctor --config configs/demo.yaml --quick    # is this machine ready for the run
      python -m pipeline summary --config configs/digits_resnet18.yaml summary.depth=3
      python -m pipeline predict --config configs/digits_resnet18.yaml picture.png
      python -m pipeline audit --config configs/cub200_resnet50.yaml run.name=low_lr
      python -m pipeline report --config configs/cub200_resnet50.yaml run.name=low_lr report.gallery=200
      python -m pipeline compare runs/baseline runs/low_lr runs/low_lr_seed1
      python -m pipeline sync runs/baseline runs/low_lr          # to Weights & Biases
      python -m pipeline study residual --jobs 2               # configs/studies/residual.yaml
      python -m pipeline sweep configs/sweeps/birds.yaml --trials 12 --jobs 2
      python -m pipeline runs --sort best                      # all runs; also: runs diff A B, runs rm A
      python -m pipeline config --config configs/demo.yaml       # every key, with its meaning
      torchrun --nproc-per-node 4 -m pipeline train --config configs/cub200_resnet50.yaml

    standard output: one line of JSON (of config: YAML; of runs: the list). All else goes to standard error.
    exit codes: 0 done; 1 a bug, with its traceback; 2 you can mend it, one sentence says how;
                75 stopped by a signal, the same command goes on from there
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; argparse answers `--help` and unknown verbs itself."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Plumage: fine-grained image classification, from an archive to accuracy per class.",
        epilog=textwrap.dedent(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plumage {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        name: str, do: Callable[..., Any], words: str, meaning: str, nargs: str = "*"
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=do.__doc__,
            description=do.__doc__,
            epilog=textwrap.dedent(EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(do=do)
        verb.add_argument("words", nargs=nargs, metavar=words, help=meaning)
        return verb

    key = "section.key=value"
    verbs_of_config = [
        add(name, do, key, "as in `python -m pipeline config`") for name, do in OF_A_CONFIG.items()
    ]
    looking = add("doctor", doctor, key, "as in `python -m pipeline config`")
    looking.add_argument("--quick", action="store_true", help="without the checks that take training steps")
    predicting = add("predict", predict, "IMAGE", f"pictures, and overrides {key}")
    for verb in (*verbs_of_config, looking, predicting):
        verb.add_argument("--config", type=Path, metavar="FILE", help="YAML; without it, the baseline recipe")
    comparing = add("compare", compare, "RUN", "a run directory, such as runs/NAME", "+")
    comparing.add_argument("--split", default="test", choices=("train", "val", "test"))
    files = "also write comparison.json, classes.csv, changed.csv"
    comparing.add_argument("--out", type=Path, metavar="FOLDER", help=files)
    studying = add(
        "study", study, "NAME", f"a file of configs/studies, a path, or all; then {key} of every run", "+"
    )
    studying.add_argument("--jobs", type=int, metavar="N", help="runs at once; without it, one a core")
    sweeping = add(
        "sweep", sweep, "FILE", f"a sweep file, or a folder of stages; then {key} of every trial", "+"
    )
    every = "of the sweep in all, whoever does them; without it, run_cap, or the size of the grid"
    sweeping.add_argument("--trials", type=int, metavar="N", help=every)
    sweeping.add_argument(
        "--jobs", type=int, metavar="N", help="trials at once; without it, one a GPU or core"
    )
    sweeping.add_argument(
        "--pruner", choices=("median", "hyperband", "none"), help="without it, as early_terminate says"
    )
    listing = add("runs", runs, "FOLDER", "runs, or another folder of runs; or: diff RUN RUN; or: rm RUN...")
    listing.add_argument("--sort", default="started", metavar="COLUMN", help="of a list: by what; started")
    listing.add_argument(
        "--csv", action="store_true", help="a list as CSV, a column for each key that differs"
    )
    listing.add_argument("--yes", action="store_true", help="of rm: do not ask")
    syncing = add("sync", sync, "RUN", f"a run directory, such as runs/NAME, and overrides {key}", "+")
    syncing.add_argument(
        "--offline", action="store_true", help="write RUN/wandb/offline-run-... for `wandb sync`"
    )
    following = "send while that process, the parent, trains the run; training itself calls this"
    syncing.add_argument("--follow", type=int, metavar="PID", help=following)
    # argparse takes no words both before and behind an option
    arguments, more = parser.parse_known_args(argv)
    if wrong := [word for word in more if word.startswith("-")]:
        parser.error(f"unknown option {' '.join(wrong)}; overrides are written {key}")
    arguments.words += more
    return arguments
