"""Which images the model holds to be alike: retrieval, nearest neighbours, and a map of all of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from pipeline.inference.features import Features

Ints = npt.NDArray[np.int64]
PCA_AXES = 50  # as van der Maaten & Hinton (2008) prepare their features
PERPLEXITY = 30.0
FEWEST = 5  # images of which a map is made


def recall(features: Features, labels: Ints, ks: Sequence[int]) -> dict[int, float]:
    """Recall@k: how often an image of the same class is among the k nearest others by cosine, 0..1.

    Each image is left out of its own neighbours, as in metric learning (Oh Song et al., CVPR 2016).

    Args:
        features: float32 [n, D].
        labels: int64 [n].
    """
    deepest = min(max(ks), len(features) - 1)
    near, _ = nearest(features, None, deepest)
    same = labels[near] == labels[:, None]
    return {k: float(same[:, :k].any(axis=1).mean()) for k in ks}


def nearest(features: Features, queries: Features | None, k: int) -> tuple[Ints, npt.NDArray[np.float32]]:
    """The k nearest rows of `features` by cosine, nearest first: positions int64 and similarities [m, k].

    Args:
        queries: float32 [m, D]; None: the features themselves, each without itself.
    """
    index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(features)
    away, place = index.kneighbors(queries)
    return place.astype(np.int64), (1 - away).astype(np.float32)


def embedding(features: Features, seed: int) -> npt.NDArray[np.float32] | None:
    """A map of the images by t-SNE (van der Maaten & Hinton 2008) of unit features: float32 [n, 2] in 0..1.

    Neighbours in the map are neighbours in the features; distances between far groups mean nothing.
    None for fewer than 5 images.
    """
    n = len(features)
    if n < FEWEST:
        return None
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    axes = min(PCA_AXES, *unit.shape)
    reduced = PCA(axes, random_state=seed).fit_transform(unit)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    low, high = xy.min(axis=0), xy.max(axis=0)
    return np.asarray((xy - low) / np.maximum(high - low, 1e-12), np.float32)
