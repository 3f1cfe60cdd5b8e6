"""Classifies pictures of any kind and number with a run's checkpoint. No data set is needed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.answering.answer_files import TO_STDOUT, Answer, AnswerFile
from pipeline.answering.answering import Answering
from pipeline.answering.picture_names import expand
from pipeline.answering.picture_outputs import Outputs, Unreadable, outputs_of
from pipeline.common import console
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.data import pictures
from pipeline.data.pictures import Pixels
from pipeline.data.taxonomy import CLASS
from pipeline.distributed import process_group
from pipeline.evaluation import training_state
from pipeline.inference import load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.models.classifier import Classifier
from pipeline.runs.directory import RunDirectory

TOP = 5
WHAT_TO_DO = f"give pictures that can be read ({pictures.WHAT_TO_GIVE})"


class HeatMaps(Protocol):
    """Where heat maps go; see `pipeline.explain.heat_map_files`, a room that this one cannot import from."""

    def check(self) -> None:
        """Raise a `UserError` where they cannot be written: before a long prediction."""

    def write(
        self, model: Classifier, pictures: Sequence[tuple[int, Path, Pixels, int]], device: torch.device
    ) -> None:
        """Write those of some pictures: the number of each from 1, its path, its crop, the label of its class."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of `plumage predict`.

    top: number of classes. rank: of what is named, "class" or one of the run's hierarchy. logits, features: whether
    these are answered too. prior: a CSV file, see `priors.read_prior`. file: where the answers go, None: a table on the
    screen, and the result.
    """

    top: int = TOP
    rank: str = CLASS
    logits: bool = False
    features: bool = False
    prior: Path | None = None
    file: AnswerFile | None = None
    heat_maps: HeatMaps | None = None

    @property
    def arrays(self) -> dict[str, bool]:
        """Which of logits and features are answered."""
        return {"logits": self.logits, "features": self.features}


def classify(config: Config, names: Sequence[Path], options: PredictOptions) -> dict[str, Any] | None:
    """Name the most likely classes of each picture that can be read, and what is wrong with each of the others.

    Args:
        names: of files, folders and patterns, see `picture_names.expand`.

    Returns:
        In plain types: the checkpoint; temperature, None where the probabilities are not calibrated; the rank, where it
        is not "class"; classes, the order of the logits, where these are asked for; `predictions`, one a picture that
        can be read; and `refused`, where there is one that cannot, what is wrong with each. Of a file its path and the
        numbers of pictures and of those refused. None where the answers went to standard output.

    Raises:
        UserError: the checkpoint is missing or of another model, its outputs are not finite, no picture is readable, or
            not all are and the answers went to standard output.
    """
    config = config.at_evaluation
    for place in (options.file, options.heat_maps):
        if place is not None:
            place.check()
    images = expand(names)
    if not images:
        raise DataError(
            "predict: no picture is given; name files or folders behind the run or the configuration"
        )
    training_state.warn_of_unfinished(RunDirectory(config.run_dir))
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        model, classes = load_model.load_model_without_data(config, load_model.checkpoint_path(config), ranks)
        answering = Answering.of_run(config, model, classes, options.prior, options.rank)
        batches = outputs_of(config, model, images, ranks.device)
        if options.heat_maps is not None:
            batches = _heated(batches, options.heat_maps, model, answering, ranks.device)
        answers = (answering.answer(one, options.top, **options.arrays) for batch in batches for one in batch)
        title = f"{model.path}, epoch {model.epoch}; {answering.words}"
        if options.file is None:
            result = _show(answers, title, answering)
        else:
            console.say(title)
            result = _write(answers, options.file, options, answering, len(images))
    if options.file is not None and options.file.path == TO_STDOUT:
        return None
    origin = {
        "checkpoint": str(model.path),
        "checkpoint_sha256": model.sha256,
        "temperature": answering.temperature,
    }
    at_rank = {} if options.rank == CLASS else {"rank": options.rank}
    return origin | at_rank | ({"classes": classes} if options.logits else {}) | result


def _heated(
    batches: Iterator[list[Outputs | Unreadable]],
    heat_maps: HeatMaps,
    model: LoadedModel,
    answering: Answering,
    device: torch.device,
) -> Iterator[list[Outputs | Unreadable]]:
    """The batches; the heat maps of each are written first."""
    number = 0
    for batch in batches:
        numbered = list(enumerate(batch, number + 1))
        number += len(batch)
        good = [
            (n, one.path, one.crop, answering.label(one)) for n, one in numbered if isinstance(one, Outputs)
        ]
        if good:
            heat_maps.write(model.model, good, device)
        yield batch


def _show(answers: Iterable[Answer], title: str, answering: Answering) -> dict[str, Any]:
    """Show the answers as a table, then name the pictures that cannot be read."""
    all_answers = list(answers)
    refused = [f"{answer.image}: {answer.error}" for answer in all_answers if answer.error is not None]
    readable = [answer for answer in all_answers if answer.error is None]
    sentence = f"{'; '.join(refused)}; {WHAT_TO_DO}"
    if not readable:
        raise DataError(sentence)
    header = ["picture", answering.rank, "probability", *["answer"] * bool(answering.columns)]
    console.show_table(title, header, [row for answer in readable for row in _rows(answer)])
    predictions = [answer.as_object() for answer in readable]
    if not refused:
        return {"predictions": predictions}
    console.fail(sentence)
    return {"predictions": predictions, "refused": refused}


def _rows(answer: Answer) -> Iterator[list[object]]:
    """A row a node that is named; picture and judgement stand in the first."""
    judgement = [] if answer.judgement is None else [answer.judgement.words]
    for place, (name, probability) in enumerate(answer.classes):
        first = place == 0
        yield [
            answer.image if first else "",
            name,
            probability,
            *(judgement if first else [""] * len(judgement)),
        ]


def _write(
    answers: Iterator[Answer], file: AnswerFile, options: PredictOptions, answering: Answering, total: int
) -> dict[str, Any]:
    """Write each answer as it comes, then say how many pictures cannot be read."""
    refused = 0
    top = min(options.top, len(answering.nodes))
    with (
        file.writing(answering.classes, top, options.logits, options.features, answering.columns) as write,
        console.bar("predict", total) as bar,
    ):
        for answer in bar.count(answers, repeat(1, total)):
            write(answer)
            refused += answer.error is not None
    result: dict[str, Any] = {"file": str(file.path), "pictures": total}
    if not refused:
        return result
    sentence = f"{refused:,} of {total:,} pictures cannot be read, and their rows say why; {WHAT_TO_DO}"
    if file.path == TO_STDOUT:
        raise DataError(sentence)
    console.fail(sentence)
    return result | {"refused": refused}
