"""From which probability on an answer is sure: validation images choose it, the test never does.

Validation shows it for a probability where as many right answers from there on would be rarer than 5 % (`RISK`) if fewer
than 95 % (`PROMISE`) were right (exact binomial test, Clopper & Pearson 1934). Tested are 0.99, 0.98, ..., 0.01
(`GRID`), downwards, from the first with `FEWEST_IMAGES` answers to the first that does not show it; the threshold is
the last that does. The order depends on no label, so a promise that is not so is shown with a probability of at most
5 %, however many are tested: for any of them to be shown, the first of them in the order has to pass, and that is one
test (fixed-sequence testing, Bauer 1991; for thresholds, "Learn then Test", Angelopoulos et al. 2021, arXiv:2110.01052).
The lowest of all that pass would be the luckiest of many. Selective prediction with such a bound is Geifman &
El-Yaniv's (2017), who divide the 5 % among their tests instead. Where validation shows nothing, the threshold is 0.95:
what a calibrated probability of 0.95 says itself.

A node that at least `FEWEST_IMAGES` validation images are taken for has a threshold of its own, as what looks like
another class needs a higher one. That is the least that can show anything: 59 right answers of 59 have the probability
0.95**59 = 0.049. Three validation images of a class never give it one, and the common threshold counts. Each threshold
is a promise of its own, with its own 5 %: of 100 classes whose promises are not so, 5 may be shown on average.

Where the class is not sure, the answer is the finest node above whose summed probability reaches the threshold of the
roll-up, chosen on the validation images whose class is not sure either. This is a global threshold on the posteriors of
nodes, one of the methods that Deng, Krause, Berg & Fei-Fei compare in "Hedging your bets" (CVPR 2012). Their own, DARTS,
takes the node with the greatest (information gain + lambda) x probability. It is a little more specific at the same
accuracy over all answers; but a single answer may be an improbable node, and lambda tells a reader nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.common import arrays, files
from pipeline.data.taxonomy import CLASS, Taxonomy
from pipeline.evaluation import calibration
from pipeline.runs.directory import EvaluationDirectory, RunDirectory
from pipeline.runs.predictions import AGAIN, Validation, views

PROMISE = 0.95
"""share of right answers from a threshold on"""
RISK = 0.05
"""the greatest probability that validation shows the promise of a threshold (common, of a node, of the roll-up) and it
is not so: of each threshold, not of all together"""
FEWEST_IMAGES = math.ceil(math.log(RISK) / math.log(PROMISE))  # 59
GRID = np.arange(99, 0, -1) / 100
"""the probabilities that are tested, in this order: the same whatever the images and their labels"""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Threshold:
    """The probability from which on an answer is sure.

    n: the validation images that it was looked for among. answered: those with an answer from it on. right: of these.
    shown: whether validation shows the promise; false: the probability is `PROMISE`, or the common threshold above it.
    """

    probability: float
    n: int
    answered: int
    right: int
    shown: bool

    def __str__(self) -> str:
        if not self.shown:
            return f"{self.probability:.3f}, as {self.n:,} validation images support no lower one"
        return f"{self.probability:.3f}, as {self.right:,} of {self.answered:,} such answers are right on validation"


@dataclass(frozen=True)
class RankThresholds:
    """The thresholds of answers at one rank: `own` by the name of the node, `common` for all others."""

    common: Threshold
    own: Mapping[str, Threshold]

    def is_sure(self, node: str, probability: float) -> bool:
        """Whether an answer that names a node is sure."""
        return probability >= self.own.get(node, self.common).probability


@dataclass(frozen=True)
class Thresholds:
    """What thresholds.json holds, for one checkpoint, its views and its temperature (1: probabilities as they are).

    taxonomy: the digest of the hierarchy; "" without one. ranks: "class", then those of the hierarchy, fine to coarse.
    roll_up: of the nodes above the classes, where the class is not sure.
    """

    checkpoint_sha256: str
    tta: str
    temperature: float
    taxonomy: str
    promise: float
    ranks: Mapping[str, RankThresholds]
    roll_up: Threshold | None


class Tops(NamedTuple):
    """One rank: the names of its N nodes; the most probable one of each picture, int64 [n]; its probability, float64."""

    rank: str
    names: Sequence[str]
    best: Ints
    greatest: Floats


class Level(NamedTuple):
    """One rank: the names of its N nodes, and their probabilities, float64 [n, N]."""

    rank: str
    names: Sequence[str]
    probability: Floats

    @property
    def best(self) -> Ints:
        """The most probable node of each picture: int64 [n]."""
        return np.asarray(self.probability.argmax(axis=1), np.int64)

    @property
    def greatest(self) -> Floats:
        """Its probability: float64 [n]."""
        return np.asarray(self.probability.max(axis=1), np.float64)


def levels(classes: Sequence[str], taxonomy: Taxonomy | None, probability: Floats) -> list[Level]:
    """The classes, and each rank of a hierarchy, fine to coarse.

    Args:
        probability: of the classes, float64 [n, C].
    """
    classes_alone = [Level(CLASS, classes, probability)]
    if taxonomy is None:
        return classes_alone
    above = [Level(rank, taxonomy.names(rank), taxonomy.sums(rank, probability)) for rank in taxonomy.ranks]
    return [*classes_alone, *above]


def smallest(probability: Floats, right: Flags, otherwise: float = PROMISE) -> Threshold:
    """The threshold down to which n images show the promise; each gets the first answer that reaches it.

    Args:
        probability: float64 [n, R], of an image's answers in the order in which they are tried: fine to coarse.
        right: bool [n, R], whether these are right.
        otherwise: the threshold where the images show the promise for none.
    """
    from scipy.stats import binom  # which predict need not import

    # Answer r is the first to reach t where (the greatest before it) < t <= (its own probability).
    before = np.maximum.accumulate(np.pad(probability, ((0, 0), (1, 0)), constant_values=-1.0), axis=1)[
        :, :-1
    ]
    occurs = probability > before
    every = np.searchsorted(-GRID, -probability.min(initial=1.0))  # from there on all are answered
    points = np.append(GRID[: every + 1], otherwise)
    answered = _containing(points, before[occurs], probability[occurs])
    correct = _containing(points, before[occurs & right], probability[occurs & right])
    tested = np.flatnonzero(answered[:-1] >= FEWEST_IMAGES)  # the first of them depends on no label
    # how probable so many right answers are if only PROMISE of them are right
    passes = binom.sf(correct[tested] - 1, answered[tested], PROMISE) <= RISK
    shows = tested[np.logical_and.accumulate(passes)]
    if not len(shows):
        return Threshold(otherwise, len(probability), int(answered[-1]), int(correct[-1]), shown=False)
    last = shows[-1]
    return Threshold(
        float(points[last]), len(probability), int(answered[last]), int(correct[last]), shown=True
    )


def _containing(points: Floats, low: Floats, high: Floats) -> Ints:
    """In how many of the intervals (low, high] each point lies: int64."""
    return np.asarray(
        np.searchsorted(np.sort(low), points) - np.searchsorted(np.sort(high), points), np.int64
    )


def of_level(level: Level | Tops, label: Ints) -> RankThresholds:
    """The thresholds of a rank.

    Args:
        label: the true node of each validation image, int64 [n].
    """
    best, greatest = level.best, level.greatest[:, None]
    right = (best == label)[:, None]
    common = smallest(greatest, right)
    otherwise = max(PROMISE, common.probability)
    own = {
        level.names[int(node)]: smallest(greatest[best == node], right[best == node], otherwise)
        for node in np.flatnonzero(np.bincount(best, minlength=len(level.names)) >= FEWEST_IMAGES)
    }
    return RankThresholds(common, own)


def _tops(
    logits: calibration.Logits, temperature: float, classes: Sequence[str], taxonomy: Taxonomy | None
) -> list[Tops]:
    """What is most probable at each rank of `levels`, block by block: all probabilities take much memory."""
    parts = [
        [
            Tops(level.rank, level.names, level.best, level.greatest)
            for level in levels(classes, taxonomy, np.exp(calibration.log_probabilities(block, temperature)))
        ]
        for _, block in arrays.blocks(logits)
    ]
    return [
        Tops(tops[0].rank, tops[0].names, *(np.concatenate([top[at] for top in tops]) for at in (2, 3)))
        for tops in zip(*parts, strict=True)
    ]


def choose(
    validation: Validation, temperature: float, classes: Sequence[str], taxonomy: Taxonomy | None
) -> tuple[dict[str, RankThresholds], Threshold | None]:
    """The thresholds of each rank, and that of the roll-up (None without a hierarchy), from validation images."""
    found = _tops(validation.logits, temperature, classes, taxonomy)
    labels = [validation.label]
    if taxonomy is not None:
        labels += [taxonomy.node_of_class(rank)[validation.label] for rank in taxonomy.ranks]
    ranks = {level.rank: of_level(level, label) for level, label in zip(found, labels, strict=True)}
    if taxonomy is None:
        return ranks, None
    of_class, *above = found
    unsure = np.array(
        [
            not ranks[CLASS].is_sure(classes[node], probability)
            for node, probability in zip(of_class.best, of_class.greatest, strict=True)
        ],
        np.bool_,
    )
    greatest = np.column_stack([level.greatest for level in above])
    right = np.column_stack([level.best == label for level, label in zip(above, labels[1:], strict=True)])
    return ranks, smallest(greatest[unsure], right[unsure])


def write(
    folder: EvaluationDirectory,
    validation: Validation | None,
    metrics: Mapping[str, Any],
    classes: Sequence[str],
    taxonomy: Taxonomy | None,
) -> None:
    """Write thresholds.json beside the metrics of an evaluation; without validation an earlier one is deleted.

    Args:
        metrics: the content of metrics.json.
    """
    if validation is None:
        folder.thresholds_file.unlink(missing_ok=True)
        return
    temperature = 1.0 if metrics["temperature_at_bound"] else metrics["temperature"]
    ranks, roll_up = choose(validation, temperature, classes, taxonomy)
    digest = "" if taxonomy is None else taxonomy.digest
    stamp = (metrics["checkpoint_sha256"], views(metrics), temperature, digest)
    files.write_json(folder.thresholds_file, asdict(Thresholds(*stamp, PROMISE, ranks, roll_up)))


def in_words(folder: EvaluationDirectory) -> Iterator[str]:
    """The thresholds of an evaluation, a line a rank; none where it has no validation images.

    Raises:
        DataError: the file is damaged.
    """
    if not folder.thresholds_file.is_file():
        return
    found = files.read_json(folder.thresholds_file, Thresholds, AGAIN)
    for rank, at in found.ranks.items():
        own = f", {len(at.own):,} with a threshold of their own" if at.own else ""
        yield f"  {rank}: sure from {at.common}{own}"
    if found.roll_up is not None:
        yield f"  a node above a class that is not sure: from {found.roll_up}"


def of_run(
    run: RunDirectory, sha256: str, tta: str, temperature: float, taxonomy: Taxonomy | None
) -> Thresholds | None:
    """The thresholds that an evaluation has chosen for a checkpoint with these views at this temperature; None without.

    Those of the ranks of another hierarchy are left out.

    Raises:
        DataError: the file is damaged.
    """
    for split in ("test", "train"):
        path = run.evaluation(split).thresholds_file
        if not path.is_file():
            continue
        found = files.read_json(path, Thresholds, AGAIN)
        if (found.checkpoint_sha256, found.tta, found.temperature) == (sha256, tta, temperature):
            if taxonomy is not None and found.taxonomy == taxonomy.digest:
                return found
            return replace(found, ranks={CLASS: found.ranks[CLASS]}, roll_up=None)
    return None
