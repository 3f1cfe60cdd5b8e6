"""Verbs that evaluate a trained model, and use it to check the data."""

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
    """Predict a split and report accuracy per class.

    The model is a checkpoint of the run; nothing is trained.
    """
    config = config_with_data(arguments)
    with importing():
        from pipeline.api.jobs import evaluate_and_report

    return evaluate_and_report(config)


def report(arguments: Namespace) -> Result:
    """Rebuild report.html from stored predictions.

    No split is read again.
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
        help="also write comparison.json, the comparisons as LaTeX and CSV, classes.csv and changed.csv there",
    )


def compare(arguments: Namespace) -> Result:
    """Say whether runs on the same images differ by more than noise.

    Seeds of one recipe become mean +- sd; two recipes are compared seed by seed where the seeds match.
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
    """Evaluate a backbone's features without training it.

    A linear head, nearest neighbours and the nearest class mean are fitted on training images and predict test.
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
        help="number of classes listed for each picture; default: %(default)s",
    )
    parser.add_argument("--tta", action="store_true", help="average with the mirror image: eval.tta=flip")
    parser.add_argument(
        "--prior",
        type=user_path,
        metavar="FILE",
        help="CSV of class and weight: how often a class occurs in these pictures; 0: never",
    )
    parser.add_argument(
        "--rank",
        default="class",
        metavar="RANK",
        help="answer at a rank of the hierarchy, such as genus, by summed probabilities; default: %(default)s",
    )
    parser.add_argument("--logits", action="store_true", help="also give the logits of all classes")
    parser.add_argument("--features", action="store_true", help="also give the input of the last layer")
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
            help=f"write one row per picture as it is classified: {what}",
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text}: not a whole number from 1")
    return int(text)


def predict(arguments: Namespace) -> Result:
    """Name the most likely classes of pictures.

    The model is the run's best checkpoint. Unreadable pictures are named, and the others are classified.
    """
    from pipeline.api.configuration import config_of_run
    from pipeline.config.load import load_config
    from pipeline.runs.directory import RunDirectory

    if "" in arguments.positionals:
        raise DataError("predict: one of the names is empty; check whether a shell variable is unset")
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
        from pipeline.answering.answer_files import SUFFIXES, AnswerFile
        from pipeline.answering.predict_images import PredictOptions, classify

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
