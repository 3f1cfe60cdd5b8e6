"""Explanations of stored predictions: heat maps, pointing game, nearest training images, t-SNE map, retrieval.

They need the model again, so they are computed once for a set of predictions and stored beside these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import arrays, files, seeding, tables
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation.results import learned_rows
from pipeline.explain import (
    annotations,
    grad_cam,
    neighbours,
    object_alone,
    pointing_game,
    randomised,
    selection,
    stored,
)
from pipeline.inference import features, load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import EvaluationDirectory, RunDirectory
from pipeline.runs.predictions import StoredPredictions

RECALL_AT = (1, 5)
MAP_IMAGES = 10_000  # at most, on the t-SNE map
RANDOMISED_IMAGES = 200  # at most, for heat maps of random weights


@dataclass
class Explained:
    """Explanations of an evaluation; what could not be computed is None, and `left_out` says why."""

    maps: dict[int, npt.NDArray[np.float16]] = field(default_factory=dict)  # by image id, [h, w] in 0..1
    drawn: int = 0  # number of images in the pointing game
    pointing_game: pd.DataFrame | None = None
    parts: pd.DataFrame | None = None
    views: pd.DataFrame | None = None  # accuracy on the box alone and on the background alone
    randomised: pd.DataFrame | None = None  # the pointing game with more and more random weights
    nearest: pd.DataFrame | None = None
    embedding: pd.DataFrame | None = None
    recall: dict[int, float] | None = None
    left_out: dict[str, str] = field(default_factory=dict)  # section: one sentence


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation of a run, as it is stored; metrics: the content of metrics.json."""

    config: Config
    data: prepare.Prepared
    folder: EvaluationDirectory
    metrics: Mapping[str, Any]
    stored: StoredPredictions
    pairs: pd.DataFrame

    @property
    def predicted(self) -> pd.DataFrame:
        """The predictions table."""
        return self.stored.table

    @cached_property
    def rows(self) -> pd.Series:
        """The row of the sample table of each image id."""
        ids = self.data.samples["id"].to_numpy()
        return pd.Series(np.arange(len(ids)), index=ids)

    @cached_property
    def digest(self) -> str:
        """Digest of the predictions: explanations of other predictions are computed again."""
        return files.digest_of_file(self.folder.predictions_file)

    @cached_property
    def crops(self) -> str:
        """Digest of what the images' crops depend on: explanations of other crops are computed again."""
        return features.digest_of_crops(self.config, self.data)


def explain_evaluation(evaluation: StoredEvaluation) -> Explained:
    """Read the explanations that are stored for these predictions, and compute the missing ones.

    Raises:
        UserError: the checkpoint gives other predictions, or annotations are damaged.
    """
    explained = Explained()
    source = _ModelSource(evaluation)
    _add_heat_maps(evaluation, source, explained)
    if evaluation.config.report.sanity_checks:
        _add_sanity_checks(evaluation, source, explained)
    _add_embedding(evaluation, explained)
    _add_nearest(evaluation, source, explained)
    return explained


class _ModelSource:
    """The model that made the predictions, loaded at its first use; before it no GPU is taken."""

    def __init__(self, evaluation: StoredEvaluation) -> None:
        self._evaluation = evaluation

    @cached_property
    def ranks(self) -> Ranks:
        """The device that the model is on."""
        # A picture, not a number: gradients of some layers have no deterministic algorithm on GPUs.
        train = self._evaluation.config.train.model_copy(update={"deterministic": False})
        return Ranks.single(process_group.select_device(train))

    @cached_property
    def model(self) -> LoadedModel | None:
        """None when the checkpoint, wherever the run directory is now, is gone or was overwritten."""
        config, metrics = self._evaluation.config, self._evaluation.metrics
        recorded = Path(str(metrics["checkpoint"]))
        for path in (RunDirectory(config.run_dir).checkpoints / recorded.name, recorded):
            if path.is_file() and files.digest_of_file(path) == metrics["checkpoint_sha256"]:
                return load_model.load_model(config, self._evaluation.data.samples, path, self.ranks)
        return None

    @property
    def reason(self) -> str:
        """Why there is no model."""
        metrics = self._evaluation.metrics
        return (
            f"the checkpoint of these predictions ({Path(str(metrics['checkpoint'])).name} of epoch "
            f"{metrics['epoch']}) is no longer there; `make eval` predicts with the present one"
        )


