"""What a threshold does with images that did not choose it: test images of known classes, pictures of unknown ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.answering.picture_names import expand
from pipeline.answering.picture_outputs import Outputs, Unreadable, outputs_of
from pipeline.answering.unknown_scores import Logits, Score
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.data.prepare import Prepared
from pipeline.distributed.process_group import Ranks
from pipeline.inference.features import Features
from pipeline.inference.load_model import LoadedModel
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory
from pipeline.unknown import measures
from pipeline.unknown.measures import Ints, Scored


@dataclass(frozen=True)
class Seen:
    """The outputs for n images: logits [n, C], features [n, D], and the class of each, int64 [n]."""

    logits: Logits
    features: Features
    group: Ints

    def by(self, score: Score) -> Scored:
        return Scored(score.of(self.logits, self.features), self.group)


@dataclass(frozen=True)
class Measured:
    """What there is to measure on.

    val: validation images. test: the stored evaluation of test, None without one of this checkpoint. unknown: pictures
    of unknown classes, None where none are given; their groups do not occur in val and test.
    """

    val: Seen
    test: Seen | None
    unknown: Seen | None

    def about(self) -> dict[str, int]:
        """The numbers of images."""
        named = {"val": self.val, "test": self.test, "unknown": self.unknown}
        return {name: len(seen.group) for name, seen in named.items() if seen is not None}

    def by(self, score: Score, lowest: float) -> dict[str, Any]:
        """`test_kept`: share of test images that reach the threshold; `unknown`: `auroc`, `fpr95`, share `refused`.

        The known images of AUROC and FPR95 are those of test, without them those of validation.
        """
        found: dict[str, Any] = {}
        if self.test is not None:
            test = self.test.by(score)
            found["test_kept"] = measures.share(test.score >= lowest, test.group)._asdict()
        if self.unknown is not None:
            known, unknown = (self.test or self.val).by(score), self.unknown.by(score)
            found["unknown"] = {
                "auroc": measures.auroc([(known, unknown)])._asdict(),
                "fpr95": measures.false_positive_rate(known, unknown)._asdict(),
                "refused": measures.share(unknown.score < lowest, unknown.group)._asdict(),
            }
        return found


def stored_test(config: Config, data: Prepared, model: LoadedModel) -> Seen | None:
    """The outputs that `eval` has stored for the test images; None without one of this checkpoint and these crops.

    It does not count as another reading of test.
    """
    folder = RunDirectory(config.run_dir).evaluation("test")
    if not folder.metrics_file.is_file():
        return None
    origin = predictions.read_metrics(folder)
    if (origin.get("checkpoint_sha256"), predictions.views(origin)) != (model.sha256, config.views):
        return None
    stored = predictions.StoredPredictions.read(folder, data.samples)
    return Seen(stored.logits, stored.features, stored.table["label"].to_numpy("int64"))


def of_pictures(
    config: Config, model: LoadedModel, names: Sequence[Path], classes: int, ranks: Ranks
) -> tuple[Seen | None, list[Unreadable]]:
    """The outputs for pictures of unknown classes, None where none are named; and the files that cannot be read.

    The pictures of a folder are of one class; where all are in one folder each is alone.

    Args:
        classes: number of the known ones; the groups begin after these.

    Raises:
        DataError: no picture can be read.
    """
    paths = expand(names)
    if not paths:
        return None, []
    seen = [one for batch in outputs_of(config, model, paths, ranks.device) for one in batch]
    read = [one for one in seen if isinstance(one, Outputs)]
    unreadable = [one for one in seen if isinstance(one, Unreadable)]
    if not read:
        raise DataError(
            f"{paths[0]}: {unreadable[0].reason}; none of the {len(paths):,} pictures of unknown classes can be read"
        )
    folders = [str(one.path.parent) for one in read]
    _, group = np.unique(folders, return_inverse=True)
    if len(set(folders)) == 1:
        group = np.arange(len(read))
    logits, features = np.stack([one.logits for one in read]), np.stack([one.features for one in read])
    return Seen(logits, features, (classes + group).astype(np.int64)), unreadable
