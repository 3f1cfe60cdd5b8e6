"""Probabilities where and when the classes occur in other shares than in training."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from pipeline.common.errors import DataError, name_some
from pipeline.common.tables import read_csv
from pipeline.config.schema import Config
from pipeline.evaluation import calibration
from pipeline.runs.directory import RunDirectory

Floats = npt.NDArray[np.float64]
SPLITS = "test", "val", "train"
WHAT_TO_GIVE = "give a CSV file with the columns class and weight"


@dataclass(frozen=True)
class Posterior:
    """How logits become probabilities: a temperature, then a prior.

    temperature: above 0. log_ratio: float64 [C], log(prior / training share); -inf: a class that does not occur.
    """

    temperature: float
    log_ratio: Floats

    def log_probabilities(self, logits: calibration.Logits) -> Floats:
        """float32 [n, C] -> float64 [n, C], in nats.

        A network that was trained with cross-entropy estimates p(class | picture) for the classes' shares in
        training. Bayes' rule exchanges these shares: it is divided by them, multiplied by the new ones, and scaled
        to a sum of 1 (Saerens, Latinne & Decaestecker 2002, Neural Computation 14(1), eq. 2.4). Without the division
        the shares of training would count twice.
        """
        log_probability = calibration.log_probabilities(logits, self.temperature)
        return np.asarray(log_softmax(log_probability + self.log_ratio, axis=1), np.float64)


def read_prior(path: Path, names: Sequence[str]) -> Floats:
    """The prior that a CSV file (class, weight) gives each class: float64 [C], at least 0, with a sum of 1.

    Raises:
        DataError: it is no such table, names an unknown class or one twice, lacks a class, or a weight is no number
            from 0, or all are 0.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {WHAT_TO_GIVE}")
    table = read_csv(path, {"class": str, "weight": "float64"}, WHAT_TO_GIVE)
    given = table["class"].fillna("").map(_composed)
    known = {_composed(name): label for label, name in enumerate(names)}
    if unknown := [name for name in given if name not in known]:
        raise DataError(
            f"{path}: the model has no class {name_some(unknown)}; its {len(known)} classes are {name_some(names)}"
        )
    if doubled := sorted(set(given[given.duplicated()])):
        raise DataError(f"{path}: more than one weight for {name_some(doubled)}; leave one of them")
    if missing := [name for name in names if _composed(name) not in set(given)]:
        raise DataError(
            f"{path}: no weight for the classes {name_some(missing)}; add a row for each, with the weight 0 where it "
            "does not occur"
        )
    weight = table["weight"].to_numpy(np.float64)
    if wrong := given[~(np.isfinite(weight) & (weight >= 0))].tolist():
        raise DataError(f"{path}: the weight of {name_some(wrong)} is no number from 0")
    if not weight.any():
        raise DataError(f"{path}: all weights are 0; give those that occur a weight above 0")
    prior = np.zeros(len(names))
    prior[[known[name] for name in given]] = weight / weight.max()  # the sum of large ones would be infinite
    return np.asarray(prior / prior.sum(), np.float64)


def log_ratio(prior: Floats, training_images: npt.NDArray[np.int64]) -> Floats:
    """log(prior / training share): float64 [C], -inf where the prior is 0.

    Args:
        training_images: int64 [C], of each class; one without any counts as if it had one.
    """
    images = np.maximum(training_images, 1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(prior) - np.log(images / images.sum()), np.float64)


def log_ratio_of_run(config: Config, classes: Sequence[str], path: Path | None) -> tuple[Floats, str]:
    """log(prior / training share) of each class, float64 [C], and the prior in words; zeros and "" without a file."""
    if path is None:
        return np.zeros(len(classes)), ""
    prior, images = read_prior(path, classes), training_images(config, classes)
    words = f"; prior {path}"
    if images is None:
        images = np.ones(len(classes), np.int64)
        words += ", with equal shares in training, as no `eval` of the run has counted them"
    return log_ratio(prior, images), words


def training_images(config: Config, names: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """The training images of each class, int64 [C], as an evaluation of the run has counted them; None without one.

    Where training drew the classes equally often (`data.sampler=class_balanced`) each counts the same.

    Raises:
        DataError: per_class.csv is damaged, or of other classes.
    """
    if config.data.sampler == "class_balanced":
        return np.ones(len(names), np.int64)
    folders = map(RunDirectory(config.run_dir).evaluation, SPLITS)
    path = next((path for folder in folders if (path := folder.table("per_class")).is_file()), None)
    if path is None:
        return None
    again = "run `plumage eval` again"
    table = read_csv(path, {"class_name": str, "train_images": "int64"}, again)
    if table["class_name"].tolist() != list(names):
        raise DataError(f"{path}: of other classes than the checkpoint; {again}")
    return table["train_images"].to_numpy(np.int64)


def _composed(name: str) -> str:
    """Accents as one character: macOS writes them as two."""
    return unicodedata.normalize("NFC", name)
