"""Everything that needs the model again, computed once for a set of predictions and kept beside them.

RUN/eval/SPLIT/explain/
  heatmaps.npz          id, and the map of the predicted class: float16 [n, h, w]
  pointing.csv          each drawn image: where its map peaks, on which part, how much lies in the box
  pointing_game.csv     the same in sum, for all, right and wrong predictions
  parts.csv             how often the peak sits on which part
  nearest.csv           the nearest training images of the mistaken ones
  embedding.csv         a place on the t-SNE map for each image
  retrieval.json        recall@1 and recall@5
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import files, tables
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.explain import annotations, grad_cam, neighbours, selection
from pipeline.explain.pointing_game import on_parts, summary, table
from pipeline.inference import features, load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.runs import predictions

RECALL_AT = (1, 5)


@dataclass
class Explained:
    """What is known besides the predictions; what could not be computed is None, and `left_out` says why."""

    maps: dict[int, npt.NDArray[np.float16]] = field(default_factory=dict)  # by image id, [h, w] in 0..1
    drawn: int = 0  # images that the pointing game was played with
    pointing_game: pd.DataFrame | None = None
    parts: pd.DataFrame | None = None
    nearest: pd.DataFrame | None = None
    embedding: pd.DataFrame | None = None
    recall: dict[int, float] | None = None
    left_out: dict[str, str] = field(default_factory=dict)  # section: one sentence


@dataclass(frozen=True)
class StoredEvaluation:
    """A stored evaluation. about: `metrics.json`; outputs: in the order of `predicted`."""

    config: Config
    data: prepare.Prepared
    folder: Path
    about: Mapping[str, Any]
    predicted: pd.DataFrame
    pairs: pd.DataFrame
    outputs: predictions.Outputs

    @cached_property
    def rows(self) -> pd.Series:
        """The row of the sample table of each image id."""
        ids = self.data.samples["id"].to_numpy()
        return pd.Series(np.arange(len(ids)), index=ids)

    @cached_property
    def digest(self) -> str:
        """Of the predictions: what was computed for other ones is not used."""
        return files.digest_of_file(self.folder / "predictions.csv")


def explain_evaluation(evaluation: StoredEvaluation) -> Explained:
    """Read what is kept for these predictions, and compute what is missing.

    Raises:
        UserError: the checkpoint gives other predictions, or annotations are damaged.
    """
    found = Explained()
    source = _Source(evaluation)
    _maps(evaluation, source, found)
    _features(evaluation, found)
    _nearest(evaluation, source, found)
    return found


class _Source:
    """The model that made the predictions, loaded when something has to be computed with it."""

    def __init__(self, evaluation: StoredEvaluation) -> None:
        self._evaluation = evaluation
        self.ranks = Ranks.single(process_group.select_device(evaluation.config.train.device)
        )  # this process alone

    @cached_property
    def model(self) -> LoadedModel | None:
        """None when the checkpoint, wherever the run directory is now, is gone or has been written over."""
        recorded = Path(str(self._evaluation.about["checkpoint"]))
        for path in (self._evaluation.config.checkpoints_dir / recorded.name, recorded):
            if path.is_file() and files.digest_of_file(path) == self._evaluation.about["checkpoint_sha256"]:
                samples = self._evaluation.data.samples
                return load_model.load_model(self._evaluation.config, samples, path, self.ranks)
        return None

    @property
    def gone(self) -> str:
        """Why there is no model."""
        about = self._evaluation.about
        return (
            f"the checkpoint of these predictions ({Path(str(about['checkpoint'])).name} of epoch {about['epoch']}) "
            "is no longer there; `make eval` predicts with the present one"
        )


def _maps(evaluation: StoredEvaluation, source: _Source, found: Explained) -> None:
    report = evaluation.config.report
    drawn = selection.sample(evaluation.predicted, report.explained, evaluation.config.seed)
    shown = [int(value) for value in selection.worst(evaluation.predicted, report.gallery)["id"]]
    shown += selection.of_pairs(evaluation.predicted, evaluation.pairs, report.pairs)
    ids = sorted({*drawn, *shown})
    path = evaluation.folder / "explain" / "heatmaps.npz"
    inputs = {"predictions": evaluation.digest, "ids": ids}
    if not _done(path, inputs):
        if source.model is None:
            found.left_out["heat maps"] = f"There are no heat maps: {source.gone}."
            return
        layer = grad_cam.spatial_layer(source.model.model, evaluation.config.data.image_px)
        if layer is None:
            name = evaluation.config.model.name
            found.left_out["heat maps"] = (
                f"There are no heat maps: {name} has no last layer with height and width."
            )
            return
        rows = evaluation.rows.loc[ids].to_numpy("int64")
        classes = evaluation.predicted.set_index("id").loc[ids, "predicted"].to_numpy("int64")
        made = grad_cam.grad_cam(
            evaluation.config, evaluation.data, source.model.model, layer, rows, classes, source.ranks
        )
        with files.replacing(path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, id=np.array(ids), maps=made)
        files.stamp(_stamp(path), inputs)
    with np.load(path, allow_pickle=False) as content:
        found.maps = dict(zip(content["id"].tolist(), content["maps"], strict=True))
    _point(evaluation, drawn, found)


def _point(evaluation: StoredEvaluation, drawn: list[int], found: Explained) -> None:
    """Hold the drawn images' maps against what people marked."""
    config = evaluation.config.data
    samples = evaluation.data.samples.iloc[evaluation.rows.loc[drawn].to_numpy("int64")]
    boxes = annotations.boxes_in_crop(config, samples)
    if np.isnan(boxes).any(axis=1).all():
        found.left_out["pointing game"] = "The data set has no boxes to hold the heat maps against."
        return
    root = prepare.find_root(config)
    parts = annotations.parts_in_crop(config, samples, root) if root else None
    predicted = evaluation.predicted.set_index("id", drop=False).loc[drawn].reset_index(drop=True)
    maps = np.stack([found.maps[image] for image in drawn])
    each = table(predicted, maps, boxes, parts, config.image_px)
    found.drawn = len(each)
    found.pointing_game = summary(each)
    folder = evaluation.folder / "explain"
    tables.write_csv(each, folder / "pointing.csv")
    tables.write_csv(found.pointing_game, folder / "pointing_game.csv")
    if parts is not None:
        found.parts = on_parts(each, parts.names)
        tables.write_csv(found.parts, folder / "parts.csv")


