"""Which images are worth a look."""

import numpy as np
import pandas as pd

from pipeline.common import seeding

MISTAKEN_SHOWN = 6  # of each direction of a pair
TYPICAL_SHOWN = 4


def sample(predicted: pd.DataFrame, count: int | None, seed: int) -> list[int]:
    """Ids of `count` images drawn without regard to what was predicted, or of all; in the table's order."""
    n = len(predicted)
    if count is None or count >= n:
        return [int(value) for value in predicted["id"]]
    drawn = np.sort(seeding.generator("explained", seed).permutation(n)[:count])
    return [int(value) for value in predicted["id"].to_numpy()[drawn]]


def worst(predicted: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong predictions that gave their true class the least probability, worst first."""
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    return wrong.sort_values(["probability", "id"]).head(count)


def mistaken(predicted: pd.DataFrame, name: str, taken_for: str) -> pd.DataFrame:
    """The images of a class that were taken for another one, the most confident first."""
    found = predicted[(predicted["class_name"] == name) & (predicted["predicted_name"] == taken_for)]
    return found.sort_values(["confidence", "id"], ascending=[False, True]).head(MISTAKEN_SHOWN)


def typical(predicted: pd.DataFrame, name: str, count: int = TYPICAL_SHOWN) -> pd.DataFrame:
    """The images of a class in which the model is surest of it."""
    own = predicted[predicted["class_name"] == name]
    return own.sort_values(["probability", "id"], ascending=[False, True]).head(count)


def mistaken_of_pairs(predicted: pd.DataFrame, pairs: pd.DataFrame, count: int) -> list[int]:
    """Ids of the images that the pages of the `count` most confused pairs show as mistaken."""
    ids: list[int] = []
    for pair in pairs.head(count).itertuples():
        for one, other in ((pair.class_a, pair.class_b), (pair.class_b, pair.class_a)):
            ids += [int(value) for value in mistaken(predicted, str(one), str(other))["id"]]
    return ids
