"""Six scores of how well a picture fits the known classes, from its logits and features: higher is better known.

Four are functions of the logits. Two compare the features, at length 1, with those of the training images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp, softmax

from pipeline.inference.features import Features
from pipeline.inference.linear_head import Images

Name = Literal["msp", "max_logit", "energy", "gen", "rmds", "knn"]
NAMES: tuple[Name, ...] = get_args(Name)
ARRAYS: dict[Name, tuple[str, ...]] = {
    **dict.fromkeys(NAMES, ()),
    "rmds": ("whitening", "means", "background_whitening", "background_mean"),
    "knn": ("neighbours",),
}
"""the names of what each one learns from the training images"""
GAMMA, MOST_CLASSES = 0.1, 100  # of GEN, as in the paper
NEIGHBOURS = 5  # of knn: some classes have few images, and a class is to be near by its own ones

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """A score that is ready to use.

    arrays: what it has learned from the training features (`ARRAYS`): nothing for the four of the logits; of `rmds` see
    `fit_gaussians`; `neighbours` of `knn` are the unit features, float32 [m, D].
    """

    name: Name
    arrays: Arrays

    def of(self, logits: Logits, features: Features) -> Floats:
        """Logits [n, C] and features [n, D] -> float64 [n]."""
        if self.name == "rmds":
            return relative_mahalanobis(features, self.arrays)
        if self.name == "knn":
            return nearness(features, self.arrays["neighbours"])
        of_logits = {"msp": msp, "max_logit": max_logit, "energy": energy, "gen": generalised_entropy}
        return of_logits[self.name](logits)


def fit(name: Name, train: Images) -> Score:
    """A score that has learned of training images; each class has one image at least."""
    if name == "rmds":
        return Score(name, fit_gaussians(train))
    if name == "knn":
        return Score(name, {"neighbours": unit(train.features).astype(np.float32)})
    return Score(name, {})


def msp(logits: Logits) -> Floats:
    """The maximum softmax probability, 0..1 (Hendrycks & Gimpel 2017, arXiv:1610.02136): [n, C] -> [n]."""
    return np.asarray(softmax(logits.astype(np.float64), axis=1).max(axis=1), np.float64)


def max_logit(logits: Logits) -> Floats:
    """The largest logit (Hendrycks et al. 2022, arXiv:1911.11132; Vaze et al. 2022, arXiv:2110.06207): [n, C] -> [n]."""
    return np.asarray(logits.max(axis=1), np.float64)


def energy(logits: Logits) -> Floats:
    """The negative free energy, log sum exp (Liu et al. 2020, arXiv:2010.03759): [n, C] -> [n]."""
    return np.asarray(logsumexp(logits.astype(np.float64), axis=1), np.float64)


def generalised_entropy(logits: Logits) -> Floats:
    """GEN (Liu et al., CVPR 2023): minus the sum of (p (1 - p))^0.1 over the 100 likeliest classes: [n, C] -> [n]."""
    probability = np.sort(softmax(logits.astype(np.float64), axis=1), axis=1)[:, -MOST_CLASSES:]
    return np.asarray(-((probability * (1 - probability)) ** GAMMA).sum(axis=1), np.float64)


def fit_gaussians(train: Images) -> Arrays:
    """Two Gaussian models of unit features: one with a mean for each class, and one of all images (background).

    `whitening` [D, D] makes the covariance of the classes, which they share, the identity; `means` [C, D] are whitened;
    `background_whitening` and `background_mean` [1, D] likewise; all float32.

    There may be fewer images than features, so the covariances are shrunk (Ledoit & Wolf 2004): both by the amount
    that suits the classes, and towards the same multiple of the identity. What lies outside the span of the training
    images is then equally far from the classes and from the background. With a shrinkage of its own for each, RMDS++
    took the unknown for the known where images were few.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # which predict need not import

    features = unit(train.features)
    _, of = np.unique(train.labels, return_inverse=True)
    means = np.stack([features[of == label].mean(axis=0) for label in range(of.max() + 1)])
    mean = features.mean(axis=0, keepdims=True)
    within, total = features - means[of], features - mean
    shrinkage, variance = ledoit_wolf_shrinkage(within, assume_centered=True), float((total**2).mean())
    whitening, background = _whitening(within, shrinkage, variance), _whitening(total, shrinkage, variance)
    arrays = {
        "whitening": whitening,
        "means": means @ whitening.T,
        "background_whitening": background,
        "background_mean": mean @ background.T,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def relative_mahalanobis(features: Features, gaussians: Arrays) -> Floats:
    """RMDS++: how much nearer the nearest class is than the background, by squared Mahalanobis distance: [n, D] -> [n].

    Relative distances are of Ren et al. 2021 (arXiv:2106.09022); features of length 1 of Mueller & Hein 2025
    (Mahalanobis++, arXiv:2505.18032).
    """
    of_classes = _squared_distances(features, gaussians["whitening"], gaussians["means"])
    of_background = _squared_distances(
        features, gaussians["background_whitening"], gaussians["background_mean"]
    )
    return np.asarray(of_background[:, 0] - of_classes.min(axis=1), np.float64)


def nearness(features: Features, neighbours: Features) -> Floats:
    """Minus the distance to the 5th nearest of unit features (Sun et al. 2022, arXiv:2204.06507): [n, D] -> [n].

    Args:
        neighbours: float32 [m, D], of length 1; of fewer than 5 the farthest counts.
    """
    k = min(NEIGHBOURS, len(neighbours))
    cosine = np.partition(unit(features) @ neighbours.T.astype(np.float64, copy=False), -k, axis=1)[:, -k]
    return np.asarray(-np.sqrt(np.maximum(2 - 2 * cosine, 0)), np.float64)


def unit(features: Features) -> Floats:
    """Features of length 1: float64 [n, D]."""
    wide = features.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float64)


def _whitening(residuals: Floats, shrinkage: float, variance: float) -> Floats:
    """The inverse of the Cholesky factor of the residuals' covariance, [n, D] -> [D, D].

    shrinkage, 0..1: the share of `variance` times the identity in it.
    """
    identity = np.eye(residuals.shape[1])
    covariance = (1 - shrinkage) * residuals.T @ residuals / len(residuals) + shrinkage * variance * identity
    factor = cholesky(covariance + 1e-12 * identity, lower=True)  # equal images have no variance at all
    return np.asarray(solve_triangular(factor, identity, lower=True), np.float64)


def _squared_distances(
    features: Features, whitening: npt.NDArray[np.float32], means: npt.NDArray[np.float32]
) -> Floats:
    """Squared distances of whitened unit features from whitened means [C, D]: [n, D] -> [n, C]."""
    white, wide = (
        unit(features) @ whitening.T.astype(np.float64, copy=False),
        means.astype(np.float64, copy=False),
    )
    squares = (white**2).sum(axis=1, keepdims=True) + (wide**2).sum(axis=1)
    return np.asarray(squares - 2 * white @ wide.T, np.float64)
