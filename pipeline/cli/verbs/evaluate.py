"""Verbs that judge what was learned, and the data by it."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from pipeline.cli.verbs.verb import (
    OVERRIDE,
    OVERRIDES,
    Result,
    Verb,
    config_option,
    config_with_data,
    configuration,
    importing,
    paths_and_overrides,
    user_path,
)
from pipeline.common.errors import DataError


def evaluate(arguments: Namespace) -> Result:
    """Predict a split and report accuracy per class; never trains.

    The model is a checkpoint of the run.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.api.jobs import evaluate_and_report

    return evaluate_and_report(config)


def report(arguments: Namespace) -> Result:
    """Write report.html anew from stored predictions.

    It does not read a split again.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.report.page import rebuild

    result = rebuild(config)
    if result:  # ranks other than the first have none
        from pipeline.runs.wandb_process import publish

        publish(config)
    return result


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="+",
        metavar="RUN",
        help="a run directory, such as runs/NAME, or a folder of `repeat`, such as runs/repeats/NAME",
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="default: %(default)s"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="write comparison.json, the comparisons as LaTeX and CSV, classes.csv and changed.csv there too",
    )


def compare(arguments: Namespace) -> Result:
    """Say whether runs on the same images differ by more than noise.

    Several seeds of one recipe become mean +- standard deviation; the same seeds of two are compared in pairs.
    """
    with importing():
        from pipeline.evaluation.compare import compare_runs

    return compare_runs([Path(run) for run in arguments.positionals], arguments.split, arguments.out)


def audit(arguments: Namespace) -> Result:
    """Find likely label errors and near-duplicates in the data.

    It compares images by the features of a trained model.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.audit.audit import audit_data

    return audit_data(config)


def probe(arguments: Namespace) -> Result:
    """Say how far a backbone's features go without any training.

    A linear head, the nearest neighbours and the nearest class mean learn from training images, and predict the test.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.probe.probe import probe as probe_backbone

    return probe_backbone(config)


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "positionals",
        nargs="*",
        metavar="RUN|IMAGE",
        help="a run directory first, unless a configuration names it; picture files, folders of them, patterns, or - "
        f"for names from standard input; and {OVERRIDE}: {OVERRIDES}",
    )
    config_option(parser)
    parser.add_argument(
        "--top",
        type=_positive,
        default=5,
        metavar="N",
        help="number of classes of a picture; default: %(default)s",
    )
    parser.add_argument("--tta", action="store_true", help="average with the mirror image: eval.tta=flip")
    parser.add_argument(
        "--prior",
        type=user_path,
        metavar="FILE",
        help="CSV: class, weight: how often it occurs here and now; 0: never",
    )
    parser.add_argument(
        "--rank",
        default="class",
        metavar="RANK",
        help="answer at a rank of the hierarchy, such as genus: probabilities are summed; default: %(default)s",
    )
    parser.add_argument("--logits", action="store_true", help="answer the logits of all classes too")
    parser.add_argument("--features", action="store_true", help="answer the input of the last layer too")
    parser.add_argument(
        "--heatmap",
        type=user_path,
        metavar="FOLDER",
        help="write each picture under the heat map (Grad-CAM) of its most likely class into a new folder",
    )
    formats = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "JSON lines, or - for standard output"),
        ("csv", "CSV, or -"),
        ("parquet", "Parquet"),
    ):
        formats.add_argument(
            f"--{name}",
            type=user_path,
            metavar="FILE",
            help=f"write a row a picture as it comes: {what}",
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text}: not a whole number from 1")
    return int(text)


def predict(arguments: Namespace) -> Result:
    """Name the most likely classes of pictures.

    The model is the run's best checkpoint. A picture that cannot be read is named, and the others are classified.
    """
    from pipeline.api.configuration import config_of_run
    from pipeline.config.load import load_config
    from pipeline.runs.directory import RunDirectory

    if "" in arguments.positionals:
        raise DataError("predict: one of the names is empty; see whether a variable of the shell is unset")
    images, overrides = paths_and_overrides(arguments.positionals)
    run = None
    if arguments.config is None and images and RunDirectory(images[0]).config_file.is_file():
        run, *images = images
    config = load_config(arguments.config, overrides) if run is None else config_of_run(run, overrides)
    names_run = run is not None or arguments.config is not None or overrides
    if images and not names_run and not RunDirectory(config.run_dir).checkpoints.is_dir():
        raise DataError(
            f"{images[0]}: not a run directory, as it has no config.yaml; name the run first, such as runs/NAME, or its "
            "configuration with --config"
        )
    if arguments.tta and config.eval.tta == "none":
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"tta": "flip"})})
    with importing():
        from pipeline.evaluation.answer_files import SUFFIXES, AnswerFile
        from pipeline.evaluation.predict_images import PredictOptions, classify

    paths = {name: getattr(arguments, name) for name in SUFFIXES}
    file = next((AnswerFile(name, path) for name, path in paths.items() if path is not None), None)
    heat_maps = None
    if arguments.heatmap is not None:
        from pipeline.explain.heat_map_files import HeatMapFiles

        heat_maps = HeatMapFiles(arguments.heatmap)
    options = PredictOptions(
        arguments.top, arguments.rank, arguments.logits, arguments.features, arguments.prior, file, heat_maps
    )
    return classify(config, images, options)


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
            "plumage compare runs/baseline runs/low_lr runs/low_lr_seed1 --split val --out comparison",
            "plumage compare runs/repeats/baseline runs/repeats/low_lr",
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
    "probe": Verb(
        probe,
        configuration,
        (
            "plumage probe --config configs/cub200_mobilenetv2_cpu.yaml model.weights=WEIGHTS.pth",
            "plumage probe data.source=folder data.path=birds/ run.name=birds model.name=resnet18.a1_in1k",
        ),
    ),
    "predict": Verb(
        predict,
        _predict_arguments,
        (
            "plumage predict runs/low_lr one.jpg 'more/**/*.jpg' --top 3",
            "plumage predict runs/low_lr folder --csv answers.csv --prior here_in_may.csv",
        ),
    ),
}
