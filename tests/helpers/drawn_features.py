"""Features of overlapping classes, for classifiers to learn from."""

import numpy as np

from pipeline.inference.linear_head import Images

CLASSES, DIMENSIONS = 5, 12


def drawn(count: int, seed: int) -> Images:
    """Overlapping classes around five centres far from zero, as the features of a network are."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIMENSIONS))
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    features = 3 + centres[labels] + 1.2 * random.normal(size=(count, DIMENSIONS))
    return Images(features.astype(np.float32), labels)


TRAIN, VAL, TEST = drawn(150, 1), drawn(100, 2), drawn(200, 3)
NONE = Images(np.empty((0, DIMENSIONS), np.float32), np.empty(0, np.int64))
