"""Verbs for several runs."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from pipeline.cli.verbs.verb import OVERRIDE, Result, Verb, importing, paths_and_overrides
from pipeline.common.errors import ConfigError, UserError

MOST_SEEDS = 1000


def _study_arguments(parser: ArgumentParser) -> None:
    names = f"a file of configs/studies, a path, or all; then {OVERRIDE} for every run"
    parser.add_argument("positionals", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once; default: one per GPU or core")


def study(arguments: Namespace) -> Result:
    """Run a study, and write its table and figure."""
    with importing():
        from pipeline.experiments.studies.study import study

    name, *overrides = arguments.positionals
    return study(name, arguments.jobs, overrides)


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds of `--seeds`: 0-4 is 0, 1, 2, 3, 4, and 0,3,7-9 is 0, 3, 7, 8, 9."""
    parts = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip()) for part in text.split(",")]
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    seeds = [seed for first, last in ends for seed in range(first, min(last, first + MOST_SEEDS) + 1)]
    if None in parts or any(first > last for first, last in ends):
        raise ArgumentTypeError(f"{text}: not a list of seeds such as 0-4 or 0,3,7")
    if len(seeds) > MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise ArgumentTypeError(f"{text}: give each seed once, and at most {MOST_SEEDS}")
    return tuple(seeds)


def _repeat_arguments(parser: ArgumentParser) -> None:
    what = f"a run configuration, such as configs/strong.yaml; then {OVERRIDE} for every run"
    seeds = "such as 0-4 or 0,3,7; default: 0-4"
    parser.add_argument("positionals", nargs="+", metavar="CONFIG", help=what)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-4"), metavar="SEEDS", help=seeds)
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once; default: one per GPU or core")


def repeat(arguments: Namespace) -> Result:
    """Train and evaluate a recipe with several seeds.

    A table gives each number's mean and sd over the seeds, and an interval over seeds and images together. `compare`
    accepts two such folders.
    """
    with importing():
        from pipeline.experiments.studies.repeat import repeat

    path, *overrides = arguments.positionals
    return repeat(Path(path), arguments.seeds, arguments.jobs, overrides)


def _soup_arguments(parser: ArgumentParser) -> None:
    runs = (
        f"runs that differ only in the seed, or a folder of `repeat`; and {OVERRIDE}, such as run.name=NAME"
    )
    parser.add_argument("positionals", nargs="+", metavar="RUN", help=runs)


def soup(arguments: Namespace) -> Result:
    """Average the weights of several seeds into one run, if better.

    It has to beat the best of them on validation; test is not read. The seeds need a common validation split: train
    them with data.split_seed.
    """
    with importing():
        from pipeline.experiments.soup import soup

    return soup(*paths_and_overrides(arguments.positionals))


def _sweep_arguments(parser: ArgumentParser) -> None:
    path = f"a sweep file, or a folder of stages; then {OVERRIDE} for every trial"
    trials = "total trials, over all commands sharing the sweep; default: run_cap, or the grid's size"
    parser.add_argument("positionals", nargs="+", metavar="FILE", help=path)
    parser.add_argument("--trials", type=int, metavar="N", help=trials)
    parser.add_argument("--jobs", type=int, metavar="N", help="trials at once; default: one per GPU or core")
    pruners = ("median", "hyperband", "none")
    parser.add_argument("--pruner", choices=pruners, help="default: as early_terminate says")


def sweep(arguments: Namespace) -> Result:
    """Run the trials of a sweep, and write their table and the best.

    It reads W&B's sweep files (configs/sweeps) and does not need W&B.
    """
    with importing():
        from pipeline.experiments.sweeps.sweep import sweep

    path, *overrides = arguments.positionals
    return sweep(Path(path), arguments.trials, arguments.jobs, arguments.pruner, overrides)


def _runs_arguments(parser: ArgumentParser) -> None:
    what = "a folder of runs, default: runs; or: diff RUN RUN; or: rm RUN..."
    parser.add_argument("positionals", nargs="*", metavar="FOLDER", help=what)
    parser.add_argument(
        "--sort", default="started", metavar="COLUMN", help="column to sort the list by; default: started"
    )
    columns = "print the list as CSV, with a column for each key that differs"
    parser.add_argument("--csv", action="store_true", help=columns)
    parser.add_argument("--yes", action="store_true", help="rm: do not ask for confirmation")


def runs(arguments: Namespace) -> Result:
    """List runs, show how two of them differ, or delete some."""
    from pipeline.runs import listing

    what, *rest = arguments.positionals or ["runs"]
    paths = [Path(run) for run in rest]
    if what == "diff" and len(paths) == 2:
        return listing.difference(*paths)
    if what == "rm" and paths:
        return listing.remove(paths, arguments.yes)
    if what in ("diff", "rm") or rest:
        raise ConfigError("runs: give a folder, or diff RUN RUN, or rm RUN...")
    listing.list_runs(Path(what.removeprefix("run.root=")), arguments.sort, arguments.csv)
    return None


def _sync_arguments(parser: ArgumentParser) -> None:
    runs = f"run directories, such as runs/NAME, and {OVERRIDE}: overrides of their configuration"
    parser.add_argument("positionals", nargs="+", metavar="RUN", help=runs)
    offline = "write RUN/wandb/offline-run-... for `wandb sync`"
    parser.add_argument("--offline", action="store_true", help=offline)
    follow = "send while the parent process PID trains the run; used by `train` itself"
    parser.add_argument("--follow", type=int, metavar="PID", help=follow)


def sync(arguments: Namespace) -> Result:
    """Complete the W&B runs of run directories from their logs.

    It is safe to call repeatedly.
    """
    from pipeline.wandb_sync import sync as wandb_sync

    runs, overrides = paths_and_overrides(arguments.positionals)
    if not runs:
        raise UserError("sync: no run is named; give run directories, such as runs/NAME")
    if arguments.follow:
        return wandb_sync.follow(runs[0], arguments.follow, overrides)
    return (wandb_sync.write_offline_runs if arguments.offline else wandb_sync.sync_runs)(runs, overrides)


VERBS = {
    "study": Verb(study, _study_arguments, ("plumage study residual --jobs 2", "plumage study all")),
    "repeat": Verb(
        repeat,
        _repeat_arguments,
        (
            "plumage repeat configs/strong_cpu.yaml --seeds 0-4",
            "plumage repeat configs/strong_cpu.yaml --seeds 0-9 run.name=low_lr optim.lr=0.01 --jobs 2",
        ),
    ),
    "soup": Verb(
        soup,
        _soup_arguments,
        (
            "plumage soup runs/repeats/lp_ft_cpu",
            "plumage soup runs/seed0 runs/seed1 runs/seed2 run.name=mean",
        ),
    ),
    "sweep": Verb(
        sweep,
        _sweep_arguments,
        (
            "plumage sweep configs/sweeps/birds.yaml --trials 12 --jobs 2",
            "plumage sweep configs/sweeps/article",
        ),
    ),
    "runs": Verb(
        runs, _runs_arguments, ("plumage runs --sort best", "plumage runs diff runs/baseline runs/low_lr")
    ),
    "sync": Verb(
        sync,
        _sync_arguments,
        ("plumage sync runs/baseline runs/low_lr", "plumage sync runs/baseline --offline"),
    ),
}
