"""The predictions table of a split, and the metrics that follow from it without the model.

The predictions table has a row an image: id, path, label, class_name, predicted, predicted_name,
confidence (probability of the predicted class), probability (of the true class) and rank (of the
true class among all classes by probability; 1: it is the predicted one).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import log_softmax
from scipy.stats import spearmanr
from sklearn.metrics import precision_recall_fscore_support

from pipeline.common import arrays
from pipeline.evaluation import statistics


def predictions_table(
    samples: pd.DataFrame, logits: npt.NDArray[np.float32], names: Sequence[str]
) -> pd.DataFrame:
    """The predictions table.

    Args:
        samples: rows of the sample table.
        logits: float32 [n, C], in the order of `samples`.
        names: of the classes, [C].
    """
    label = samples["label"].to_numpy()
    parts = [_outputs(block, label[rows]) for rows, block in arrays.blocks(logits)]
    predicted, confidence, probability, rank = map(np.concatenate, zip(*parts, strict=True))
    return pd.DataFrame(
        {
            "id": samples["id"].to_numpy(),
            "path": samples["path"].to_numpy(),
            "label": label,
            "class_name": samples["class_name"].to_numpy(),
            "predicted": predicted,
            "predicted_name": np.asarray(names, dtype=object)[predicted],
            "confidence": confidence,
            "probability": probability,
            "rank": rank,
        }
    )


def _outputs(logits: npt.NDArray[np.float32], label: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    """Of each image: the predicted class, its probability, the true one's, and the rank of the true one."""
    probability, at = np.exp(log_softmax(logits.astype(np.float64), axis=1)), np.arange(len(label))
    true_logit = logits[at, label][:, None]
    # Of equal logits the lower class ranks first, as in argmax.
    ahead = (logits > true_logit) | ((logits == true_logit) & (np.arange(logits.shape[1]) < label[:, None]))
    return logits.argmax(axis=1), probability.max(axis=1), probability[at, label], ahead.sum(axis=1) + 1


def summary(predicted: pd.DataFrame) -> dict[str, Any]:
    """n; top1, top3, top5, per_class_mean, macro_precision and macro_f1, each 0..1; nll in nats.

    Means over classes leave out classes without images; per_class_mean is the macro recall. A class with images that
    nothing is taken for has the precision 0 in macro_precision, as scikit-learn has it. NAME_low and NAME_high
    are 95 % intervals: Wilson's for top1, the bootstrap over images for all others and for top1_bootstrap_low and
    top1_bootstrap_high.
    """
    label, guess, rank = (predicted[name].to_numpy() for name in ("label", "predicted", "rank"))
    present = np.unique(label)
    precision, recall, f1, _ = precision_recall_fscore_support(
        label, guess, labels=present, average="macro", zero_division=0
    )
    means = {
        "top1": (label == guess).astype(np.float64),
        "top3": (rank <= 3).astype(np.float64),
        "top5": (rank <= 5).astype(np.float64),
        "nll": -np.log(predicted["probability"].clip(lower=1e-300).to_numpy()),
    }
    low, high = statistics.wilson(int(means["top1"].sum()), len(label))
    numbers = {"n": len(label), "top1": float(means["top1"].mean()), "top1_low": low, "top1_high": high}
    bounds = _bootstrap(means, label, guess)
    for name, values in means.items():
        _add(numbers, name, float(values.mean()), bounds[name], "_bootstrap" if name == "top1" else "")
    for name, value in (("per_class_mean", recall), ("macro_precision", precision), ("macro_f1", f1)):
        _add(numbers, name, float(value), bounds[name])
    return numbers


