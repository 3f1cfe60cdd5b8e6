"""The six scores of `pipeline.answering.unknown_scores` as a part of the exported graph, in float64 as there."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.answering.unknown_scores import GAMMA, MOST_CLASSES, NEIGHBOURS, Score


class KnownScore(nn.Module):
    """How well pictures fit the known classes: logits [B, C] and features [B, D] -> float64 [B]."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.name = score.name
        for name, array in score.arrays.items():  # as they are stored: float64 would double the file
            self.register_buffer(name, torch.as_tensor(array, dtype=torch.float32))

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        logits, features = logits.double(), unit(features)
        if self.name == "msp":
            return logits.softmax(1).amax(1)
        if self.name == "max_logit":
            return logits.amax(1)
        if self.name == "energy":
            return logits.logsumexp(1)
        if self.name == "gen":
            likeliest = logits.softmax(1).topk(min(MOST_CLASSES, logits.shape[1]), dim=1).values
            return -((likeliest * (1 - likeliest)) ** GAMMA).sum(1)
        if self.name == "knn":
            neighbours = self.get_buffer("neighbours").double()
            k = min(NEIGHBOURS, len(neighbours))
            cosine = (features @ neighbours.T).topk(k, dim=1).values[:, -1]
            return -(2 - 2 * cosine).clamp(min=0).sqrt()
        of_classes = self._squared_distances(features, "whitening", "means").amin(1)
        return self._squared_distances(features, "background_whitening", "background_mean")[:, 0] - of_classes

    def _squared_distances(self, features: Tensor, whitening: str, means: str) -> Tensor:
        """Of whitened unit features [B, D] from whitened means [C, D]: [B, C]."""
        white, centres = features @ self.get_buffer(whitening).double().T, self.get_buffer(means).double()
        return white.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * white @ centres.T


def unit(features: Tensor) -> Tensor:
    """Features of length 1: float64 [B, D]."""
    return F.normalize(features.double(), dim=1, eps=1e-12)