def _features(evaluation: StoredEvaluation, found: Explained) -> None:
    """Retrieval, and the map of all images."""
    folder = evaluation.folder / "explain"
    embedding, retrieval = folder / "embedding.csv", folder / "retrieval.json"
    inputs = {
        "predictions": evaluation.digest,
        "features": files.digest_of_file(evaluation.folder / "outputs.npz"),
    }
    if not _done(embedding, inputs):
        xy = neighbours.embedding(evaluation.outputs.features, evaluation.config.seed)
        places = np.empty((0, 2), np.float32) if xy is None else xy
        ids = evaluation.predicted["id"].to_numpy()[: len(places)]
        tables.write_csv(pd.DataFrame({"id": ids, "x": places[:, 0], "y": places[:, 1]}), embedding)
        labels = evaluation.predicted["label"].to_numpy("int64")
        recalls = neighbours.recall(evaluation.outputs.features, labels, RECALL_AT) if len(labels) > 1 else {}
        files.write_json(retrieval, recalls)
        files.stamp(_stamp(embedding), inputs)
    found.embedding = pd.read_csv(embedding)
    found.recall = {int(k): float(value) for k, value in files.read_json(retrieval).items()}


def _nearest(evaluation: StoredEvaluation, source: _Source, found: Explained) -> None:
    """The training images nearest to each mistaken one that a page of a pair shows."""
    k = evaluation.config.report.neighbours
    rows = evaluation.data.training_rows(evaluation.config)
    ids = selection.of_pairs(evaluation.predicted, evaluation.pairs, evaluation.config.report.pairs)
    if k == 0 or not ids:
        return
    path = evaluation.folder / "explain" / "nearest.csv"
    inputs = {"predictions": evaluation.digest, "ids": ids, "k": k, "split": "train"}
    if not _done(path, inputs):
        if source.model is None:
            found.left_out["nearest"] = f"There are no nearest training images: {source.gone}."
            return
        known = features.cached(
            evaluation.config,
            evaluation.data,
            source.model.model,
            "train",
            source.model.precision,
            source.ranks,
            source.model.sha256,
        )
        position = pd.Series(np.arange(len(evaluation.predicted)), index=evaluation.predicted["id"])
        near, similar = neighbours.nearest(
            known, evaluation.outputs.features[position.loc[ids].to_numpy()], min(k, len(rows))
        )
        train = evaluation.data.samples.iloc[rows[near.ravel()]]
        k = near.shape[1]
        about = {"id": np.repeat(ids, k), "rank": np.tile(np.arange(1, k + 1), len(ids))}
        other = {f"train_{name}": train[name].to_numpy() for name in ("id", "path", "class_name")}
        tables.write_csv(pd.DataFrame({**about, **other, "similarity": similar.ravel()}), path)
        files.stamp(_stamp(path), inputs)
    found.nearest = tables.read_csv(path)


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".stamp.json")


def _done(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether a file is there and was made from the same inputs."""
    return path.is_file() and files.stamped(_stamp(path), inputs)
