"""Images that are similar for the model: retrieval, nearest neighbours, and a map of all images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from pipeline.common import seeding
from pipeline.inference.features import Features

Ints = npt.NDArray[np.int64]
PCA_AXES = 50  # as van der Maaten & Hinton (2008) do before t-SNE
PERPLEXITY = 30.0
MIN_IMAGES = 5  # of a map
MANY_IMAGES, QUERIES = 25_000, 10_000  # of more images than these, so many look for their neighbours
MEMORY_MIB = 64  # of the distances held at once


def recall(features: Features, labels: Ints, ks: Sequence[int]) -> dict[int, float]:
    """Recall@k: the share of images with one of the same class among the k nearest others by cosine, 0..1.

    An image is not its own neighbour, as in metric learning (Oh Song et al., CVPR 2016). Of more than 25,000 images, the
    share is that of 10,000 drawn ones among all (`queries_of`).

    Args:
        features: float32 [n, D].
        labels: int64 [n].
    """
    deepest, rows = min(max(ks), len(features) - 1), queries_of(len(features))
    if len(rows) == len(features):
        near, _ = nearest(features, None, deepest)
    else:
        near, _ = nearest(features, features[rows], deepest + 1)
        others = near != rows[:, None]
        others[others.all(axis=1), -1] = (
            False  # where so many images are equal to it that it is not among them
        )
        near = near[others].reshape(len(rows), deepest)
    same = labels[near] == labels[rows, None]
    return {k: float(same[:, :k].any(axis=1).mean()) for k in ks}


def queries_of(n: int) -> Ints:
    """The positions of the images of n that look for their neighbours, rising: all, or of many the same 10,000."""
    if n <= MANY_IMAGES:
        return np.arange(n)
    return np.sort(seeding.generator("recall", n).permutation(n)[:QUERIES])


def nearest(features: Features, queries: Features | None, k: int) -> tuple[Ints, npt.NDArray[np.float32]]:
    """The k nearest rows of `features` by cosine, nearest first: positions int64 and similarities [m, k].

    Args:
        queries: float32 [m, D]; None: the features themselves, each without itself.
    """
    index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(features)
    with config_context(working_memory=MEMORY_MIB):
        distance, position = index.kneighbors(queries)
    return position.astype(np.int64), (1 - distance).astype(np.float32)


def embedding(features: Features, seed: int) -> npt.NDArray[np.float32] | None:
    """A map of the images by t-SNE (van der Maaten & Hinton 2008) of unit features: float32 [n, 2] in 0..1.

    Neighbours in the map are neighbours in the features; distances between far groups mean nothing.
    None for fewer than 5 images.
    """
    n = len(features)
    if n < MIN_IMAGES:
        return None
    unit = unit_length(features)
    axes = min(PCA_AXES, *unit.shape)
    reduced = PCA(axes, random_state=seed).fit_transform(unit)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    low, high = xy.min(axis=0), xy.max(axis=0)
    return np.asarray((xy - low) / np.maximum(high - low, 1e-12), np.float32)


def unit_length(features: Features) -> Features:
    """Features of length 1, so that their products are cosines: float32 [n, D]."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)
