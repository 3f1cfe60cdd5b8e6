"""Whether a smaller form of a graph answers as model.onnx does: judged on validation images, before it is written."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data.prepare import Prepared
from pipeline.data.tta import tta_crops
from pipeline.evaluation import statistics
from pipeline.export.network import LOGITS
from pipeline.export.onnx_file import Graph, Images
from pipeline.export.proof import channels_first, drawn_batches

BATCH = 64
ENOUGH_VIEWS = 1000
"""of validation images; where there are fewer images, further crops of them are added"""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """A form beside model.onnx.

    views, views_equal: of n validation images, and those with the same label. images_equal: of their centre crops.
    top1, top1_fp32: shares of the images that the form, and model.onnx, name right; drop: their difference, with its
    95 % interval of the paired bootstrap. drawn, drawn_equal: of drawn images, in batches of 1, 2, 3 and 64; they decide
    nothing, as classes of other pictures may be near ties for them.
    """

    images: int
    images_equal: int
    views: int
    views_equal: int
    top1: float
    top1_fp32: float
    drop: float
    drop_low: float
    drop_high: float
    drawn: int
    drawn_equal: int


@dataclass(frozen=True)
class Gate:
    """What a form has to reach.

    equal: the least share of views with equal labels. drop: the largest fall of top-1, a share of the images.
    """

    equal: float
    drop: float

    def faults(self, found: Agreement) -> list[str]:
        """What a form does not reach; empty: it passes."""
        said = []
        if found.views_equal < (needed := math.ceil(round(self.equal * found.views, 9))):
            said.append(
                f"{found.views_equal:,} of {found.views:,} labels equal (views of {found.images:,} validation images), "
                f"where {needed:,} are needed"
            )
        if found.drop > self.drop:
            said.append(
                f"top-1 falls by {100 * found.drop:.2f} points, where {100 * self.drop:.2f} are allowed"
            )
        return said


class Yardstick:
    """Views of a run's validation images, and what model.onnx says of them."""

    def __init__(self, config: Config, data: Prepared, graph: Graph) -> None:
        """data: with validation images; graph: model.onnx."""
        self._data, self._rows = data, data.rows("val")
        self._drawn = list(drawn_batches(config.data.image_px))
        crops = tta_crops(config.data, "ten_crop" if config.data.resize_px > config.data.image_px else "flip")
        if config.eval.tta == "flip":
            crops = crops[::2]  # the graph sees the mirror images itself
        self._crops = crops[: math.ceil(ENOUGH_VIEWS / len(self._rows))]
        self._truth = data.labels[self._rows]
        self._expected = self._labels(graph, "model.onnx")
        self._expected_of_drawn = _labels(graph, self._drawn)

    def agreement(self, graph: Graph, words: str) -> Agreement:
        """How far a form agrees with model.onnx; words: of it, for the progress."""
        found, n = self._labels(graph, words), len(self._truth)
        equal = found == self._expected
        right, right_fp32 = ((one[:n] == self._truth).astype(np.float64) for one in (found, self._expected))
        drop, low, high = statistics.difference(right, right_fp32)
        of_drawn = _labels(graph, self._drawn) == self._expected_of_drawn
        return Agreement(
            images=n,
            images_equal=int(equal[:n].sum()),
            views=len(equal),
            views_equal=int(equal.sum()),
            top1=float(right.mean()),
            top1_fp32=float(right_fp32.mean()),
            drop=drop,
            drop_low=low,
            drop_high=high,
            drawn=len(of_drawn),
            drawn_equal=int(of_drawn.sum()),
        )

    def _labels(self, graph: Graph, words: str) -> Labels:
        """Of every view: all centre crops first."""
        with console.bar(words, len(self._crops) * len(self._rows), "views") as bar:
            return _labels(graph, self._views(bar))

    def _views(self, bar: console.Bar) -> Iterator[Images]:
        for crop in self._crops:
            for start in range(0, len(self._rows), BATCH):
                rows = self._rows[start : start + BATCH]
                yield channels_first([crop(self._data.store[row], 0, 0) for row in rows])
                bar.advance(len(rows))


def _labels(graph: Graph, batches: Iterable[Images]) -> Labels:
    return np.concatenate([graph.outputs(batch)[LOGITS].argmax(axis=1) for batch in batches])
