"""Verbs that judge what was learned, and the data by it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pipeline.cli.verbs.verb import (
    OVERRIDE,
    OVERRIDES,
    Result,
    Verb,
    config_of,
    config_option,
    configuration,
    paths_and_overrides,
    user_path,
)
from pipeline.config.load import load_config
from pipeline.config.schema import Config


def evaluate(arguments: Namespace) -> Result:
    """Predict a split and report accuracy per class; never trains.

    The model is a checkpoint of the run.
    """
    config = config_of(arguments)
    from pipeline.evaluation import screen
    from pipeline.evaluation.evaluate import evaluate_split
    from pipeline.runs.directory import RunDirectory

    metrics = evaluate_split(config)
    if metrics:
        folder = RunDirectory(config.run_dir).evaluation(config.eval.split)
        if config.report.write:
            from pipeline.report import page  # and all that explains: not for a number alone

            page.build(config, folder, recompute=False)
        screen.show(folder)
    return _published(config, metrics)


def report(arguments: Namespace) -> Result:
    """Write report.html anew from stored predictions.

    It does not read a split again.
    """
    config = config_of(arguments)
    from pipeline.report.page import rebuild

    return _published(config, rebuild(config))


def _published(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    """Bring W&B up to a result, on the first rank: the others have none."""
    if result:
        from pipeline.runs.wandb_process import publish

        publish(config)
    return result


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("positionals", nargs="+", metavar="RUN", help="a run directory, such as runs/NAME")
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="default: %(default)s"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="write comparison.json, classes.csv and changed.csv there too",
    )


def compare(arguments: Namespace) -> Result:
    """Say whether runs on the same images differ by more than noise.

    Several seeds of one recipe become mean +- standard deviation.
    """
    from pipeline.evaluation.compare import compare_runs

    return compare_runs([Path(run) for run in arguments.positionals], arguments.split, arguments.out)


def audit(arguments: Namespace) -> Result:
    """Find likely label errors and near-duplicates in the data.

    It compares images by the features of a trained model.
    """
    config = config_of(arguments)
    from pipeline.audit.audit import audit_data

    return audit_data(config)


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals", nargs="*", metavar="IMAGE", help=f"picture files, and {OVERRIDE}: {OVERRIDES}"
    )
    config_option(parser)


def predict(arguments: Namespace) -> Result:
    """Name the most likely classes of single pictures.

    The model is the run's best checkpoint. A picture that cannot be read is named, and the others are classified.
    """
    from pipeline.evaluation.predict_images import classify

    images, overrides = paths_and_overrides(arguments.positionals)
    return classify(load_config(arguments.config, overrides), images)


VERBS = {
    "eval": Verb(
        evaluate,
        configuration,
        (
            "plumage eval --config configs/cub200_resnet50.yaml run.name=low_lr",
            "plumage eval --config configs/cub200_resnet50.yaml run.name=low_lr eval.split=val",
        ),
    ),
    "report": Verb(
        report,
        configuration,
        (
            "plumage report --config configs/cub200_resnet50.yaml run.name=low_lr",
            "plumage report --config configs/cub200_resnet50.yaml run.name=low_lr report.gallery=200",
        ),
    ),
    "compare": Verb(
        compare,
        _compare_arguments,
        (
            "plumage compare runs/baseline runs/low_lr",
            "plumage compare runs/baseline runs/low_lr runs/low_lr_seed1 --split val --out comparison",
        ),
    ),
    "audit": Verb(
        audit,
        configuration,
        (
            "plumage audit --config configs/cub200_resnet50.yaml",
            "plumage audit --config configs/cub200_resnet50.yaml run.name=low_lr",
        ),
    ),
    "predict": Verb(
        predict,
        _predict_arguments,
        (
            "plumage predict --config configs/cub200_resnet50.yaml one.jpg two.jpg",
            "plumage predict --config configs/cub200_resnet50.yaml run.name=low_lr one.jpg",
        ),
    ),
}
