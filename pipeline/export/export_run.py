"""The verb `export`: RUN/export, a model that answers without this program or torch, and the proof that it does."""

import dataclasses
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.answering import run_set_rule, unknown_threshold
from pipeline.answering.fitted_temperature import fitted_temperature
from pipeline.common import console, files
from pipeline.common.errors import CheckpointError, ConfigError, ExportError, UserError
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks, select_device
from pipeline.evaluation import training_state
from pipeline.export import description, golden, heat_maps, hub_folder, onnx_file, small_forms
from pipeline.export.network import ExportedNetwork
from pipeline.export.onnx_file import Graph, GraphFault, Images
from pipeline.export.proof import TOLERANCE, Agreement, Trained, channels_first, compare, drawn_batches
from pipeline.export.small_forms import Form
from pipeline.inference import load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import memory_errors
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory

VAL_BATCH = 64
CHECK_S = 600.0  # for predict.py to verify five pictures, on a busy machine too
MEMORY = (
    "export: memory does not suffice to compare 64 images at a time",
    "export on a machine with more memory",
)
REPORT_IT = "nothing was written; `predict` and `eval` of the run are not affected; please report this"


def export_run(config: Config, forms: Collection[Form] = ()) -> dict[str, Any]:
    """Write RUN/export, whole or not at all; an earlier one stays until then. What was measured, in plain types.

    Args:
        forms: smaller ones of the graph that are written as well, if they answer as it does.

    Raises:
        ExportError: no exporter's graph answers as the trained model does, or predict.py does not.
        UserError: the checkpoint is missing, or `eval.tta` is one that a graph cannot hold.
    """
    if config.eval.tta == "ten_crop":
        raise ConfigError(
            "eval.tta: ten_crop takes its crops from the whole picture, but the graph sees one crop; set none or flip"
        )
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"device": "cpu"})}
    ).at_evaluation
    run, ranks = RunDirectory(config.run_dir), Ranks.single(select_device(config.train))
    training_state.warn_of_unfinished(run)
    loaded, classes = load_model.load_model_without_data(config, load_model.checkpoint_path(config), ranks)
    content = _content(loaded)
    temperature, calibrated = fitted_temperature(config, loaded)
    console.say(f"export  {loaded.path}, epoch {loaded.epoch}; {calibrated}")
    loaded = _in_fp32(loaded)
    unknown = unknown_threshold.of_run(run, loaded.sha256, config.views)
    set_rule = run_set_rule.of_run(run, loaded.sha256, config.views)
    mapped = loaded.model if heat_maps.are_logits(loaded.model, config.data.image_px) else None
    maps = None if mapped is None else min(heat_maps.MOST_CLASSES, len(classes))
    facts = description.describe(config, loaded, classes, content, temperature, unknown, set_rule, maps)
    score = None if unknown is None else unknown.score
    trained = Trained(loaded.network, temperature or 1.0, config.eval.tta, score, mapped)
    data = _validation(config, content, loaded.path)
    with files.replacing_folder(run.export) as folder, memory_errors(*MEMORY):
        proof = _write_proved_graph(config, loaded.model, trained, data, folder / "model.onnx")
        onnx_file.describe(folder / "model.onnx", facts)
        (folder / "predict.py").write_bytes(Path(__file__).with_name("standalone.py").read_bytes())
        (folder / "requirements.txt").write_text(description.requirements(), encoding="utf-8")
        golden.write(folder / "golden", config, loaded)
        some = list(islice(drawn_batches(config.data.image_px), 3))
        proof["hub"] = hub_folder.write(folder / "hub", config, loaded, content, facts, some)
        proof |= small_forms.write(folder, config, data, forms, facts)
        files.write_json(folder / "export.json", {**proof, "metadata": facts})
        for path in sorted(folder.glob("model*.onnx")):
            _check_script(folder, run, path.name)
        size_bytes = (folder / "model.onnx").stat().st_size
    console.say(f"export  {run.export}: model.onnx, {files.size_in_words(size_bytes)}; try predict.py there")
    return {"export": str(run.export), "size_bytes": size_bytes, **proof}


