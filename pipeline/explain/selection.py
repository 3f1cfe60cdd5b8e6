"""Which images are explained and shown."""

import numpy as np
import pandas as pd

from pipeline.common import seeding

MISTAKEN_SHOWN = 6  # of each direction of a pair
TYPICAL_SHOWN = 4


def sample(predicted: pd.DataFrame, count: int | None, seed: int) -> list[int]:
    """Ids of `count` random images, in the table's order; of all images when `count` is None or larger."""
    n = len(predicted)
    if count is None or count >= n:
        return [int(value) for value in predicted["id"]]
    drawn = np.sort(seeding.generator("explained", seed).permutation(n)[:count])
    return [int(value) for value in predicted["id"].to_numpy()[drawn]]


def worst(predicted: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong predictions with the lowest probability of the true class, the worst first."""
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    return wrong.sort_values(["probability", "id"]).head(count)


def mistaken(predicted: pd.DataFrame, name: str, mistaken_for: str) -> pd.DataFrame:
    """The images of a class that were predicted as another one, the most confident first."""
    images = predicted[(predicted["class_name"] == name) & (predicted["predicted_name"] == mistaken_for)]
    return images.sort_values(["confidence", "id"], ascending=[False, True]).head(MISTAKEN_SHOWN)


def typical(predicted: pd.DataFrame, name: str, count: int = TYPICAL_SHOWN) -> pd.DataFrame:
    """The images of a class with the highest probability of it, the highest first."""
    images = predicted[predicted["class_name"] == name]
    return images.sort_values(["probability", "id"], ascending=[False, True]).head(count)


def most_typical(predicted: pd.DataFrame) -> dict[str, int]:
    """The id of the most typical image of each class that has one, by the name of the class."""
    images = predicted.sort_values(["probability", "id"], ascending=[False, True])
    first = images.drop_duplicates("class_name")
    return dict(zip(first["class_name"].astype(str), first["id"].astype(int), strict=True))


def mistaken_of_pairs(predicted: pd.DataFrame, pairs: pd.DataFrame, count: int) -> list[int]:
    """Ids of the mistaken images that are shown for the `count` most confused pairs, in both directions."""
    ids: list[int] = []
    for pair in pairs.head(count).itertuples():
        a, b = str(pair.class_a), str(pair.class_b)
        for name, mistaken_for in ((a, b), (b, a)):
            ids += [int(value) for value in mistaken(predicted, name, mistaken_for)["id"]]
    return ids