def _add_heat_maps(evaluation: StoredEvaluation, source: _ModelSource, explained: Explained) -> None:
    """The heat maps of the images that the page shows or the pointing game draws, and the pointing game."""
    report, config = evaluation.config.report, evaluation.config
    drawn = selection.sample(evaluation.predicted, report.explained, config.seed)
    shown = [int(value) for value in selection.worst(evaluation.predicted, report.gallery)["id"]]
    shown += selection.mistaken_of_pairs(evaluation.predicted, evaluation.pairs, report.pairs)
    ids = sorted({*drawn, *shown})
    path = evaluation.folder.heat_maps_file
    inputs = {"predictions": evaluation.digest, "ids": ids, "crops": evaluation.crops}
    if not stored.is_kept([path], inputs):
        if source.model is None:
            explained.left_out["heat maps"] = f"There are no heat maps: {source.reason}."
            return
        layer = grad_cam.spatial_layer(source.model.model, config.data.image_px)
        if layer is None:
            explained.left_out["heat maps"] = (
                f"There are no heat maps: {config.model.name} has no last layer with height and width."
            )
            return
        rows = evaluation.rows.loc[ids].to_numpy("int64")
        classes = evaluation.predicted.set_index("id").loc[ids, "predicted"].to_numpy("int64")
        maps = grad_cam.class_maps(
            config, evaluation.data, source.model.model, layer, rows, classes, source.ranks
        )
        with stored.making([path], inputs):
            arrays.write_npz(path, {"id": np.array(ids), "maps": maps}, compress=True)
    kept_ids, kept_maps = arrays.read_npz(path, ["id", "maps"])
    explained.maps = dict(zip(kept_ids.tolist(), kept_maps, strict=True))
    _add_pointing_game(evaluation, drawn, explained)


def _add_pointing_game(evaluation: StoredEvaluation, drawn: list[int], explained: Explained) -> None:
    """Compare the heat maps of the drawn images with boxes and parts that people marked."""
    config, folder = evaluation.config.data, evaluation.folder
    samples = evaluation.data.samples.iloc[evaluation.rows.loc[drawn].to_numpy("int64")]
    boxes = annotations.boxes_in_crop(config, samples)
    if np.isnan(boxes).any(axis=1).all():
        explained.left_out["pointing game"] = "The data set has no boxes to compare the heat maps with."
        return
    root = prepare.find_root(config)
    parts = annotations.parts_in_crop(config, samples, root) if root else None
    predicted = evaluation.predicted.set_index("id", drop=False).loc[drawn].reset_index(drop=True)
    maps = np.stack([explained.maps[image] for image in drawn])
    images = pointing_game.play(predicted, maps, boxes, parts, config.image_px)
    explained.drawn = len(images)
    explained.pointing_game = pointing_game.rates(images)
    tables.write_csv(images, folder.pointing_file)
    tables.write_csv(explained.pointing_game, folder.pointing_game_file)
    if parts is not None:
        explained.parts = pointing_game.count_parts(images, parts.names)
        tables.write_csv(explained.parts, folder.parts_file)


def _add_sanity_checks(evaluation: StoredEvaluation, source: _ModelSource, explained: Explained) -> None:
    """Accuracy without the background and without the object, and the pointing game with random weights."""
    config, data, folder = evaluation.config, evaluation.data, evaluation.folder
    drawn = selection.sample(evaluation.predicted, config.report.explained, config.seed)
    rows = evaluation.rows.loc[drawn].to_numpy("int64")
    boxes = annotations.boxes_in_crop(config.data, data.samples.iloc[rows])
    marked = ~np.isnan(boxes).any(axis=1)
    if not marked.any():
        explained.left_out["sanity checks"] = "The data set has no boxes, which the sanity checks need."
        return
    ids, rows, boxes = np.array(drawn)[marked], rows[marked], boxes[marked]
    inputs = {"predictions": evaluation.digest, "ids": ids.tolist(), "crops": evaluation.crops}
    if not stored.is_kept([folder.views_file], inputs):
        if source.model is None:
            explained.left_out["sanity checks"] = f"There are no sanity checks: {source.reason}."
            return
        named = object_alone.answers(config, data, source.model, rows, boxes, source.ranks)
        share = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / config.data.image_px**2
        columns = dict(zip(object_alone.COLUMNS, named.T, strict=True))
        label = data.samples["label"].to_numpy()[rows]
        with stored.making([folder.views_file], inputs):
            table = pd.DataFrame({"id": ids, "label": label, "box_share": share, **columns})
            tables.write_csv(table, folder.views_file)
    explained.views = object_alone.accuracies(tables.read_csv(folder.views_file))
    if explained.maps:
        explained.randomised = _randomised(evaluation, source, ids, rows, boxes)


