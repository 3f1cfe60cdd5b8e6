"""Writes report.html: one file that needs no network, made from the stored files of an evaluation; tables beside it."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from pipeline.common import console, files, tables
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.evaluation import evaluation_lock, label_sets, results, run_taxonomy, training_state
from pipeline.explain import explain, neighbours, randomised
from pipeline.report import content, page_values, paper_tables, provenance
from pipeline.report.pictures import Pictures
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory, RunDirectory


def rebuild(config: Config) -> dict[str, Any]:
    """Recompute the metrics from stored predictions and write report.html; no split is read again.

    Returns the page's path and size.

    Raises:
        UserError: predictions or data are missing, damaged, or do not belong together; or another process evaluates.
    """
    run = RunDirectory(config.run_dir)
    training_state.warn_of_unfinished(run)
    path = build(config, run.evaluation(config.eval.split))
    return {"report": str(path), "size_bytes": path.stat().st_size}


def build(config: Config, folder: EvaluationDirectory, *, recompute: bool = True) -> Path:
    """Write report.html and tables/ into the folder of an evaluation; return the page's path.

    Heat maps, features of training images and the t-SNE map are computed unless they are stored already.
    Without the checkpoint that made the predictions, the sections that need it say so.

    Args:
        recompute: compute the metrics and tables again from the stored predictions.

    Raises:
        UserError: predictions or data are missing, damaged, or do not belong together; or another process evaluates.
    """
    # before the lock, which is a file: a run without an evaluation stays as it is
    config = results.config_of(config, predictions.read_metrics(folder))
    data = prepare.load(config)
    with evaluation_lock.held(folder):
        if recompute:
            if config.eval.labels:
                label_sets.write(folder, label_sets.of(config, data))
            taxonomy = run_taxonomy.with_data(config, data)
            results.compute_metrics(
                folder, data.samples, results.learned_rows(config, data), taxonomy=taxonomy
            )
        evaluation = explain.StoredEvaluation(
            config=config,
            data=data,
            folder=folder,
            metrics=predictions.read_metrics(folder),
            stored=predictions.StoredPredictions.read(folder, data.samples),
            pairs=tables.read_csv(folder.table("confused_pairs")),
        )
        explained = explain.explain_evaluation(evaluation)
        files.write_text(folder.report_file, render(evaluation, explained))
        paper_tables.write(folder.paper_tables, evaluation.metrics, content.classes(evaluation), explained)
    console.say(f"report  {folder.report_file}  {files.size_in_words(folder.report_file.stat().st_size)}")
    return folder.report_file


def render(evaluation: explain.StoredEvaluation, explained: explain.Explained) -> str:
    """The page as HTML."""
    pictures = Pictures(evaluation.config.data, evaluation.data, evaluation.config.report.picture_px)
    pairs = content.pairs(evaluation, explained, pictures)
    classes = content.classes(evaluation)
    data = {
        **content.confusion(evaluation),
        "classes": content.class_numbers(classes) if content.is_long(classes) else None,
        "points": content.embedding(evaluation, explained),
        "pairs": [pair["labels"] for pair in pairs],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = page_values.percent
    environment.globals["interval"] = page_values.interval
    return environment.from_string(_read("page.html")).render(
        css=_read("page.css"),
        js=_read("page.js"),
        data=data,
        about=dict(evaluation.metrics),
        run=evaluation.config.run_dir.name,
        checkpoint=Path(str(evaluation.metrics["checkpoint"])).name,
        model=evaluation.config.model.name,
        config=evaluation.config,
        explained=explained,
        falls_to_chance=explained.randomised is not None and randomised.falls_to_chance(explained.randomised),
        queries=len(neighbours.queries_of(len(evaluation.predicted))),
        plots=content.plots(evaluation),
        classes=content.class_rows(evaluation, classes, pictures),
        untaught=content.untaught(evaluation),
        pairs=pairs,
        gallery=content.gallery(evaluation, explained, pictures),
        audit=content.audit(evaluation, pictures),
        made=provenance.rows(evaluation.config, evaluation.folder, evaluation.metrics),
        origin=content.origin(RunDirectory(evaluation.config.run_dir), evaluation.config.model.name),
    )


def _read(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text(encoding="utf-8")
