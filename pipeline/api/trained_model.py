"""A trained run as an object that answers for pictures: the same numbers as `plumage predict`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from pipeline.answering.answer_files import Answer, Cell
from pipeline.answering.answering import Answering
from pipeline.answering.fitted_temperature import fitted_temperature
from pipeline.answering.picture_names import FROM_STDIN, expand
from pipeline.answering.picture_outputs import InMemory, Outputs, Unreadable, outputs_of
from pipeline.api.configuration import NOTHING, Keys, as_texts, config_of_run
from pipeline.common.errors import DataError, refusals_as_sentences
from pipeline.config.schema import Config
from pipeline.data.pictures import WHAT_TO_GIVE as FORMATS
from pipeline.data.pictures import PictureError
from pipeline.data.taxonomy import CLASS
from pipeline.distributed.process_group import Ranks, select_device
from pipeline.evaluation import training_state
from pipeline.inference.load_model import checkpoint_path, load_model_without_data
from pipeline.runs.directory import RunDirectory

Picture = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""the path of a file, an image of Pillow, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W], RGB"""
WHAT_TO_GIVE = (
    "give a path, an image of Pillow, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W] (RGB, 0..255)"
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one picture.

    image: the path, or "images[N]" for the Nth one in memory, from 0. classes: the most likely first, [k], or the nodes
    of the rank that was asked for; probabilities: theirs, 0..1. judgement: further columns of `plumage predict`, where
    the run has thresholds for them: "none_of_these", and, where no prior is given, "sure" and what is sure where the
    class is not ("answer", "answer_rank", "answer_probability"). logits: float32 [C], in the order of the model's
    classes, and features: float32 [D], the input of the last layer: None where they are not asked for. error: what is
    wrong with a picture that cannot be read, which has no classes; else None.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    judgement: Mapping[str, Cell]
    logits: npt.NDArray[np.float32] | None = None
    features: npt.NDArray[np.float32] | None = None
    error: str | None = None


class TrainedModel:
    """The model of a run's checkpoint. `load` makes it.

    config: that of the run. classes: the names in the order of the logits, [C]. checkpoint: its file. epoch: from 1.
    network: the module of torch, uint8 [B, 3, P, P] on `device` -> logits [B, C].
    """

    def __init__(self, config: Config) -> None:
        """Raises: UserError: the run or its checkpoint is missing, or does not fit."""
        training_state.warn_of_unfinished(RunDirectory(config.run_dir))
        config = config.at_evaluation
        self.config, self.device = config, select_device(config.train)
        ranks = Ranks.single(self.device)
        self._loaded, names = load_model_without_data(config, checkpoint_path(config), ranks)
        self.network, self.checkpoint, self.epoch = self._loaded.model, self._loaded.path, self._loaded.epoch
        self.classes = tuple(names)

    @property
    def temperature(self) -> float | None:
        """By which logits are divided for calibrated probabilities; None where no `evaluate` has fitted one."""
        temperature, _ = fitted_temperature(self.config, self._loaded)
        return temperature

    @refusals_as_sentences()
    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        top: int = 5,
        rank: str = CLASS,
        prior: str | Path | None = None,
        logits: bool = False,
        features: bool = False,
        on_bad: Literal["error", "keep"] = "error",
    ) -> list[Prediction]:
        """Name the most likely classes of pictures, in their order.

        Args:
            images: one picture or several: paths (a folder or a pattern stands for its pictures, sorted), images of
                Pillow, uint8 arrays [H, W, 3] or tensors [3, H, W], RGB, of any size; also one array [N, H, W, 3].
            top: number of classes of a picture, from 1.
            rank: of what is named: "class", or one of the run's hierarchy, such as "family".
            prior: CSV file (class, weight): how often each class occurs here and now; nothing is then called sure.
            logits, features: whether to answer these too.
            on_bad: what a picture that cannot be read does; keep: it becomes a prediction with `error` and no class.

        Raises:
            PictureError: pictures cannot be read (all are named), and on_bad is "error".
            UserError: what is given is not a picture, a folder is empty, the run has no such rank, a prior does
                not fit, or memory does not suffice.
        """
        if top < 1:
            raise DataError(f"predict: top is {top}; give 1 or more")
        prior_file = None if prior is None else Path(prior).expanduser()
        answering = Answering.of_run(self.config, self._loaded, self.classes, prior_file, rank)
        return [
            _prediction(answering.answer(one, top, logits=logits, features=features))
            for one in self._outputs(images, on_bad == "keep")
        ]

    @refusals_as_sentences()
    def features(self, images: Picture | Iterable[Picture]) -> npt.NDArray[np.float32]:
        """The input of the model's last layer for each picture: float32 [n, D]; n from 1.

        Raises:
            PictureError: pictures cannot be read; all are named.
            UserError: as `predict`, or no picture is given.
        """
        found = [one.features for one in self._outputs(images, keep_bad=False) if isinstance(one, Outputs)]
        if not found:
            raise DataError("features: no picture is given")
        return np.stack(found)

    def _outputs(self, images: Picture | Iterable[Picture], keep_bad: bool) -> Iterator[Outputs | Unreadable]:
        """The outputs for each picture. Without `keep_bad`, an error that names all that cannot be read comes last."""
        bad: list[str] = []
        for batch in outputs_of(self.config, self._loaded, _listed(images), self.device):
            for one in batch:
                if isinstance(one, Unreadable) and not keep_bad:
                    bad.append(f"{one.path}: {one.reason}")
                else:
                    yield one
        if bad:
            raise PictureError(f"{'; '.join(bad)}; give pictures that can be read ({FORMATS})")