def _randomised(
    evaluation: StoredEvaluation,
    source: _ModelSource,
    ids: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
) -> pd.DataFrame | None:
    """The pointing game of the first `RANDOMISED_IMAGES` of the drawn images, with more and more random weights."""
    config, path = evaluation.config, evaluation.folder.randomised_file
    some = np.sort(seeding.generator("randomised", config.seed).permutation(len(ids))[:RANDOMISED_IMAGES])
    ids, rows, boxes = ids[some], rows[some], boxes[some]
    inputs = {"predictions": evaluation.digest, "ids": ids.tolist(), "crops": evaluation.crops}
    if not stored.is_kept([path], inputs):
        if source.model is None:
            return None
        classes = evaluation.predicted.set_index("id").loc[ids, "predicted"].to_numpy("int64")
        image_px, trained, table = config.data.image_px, None, []
        for name, model in randomised.cascade(source.model.model, config.seed):
            layer = grad_cam.spatial_layer(model, image_px)
            assert layer is not None, "there are heat maps"
            maps = grad_cam.class_maps(config, evaluation.data, model, layer, rows, classes, source.ranks)
            trained = maps if trained is None else trained
            table.append(randomised.summary(name, maps, trained, boxes, image_px))
        with stored.making([path], inputs):
            tables.write_csv(pd.DataFrame(table), path)
    return tables.read_csv(path)


def _add_embedding(evaluation: StoredEvaluation, explained: Explained) -> None:
    """The t-SNE map of the images, of many of them a sample, and retrieval."""
    folder, features = evaluation.folder, evaluation.stored.features
    inputs = {
        "predictions": evaluation.digest,
        "features": files.digest_of_file(folder.outputs_file),
        "seed": evaluation.config.seed,
    }
    kept = [folder.embedding_file, folder.retrieval_file]
    if not stored.is_kept(kept, inputs):
        drawn = selection.sample(evaluation.predicted, MAP_IMAGES, evaluation.config.seed)
        shown = evaluation.predicted["id"].isin(drawn).to_numpy()
        xy = neighbours.embedding(features[shown], evaluation.config.seed)
        places = np.empty((0, 2), np.float32) if xy is None else xy
        ids = drawn[: len(places)]
        table = pd.DataFrame({"id": ids, "x": places[:, 0], "y": places[:, 1]})
        labels = evaluation.predicted["label"].to_numpy("int64")
        recalls = neighbours.recall(features, labels, RECALL_AT) if len(labels) > 1 else {}
        with stored.making(kept, inputs):
            tables.write_csv(table, folder.embedding_file)
            files.write_json(folder.retrieval_file, recalls)
    explained.embedding = tables.read_csv(folder.embedding_file)
    explained.recall = files.read_json(folder.retrieval_file, dict[int, float])


def _add_nearest(evaluation: StoredEvaluation, source: _ModelSource, explained: Explained) -> None:
    """The nearest images that the run learned from, for each mistaken image that the page of a pair shows."""
    config, k = evaluation.config, evaluation.config.report.neighbours
    ids = selection.mistaken_of_pairs(evaluation.predicted, evaluation.pairs, config.report.pairs)
    if k == 0 or not ids:
        return
    path = evaluation.folder.nearest_file
    learned = learned_rows(config, evaluation.data)
    made_from = {"predictions": evaluation.digest, "crops": evaluation.crops, "learned": learned.tolist()}
    inputs = {**made_from, "ids": ids, "k": k}
    if not stored.is_kept([path], inputs):
        if source.model is None:
            explained.left_out["nearest"] = f"There are no nearest training images: {source.reason}."
            return
        nearest = _nearest(evaluation, source.model, source.ranks, ids, learned)
        with stored.making([path], inputs):
            tables.write_csv(nearest, path)
    explained.nearest = tables.read_csv(path)


def _nearest(
    evaluation: StoredEvaluation,
    model: LoadedModel,
    ranks: Ranks,
    ids: list[int],
    rows: npt.NDArray[np.int64],
) -> pd.DataFrame:
    """A row a neighbour: id, rank, train_id, train_path, train_class_name, similarity.

    Args:
        rows: int64 [m], of the sample table: the images that the run learned from.
    """
    config, data = evaluation.config, evaluation.data
    of_split = features.cached(config, data, model.network, "train", model.precision, ranks, model.sha256)
    learned = of_split[np.isin(data.rows("train"), rows)]
    position = pd.Series(np.arange(len(evaluation.predicted)), index=evaluation.predicted["id"])
    queries = evaluation.stored.features[position.loc[ids].to_numpy()]
    near, similarity = neighbours.nearest(learned, queries, min(config.report.neighbours, len(rows)))
    k = near.shape[1]
    train = data.samples.iloc[rows[near.ravel()]]
    columns = {f"train_{name}": train[name].to_numpy() for name in ("id", "path", "class_name")}
    rank = np.tile(np.arange(1, k + 1), len(ids))
    return pd.DataFrame({"id": np.repeat(ids, k), "rank": rank, **columns, "similarity": similarity.ravel()})
