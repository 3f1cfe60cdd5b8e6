"""argv becomes one call. Torch is imported by the verb that needs it, so that help answers at once."""

import argparse
import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline import __version__
from pipeline.common import console, signals
from pipeline.common.errors import ConfigError, RankLost, Stopped, UserError
from pipeline.config import load
from pipeline.config.schema import Config

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


def data(config: Config) -> dict[str, Any] | None:
    """Download or take the archive, unpack, check, store and split; what is up to date is skipped."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from pipeline.data.prepare_distributed import prepare_together as prepare
    else:
        from pipeline.data.prepare import prepare  # type: ignore[assignment]  # starts without torch

    prepare(config)
    return None


def train(config: Config) -> dict[str, Any]:
    """Train, or go on training where the run was interrupted."""
    from pipeline.training.trainer import train

    return train(config)


def evaluate(config: Config) -> dict[str, Any]:
    """Predict a split with a run's checkpoint and report accuracy per class; never trains."""
    from pipeline.evaluation.evaluate import evaluate

    return _published(config, evaluate(config))


def schedule(config: Config) -> dict[str, Any]:
    """Draw learning rate, momentum and optimizer over the run, before anything is trained."""
    from pipeline.training.schedule_preview import preview

    return preview(config)


def lr_find(config: Config) -> dict[str, Any]:
    """Propose a learning rate: a short training in which it grows (the range test)."""
    from pipeline.training.lr_finder import lr_find

    return lr_find(config)


def summary(config: Config) -> dict[str, Any]:
    """Show a network's layers with output shapes, parameters and multiply-adds; needs no data and no weights."""
    from pipeline.models.summary import summarise

    return summarise(config)


def audit(config: Config) -> dict[str, Any]:
    """Look for likely label errors and near-duplicates in the data, with a trained model's features."""
    from pipeline.audit.audit import audit

    return audit(config)


def report(config: Config) -> dict[str, Any]:
    """Write report.html anew from stored predictions; reads no split again."""
    from pipeline.report.page import rebuild

    return _published(config, rebuild(config))


def _published(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    """Bring W&B up to a result, on the first rank: the others have none."""
    if result:
        from pipeline.runs.wandb_process import publish

        publish(config)
    return result


def config(config: Config) -> None:
    """Print the full configuration: the file, the overrides, and a default for everything else."""
    console.put_out(load.dump(config, comments=True).rstrip())


OF_A_CONFIG: dict[str, Callable[[Config], dict[str, Any] | None]] = {
    "data": data,
    "train": train,
    "eval": evaluate,
    "schedule": schedule,
    "lr-find": lr_find,
    "summary": summary,
    "audit": audit,
    "report": report,
    "config": config,
}


def doctor(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check this machine before an expensive run, and prove what the run will do; trains nothing, keeps nothing."""
    from pipeline.doctor.doctor import doctor

    return doctor(load.load(arguments.config, arguments.words), arguments.quick)


def predict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name the most likely classes of single pictures, by the run's best checkpoint."""
    from pipeline.evaluation.predict_images import predict

    overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    images = [Path(word) for word in arguments.words if word not in overrides]
    return predict(load.load(arguments.config, overrides), images)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say whether runs on the same images differ by more than noise; several seeds become mean +- sd."""
    from pipeline.evaluation.compare import compare

    return compare([Path(word) for word in arguments.words], arguments.split, arguments.out)


def study(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs of a study (configs/studies), and write its table and its figure; or all of them."""
    from pipeline.experiments.studies.study import study

    return study(arguments.words[0], arguments.jobs, arguments.words[1:])


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the trials of a sweep (W&B's own sweep files, configs/sweeps) without W&B; write their table and the best."""
    from pipeline.experiments.sweeps.sweep import sweep

    path, *more = arguments.words
    return sweep(Path(path), arguments.trials, arguments.jobs, arguments.pruner, more)


def runs(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """List all runs below a folder; `diff RUN RUN` shows in what two differ, `rm RUN...` deletes after asking."""
    from pipeline.runs import listing as listing_module

    what, *rest = arguments.words or ["runs"]
    paths = [Path(word) for word in rest]
    if what == "diff" and len(paths) == 2:
        return listing_module.difference(*paths)
    if what == "rm" and paths:
        return listing_module.remove(paths, arguments.yes)
    if what in ("diff", "rm") or rest:
        raise ConfigError("runs: give a folder, or diff RUN RUN, or rm RUN...")
    listing_module.listing(Path(what), arguments.sort, arguments.csv)
    return None


def sync(arguments: argparse.Namespace) -> dict[str, Any]:
    """Complete the W&B run of each run directory from its log, however often it is called."""
    from pipeline.wandb_sync import sync as sync_module

    overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    runs = [Path(word) for word in arguments.words if word not in overrides]
    if not listing_module:
        raise UserError("sync: no run is named; give run directories, such as runs/NAME")
    if arguments.follow:
        return sync_module.follow(listing_module[0], arguments.follow, overrides)
    return (sync_module.offline if arguments.offline else sync_module.sync)(listing_module, overrides)


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
    listing = add(
        "runs", listing_module, "FOLDER", "runs, or another folder of runs; or: diff RUN RUN; or: rm RUN..."
    )
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


def run(argv: Sequence[str]) -> int:
    """Do what the command line says; return the exit code. A bug raises."""
    arguments = parse(argv)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signals.raise_stopped)
    try:
        given: Any = arguments
        if arguments.verb in OF_A_CONFIG:
            given = load.load(arguments.config, arguments.words)
        result: dict[str, Any] | None = arguments.do(given)
    except (UserError, RankLost) as error:
        if not error.said:
            console.fail(str(error))
        return error.exit_code
    except Stopped as stopped:
        console.say(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        console.say("stopped by SIGINT; the same command goes on")
        return Stopped.exit_code
    if result:  # ranks other than the first have none
        print(json.dumps(result))
    return UserError.exit_code if result and result.get("go") is False else 0


def main() -> NoReturn:
    """Entry point of `python -m pipeline`."""
    sys.exit(run(sys.argv[1:]))