def per_class(
    predicted: pd.DataFrame, names: Sequence[str], train_images: Sequence[int] | None = None
) -> pd.DataFrame:
    """A row a class: label, class_name, n, correct, accuracy with its Wilson interval, precision, recall, f1.

    Accuracy and recall of a class are the same, and NaN where it has no image; so is f1. The precision of a class that
    nothing is taken for is NaN where it has no image either, as there is nothing to be right or wrong about; where it
    has images it is scikit-learn's 0, as in `summary`.

    Args:
        train_images: training images of each class, [C]; they become a column.
    """
    label = predicted["label"]
    right = (label == predicted["predicted"]).groupby(label).agg(["size", "sum"])
    right = right.reindex(range(len(names)), fill_value=0)
    n, correct = right["size"].to_numpy(), right["sum"].to_numpy()
    taken_for = np.bincount(predicted["predicted"].to_numpy("int64"), minlength=len(names))
    counts = list(zip(correct.tolist(), n.tolist(), strict=True))
    interval = {pair: statistics.wilson(*pair) for pair in set(counts)}
    bounds = [interval[pair] for pair in counts]
    precision, recall, f1, _ = precision_recall_fscore_support(
        label, predicted["predicted"], labels=range(len(names)), average=None, zero_division=0
    )
    classes = pd.DataFrame(
        {
            "label": range(len(names)),
            "class_name": list(names),
            "n": n,
            "correct": correct,
            "accuracy": np.where(n > 0, recall, np.nan),
            "accuracy_low": [low for low, _ in bounds],
            "accuracy_high": [high for _, high in bounds],
            "precision": np.where((n > 0) | (taken_for > 0), precision, np.nan),
            "recall": np.where(n > 0, recall, np.nan),
            "f1": np.where(n > 0, f1, np.nan),
        }
    )
    return classes if train_images is None else classes.assign(train_images=list(train_images))


def accuracy_by_training_count(classes: pd.DataFrame) -> dict[str, float | None]:
    """Spearman's rank correlation of a class's accuracy with its number of training images, and its p-value.

    Both are None where one of the two is the same for all classes.
    """
    tested = classes[classes["n"] > 0]
    rho, p = None, None
    if tested["accuracy"].nunique() > 1 and tested["train_images"].nunique() > 1:
        rho, p = map(float, spearmanr(tested["train_images"], tested["accuracy"]))
    return {"train_images_rho": rho, "train_images_rho_p": p}


def _add(
    numbers: dict[str, Any], name: str, value: float, interval: tuple[float, float], kind: str = ""
) -> None:
    numbers[name] = value
    numbers[f"{name}{kind}_low"], numbers[f"{name}{kind}_high"] = interval


def _bootstrap(
    means: Mapping[str, npt.NDArray[np.float64]], label: npt.NDArray[np.int64], guess: npt.NDArray[np.int64]
) -> dict[str, tuple[float, float]]:
    """Intervals of means over images, and of the macro averages, over the same resamples.

    A class without images in a resample is left out of its mean.

    Args:
        means: by name, float64 [n].
    """
    columns = np.column_stack(list(means.values()))
    classes, n = int(max(label.max(), guess.max())) + 1, len(label)
    at = np.arange(n)
    true, named = (csr_array((np.ones(n), (at, column)), shape=(n, classes)) for column in (label, guess))
    hit = csr_array(((label == guess).astype(np.float64), (at, label)), shape=(n, classes))
    averages: dict[str, list[npt.NDArray[np.float64]]] = {}
    for weights in statistics.resamples(n):
        for name, mean in zip(means, (weights @ columns / n).T, strict=True):
            averages.setdefault(name, []).append(mean)
        right, images, predicted = weights @ hit, weights @ true, weights @ named
        drawn = images > 0
        for name, share in (
            ("per_class_mean", right / np.maximum(images, 1)),
            ("macro_precision", right / np.maximum(predicted, 1)),
            ("macro_f1", 2 * right / np.maximum(images + predicted, 1)),
        ):
            averages.setdefault(name, []).append((share * drawn).sum(axis=1) / drawn.sum(axis=1))
    return {name: statistics.percentiles(np.concatenate(values)) for name, values in averages.items()}