def _in_fp32(loaded: LoadedModel) -> LoadedModel:
    """The model as the graph computes it."""
    if loaded.precision == "fp32":
        return loaded
    console.say(
        f"export  the graph computes in fp32, and is compared with the model in fp32, not {loaded.precision}"
    )
    return dataclasses.replace(loaded, precision="fp32", fused=None)


def _content(loaded: LoadedModel) -> dict[str, Any]:
    """The content of the checkpoint that a model is from."""
    content = checkpoints.read(loaded.path)
    if files.digest_of_file(loaded.path) != loaded.sha256:
        raise CheckpointError(
            f"{loaded.path}: was replaced while it was read; export again when the training is over"
        )
    return content


def _validation(config: Config, content: dict[str, Any], path: Path) -> Prepared | None:
    """The data with the run's validation images; None, and said, where they are not at hand, or there are none.

    Args:
        content: of the checkpoint; path: its file.
    """
    try:
        data = prepare.load(config)
        names, digest = sample_table.class_names(data.samples), sample_table.digest(data.samples)
        checkpoints.check_data(content, path, names, digest)
    except UserError as error:
        console.warn(f"the graph is compared on drawn images, not on the validation images: {error}")
        return None
    if not data.rows("val"):
        console.warn("the graph is compared only on drawn images, as the run has no validation images")
        return None
    return data


def _write_proved_graph(
    config: Config, model: Classifier, trained: Trained, data: Prepared | None, path: Path
) -> dict[str, Any]:
    """Write the graph of the first exporter that passes; which one it is, and what was compared.

    Args:
        model: that becomes the graph; trained: what it is compared with.
    """
    maps = trained.mapped is not None
    network = ExportedNetwork(model, trained.temperature, trained.tta, trained.score, maps=maps)
    failures = []
    for name, exporter in onnx_file.EXPORTERS.items():
        try:
            onnx_file.write(exporter, network, config.data.image_px, path)
            agreements = _compare(config, trained, Graph(path), data)
        except GraphFault as fault:
            faults = [str(fault)]
        else:
            faults = [f"{fault} ({images})" for images, one in agreements.items() for fault in one.faults]
            if not faults:
                compared = {images: dataclasses.asdict(one) for images, one in agreements.items()}
                return {"exporter": name, "tolerance": TOLERANCE, "compared": {"val": None} | compared}
        failures.append(f"{name}: {', '.join(faults)}")
        console.say(f"export  the graph of the exporter {failures[-1]}")
    raise ExportError(
        f"{config.run_dir}: no ONNX graph reproduces the trained model: {'; '.join(failures)}; {REPORT_IT}"
    )


def _compare(
    config: Config, trained: Trained, graph: Graph, data: Prepared | None
) -> Mapping[str, Agreement]:
    """How far a graph agrees on drawn images, and on the validation images."""
    agreements = {"drawn": compare(trained, graph, drawn_batches(config.data.image_px))}
    if data is not None:
        agreements["val"] = compare(trained, graph, _val_batches(config, data))
    for images, one in agreements.items():
        console.say(
            f"export  {one.labels_equal:,} of {one.images:,} labels equal ({images}); largest difference of logits "
            f"{one.logits:.1e} of the largest, of probabilities {one.probabilities:.1e}"
        )
    return agreements


def _val_batches(config: Config, data: Prepared) -> Iterator[Images]:
    crop, rows = CentreCrop(config.data), data.rows("val")
    with console.bar("compare", len(rows)) as bar:
        for start in range(0, len(rows), VAL_BATCH):
            batch = [crop(data.store[row], 0, 0) for row in rows[start : start + VAL_BATCH]]
            yield channels_first(batch)
            bar.advance(len(batch))


def _check_script(folder: Path, run: RunDirectory, model: str) -> None:
    """Have predict.py verify the pictures of golden/ with a model, in a process of its own."""
    words = [sys.executable, str(folder / "predict.py"), "--check", "--model", model]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=CHECK_S)
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{run.export}: predict.py did not verify its pictures within {CHECK_S:.0f} s; export again on a machine "
            "with less load"
        ) from error
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()) or f"exit code {done.returncode}"
        raise ExportError(
            f"{run.export}: predict.py does not reproduce the trained model: {said}; {REPORT_IT}"
        )