@refusals_as_sentences()
def load(
    run: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", overrides: Keys = NOTHING
) -> TrainedModel:
    """The model of a run's best checkpoint, ready to answer; no data set is needed.

    Settings of torch that hold for the whole process (threads, TF32, determinism) become those of the run.

    Args:
        run: the run's folder, such as "runs/birds", wherever it lies now.
        overrides: keys that replace those of the run, such as {"eval.checkpoint": "last", "eval.tta": "flip",
            "eval.batch_size": 16}.

    Raises:
        UserError: there is no such run, or its checkpoint is missing, damaged, or of another model.
    """
    texts = as_texts({"train.device": device, **overrides})
    return TrainedModel(config_of_run(Path(run).expanduser(), texts))


def _listed(images: Picture | Iterable[Picture]) -> list[Path | InMemory]:
    """The pictures one by one; a folder or a pattern becomes its files."""
    listed: list[Path | InMemory] = []
    for number, one in enumerate(_several(images)):
        if isinstance(one, str | Path):
            path = Path(one)
            listed += [path] if path == FROM_STDIN else expand([path])
        else:
            name = f"images[{number}]"
            listed.append(InMemory(Path(name), _pixels(one, name)))
    return listed


def _several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Iterable):
        return images
    raise DataError(f"images: of type {type(images).__name__}; {WHAT_TO_GIVE}, or several")


def _pixels(one: object, name: str) -> Image.Image | npt.NDArray[np.uint8]:
    """An image of Pillow as it is, an array or a tensor as uint8 [H, W, 3]."""
    if isinstance(one, Image.Image):
        return one
    if not isinstance(one, np.ndarray | Tensor):
        raise DataError(f"{name}: of type {type(one).__name__}; {WHAT_TO_GIVE}")
    channels_first = isinstance(one, Tensor)
    array = one.detach().cpu().numpy() if isinstance(one, Tensor) else one
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) != 3 or shape[0 if channels_first else 2] != 3 or not array.size:
        kind = "a tensor" if channels_first else "an array"
        raise DataError(f"{name}: {kind} {array.dtype} {list(shape)}; {WHAT_TO_GIVE}")
    return np.ascontiguousarray(array.transpose(1, 2, 0) if channels_first else array)


def _prediction(answer: Answer) -> Prediction:
    return Prediction(
        image=str(answer.image),
        classes=tuple(name for name, _ in answer.classes),
        probabilities=tuple(probability for _, probability in answer.classes),
        judgement={} if answer.judgement is None else answer.judgement.cells,
        logits=answer.logits,
        features=answer.features,
        error=answer.error,
    )
