"""A table of predictions becomes numbers: none of them needs the model again.

The predictions table has a row an image: id, path, label, class_name, predicted, predicted_name,
confidence (probability of the predicted class), probability (of the true class) and rank (of the
true class among all by probability, 1 = predicted).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

CONFIDENCE_LEVEL = 0.95


def predictions(samples: pd.DataFrame, logits: npt.NDArray[np.float32], names: Sequence[str]) -> pd.DataFrame:
    """The predictions table.

    Args:
        samples: rows of the sample table.
        logits: float32 [n, C], in the order of `samples`.
        names: of the classes, [C].
    """
    label = samples["label"].to_numpy()
    probability = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    own = logits[np.arange(len(label)), label]
    predicted = logits.argmax(axis=1)
    # Of equal logits the lower class counts as the better, as argmax has it.
    ahead = (logits > own[:, None]) | (
        (logits == own[:, None]) & (np.arange(logits.shape[1]) < label[:, None])
    )
    return pd.DataFrame(
        {
            "id": samples["id"].to_numpy(),
            "path": samples["path"].to_numpy(),
            "label": label,
            "class_name": samples["class_name"].to_numpy(),
            "predicted": predicted,
            "predicted_name": np.asarray(names, dtype=object)[predicted],
            "confidence": probability.max(axis=1),
            "probability": probability[np.arange(len(label)), label],
            "rank": ahead.sum(axis=1) + 1,
        }
    )


def summary(predicted: pd.DataFrame) -> dict[str, Any]:
    """n; top1 with its 95 % Wilson interval, top5 and per_class_mean, each 0..1; nll in nats.

    per_class_mean is the mean of the accuracies of the classes that have images.
    """
    label, guess = predicted["label"], predicted["predicted"]
    correct = int((label == guess).sum())
    low, high = wilson(correct, len(predicted))
    return {
        "n": len(predicted),
        "top1": float(accuracy_score(label, guess)),
        "top1_low": low,
        "top1_high": high,
        "top5": float((predicted["rank"] <= 5).mean()),
        "per_class_mean": float(recall_score(label, guess, labels=sorted(label.unique()), average="macro")),
        "nll": float(-np.log(predicted["probability"].clip(lower=1e-300)).mean()),
    }


def per_class(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row a class: label, class_name, n, correct, accuracy with its Wilson interval, precision."""
    label = predicted["label"]
    right = (label == predicted["predicted"]).groupby(label).agg(["size", "sum"])
    right = right.reindex(range(len(names)), fill_value=0)
    n, correct = right["size"].to_numpy(), right["sum"].to_numpy()
    bounds = [wilson(int(k), int(m)) for k, m in zip(correct, n, strict=True)]
    return pd.DataFrame(
        {
            "label": range(len(names)),
            "class_name": list(names),
            "n": n,
            "correct": correct,
            "accuracy": np.divide(correct, n, out=np.full(len(n), np.nan), where=n > 0),
            "accuracy_low": [low for low, _ in bounds],
            "accuracy_high": [high for _, high in bounds],
            "precision": precision_score(
                label, predicted["predicted"], labels=range(len(names)), average=None, zero_division=0
            ),
        }
    )


def confusion(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Counts [C, C]: a row a true class, a column a predicted one, both by name."""
    counts = confusion_matrix(predicted["label"], predicted["predicted"], labels=range(len(names)))
    return pd.DataFrame(counts, index=pd.Index(names, name="class_name"), columns=list(names))


def confused_pairs(predicted: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes taken for each other, most often first.

    A row a pair: class_a, class_b, images (both directions together), a_as_b, b_as_a.
    """
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    taken = wrong.groupby(["class_name", "predicted_name"]).size()
    pairs: dict[tuple[str, str], list[int]] = {}
    for names, count in taken.items():
        true, guess = map(str, names)  # type: ignore[call-overload]
        a, b = sorted((true, guess))
        pairs.setdefault((a, b), [0, 0])[int(a != true)] += int(count)
    rows = [(a, b, ab + ba, ab, ba) for (a, b), (ab, ba) in pairs.items()]
    found = pd.DataFrame(rows, columns=["class_a", "class_b", "images", "a_as_b", "b_as_a"])
    return found.sort_values(
        ["images", "class_a", "class_b"], ascending=[False, True, True], ignore_index=True
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), as scipy computes it; (0, 1) without trials."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
