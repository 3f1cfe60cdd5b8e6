"""What a score would do with unknown classes, tried on known ones: some classes at a time are left out, and return as
unknown.

A linear head and the scores learn from the training images of the other classes. No image of an unknown class is needed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.answering import unknown_scores
from pipeline.answering.unknown_scores import Name, Score
from pipeline.common import seeding
from pipeline.inference.linear_head import Images, LogitsOf, fit_linear_head
from pipeline.unknown import measures
from pipeline.unknown.measures import Ints, Scored, WithInterval

FOLDS = 5
FEWEST_CLASSES = 4  # two or more have to remain, and two folds


class Fold(NamedTuple):
    """The scores of images of the classes that remain, and of those that were left out."""

    known: Scored
    left_out: Scored


@dataclass(frozen=True)
class Promise:
    """What a score does with classes that it does not know, as the folds tell.

    auroc: of images that remain against those of classes left out. refused: the share of these that is refused by a
    threshold which keeps `kept` of further images of the classes that remain.
    """

    auroc: WithInterval
    refused: WithInterval

    def as_object(self) -> dict[str, Any]:
        """`left_out`, in plain types."""
        return {"left_out": {"auroc": self.auroc._asdict(), "refused": self.refused._asdict()}}


def promises(train: Images, val: Images, unseen: Images, seed: int, kept: float) -> Mapping[Name, Promise]:
    """What each score promises.

    Args:
        train: images of all known classes, to learn from.
        val: images that nothing has learned from; those of the classes that remain set the thresholds.
        unseen: images of the same classes; those of the classes left out are the unknown ones. The backbone should not
            have learned from them; where it has learned from others of their classes, the promise is too optimistic.
        seed: draws the classes of a fold.
    """
    found: dict[Name, list[Fold]] = {name: [] for name in unknown_scores.NAMES}
    for left_out in _folds(np.unique(train.labels), seed):
        remaining, head = _without(train, left_out)
        known, unknown = _of(val, left_out, False), _of(unseen, left_out, True)
        for name in unknown_scores.NAMES:
            score = unknown_scores.fit(name, remaining)
            found[name].append(Fold(scored(score, head, known), scored(score, head, unknown)))
    return {name: _promise(folds, kept) for name, folds in found.items()}


def scored(score: Score, head: LogitsOf, images: Images) -> Scored:
    """The scores of images by the logits of a head and by their features; their labels are the groups."""
    return Scored(score.of(head(images.features), images.features), images.labels)


def head_of(train: Images) -> LogitsOf:
    """A linear head with the default weight decay: validation images choose nothing of it."""
    nothing = Images(train.features[:0], train.labels[:0])
    return fit_linear_head(train, nothing, int(train.labels.max()) + 1).model


def most_left_out(classes: int) -> int:
    """The number of classes in the largest fold."""
    return math.ceil(classes / _count(classes))


def _folds(labels: Ints, seed: int) -> Iterator[Ints]:
    """The labels of each fold: each label is in one of them."""
    order = seeding.generator("left out", seed).permutation(labels)
    yield from np.array_split(order, _count(len(labels)))


def _count(classes: int) -> int:
    return min(FOLDS, classes // 2)


def _without(train: Images, left_out: Ints) -> tuple[Images, LogitsOf]:
    """The training images that remain, with labels from 0, and a linear head of them."""
    features, labels = _of(train, left_out, False)
    _, dense = np.unique(labels, return_inverse=True)
    remaining = Images(features, dense.astype(np.int64))
    return remaining, head_of(remaining)


def _of(images: Images, left_out: Ints, are_left_out: bool) -> Images:
    chosen = np.isin(images.labels, left_out) == are_left_out
    return Images(images.features[chosen], images.labels[chosen])


def _promise(folds: list[Fold], kept: float) -> Promise:
    usable = [fold for fold in folds if len(fold.known.score) and len(fold.left_out.score)]
    refused = [fold.left_out.score < measures.threshold(fold.known.score, kept) for fold in usable]
    groups = np.concatenate([fold.left_out.group for fold in usable])
    return Promise(measures.auroc(usable), measures.share(np.concatenate(refused), groups))
