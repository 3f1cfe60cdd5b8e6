"""Predictions of the test split: `plumage eval` and `plumage predict`, against timm's validate.py and ONNX Runtime.

All have the same random weights and all cores; start, loading and export are not counted. timm's validate.py is run as
its documentation has it (Pillow, four loader processes, batches of 256, float32), and tuned (channels_last, bfloat16,
batches of 64). ONNX Runtime is fed with the crops of our store, by the faster of two ways: batches of 64 and its own
threads, or four images in each of as many threads as there are cores.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import inference_sides
from measuring import ROUNDS, Measurement, Options, in_a_process

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.inference.load_model import checkpoint_path
from pipeline.models.precision import cpu_has_bf16
from pipeline.training.trainer import train

NETWORKS = (("mobilenetv2_100", 224, 640), ("tf_efficientnet_lite0", 224, 640), ("resnet50", 448, 48))
TINY = (("test_efficientnet", 32, 12),)
WORDS = {"store": "plumage eval, from the store", "files": "plumage predict, from files into a table"}
AGAINST = {
    "timm": "timm's validate.py, its defaults",
    "timm_tuned": "timm's validate.py, channels_last and bf16",
    "onnxruntime": "ONNX Runtime, fp32",
}
Side = tuple[str, str]
"""its name, and the format of the run whose checkpoint it predicts with"""


class Pair(NamedTuple):
    ours: Side
    other: Side
    goal: float | None = None


PAIRS = (
    Pair(("store", "fp32"), ("timm", "fp32"), 3),
    Pair(("files", "fp32"), ("timm", "fp32"), 3),
    Pair(("store", "fp32"), ("onnxruntime", "fp32"), 1),
    Pair(("store", "bf16"), ("timm_tuned", "bf16")),
    Pair(("store", "bf16"), ("onnxruntime", "fp32")),
)


def measure(options: Options) -> Iterator[Measurement]:
    """Each network: all sides in turn, each in a process of its own; tiny: in this one."""
    console.mute()
    has_ort = importlib.util.find_spec("onnxruntime") is not None
    pairs = [pair for pair in PAIRS if has_ort or pair.other[0] != "onnxruntime"]
    pairs = [pair for pair in pairs if pair.ours[1] == "fp32" or cpu_has_bf16()]
    sides = dict.fromkeys(side for pair in pairs for side in (pair.ours, pair.other))
    for network in TINY if options.tiny else NETWORKS:
        for precision in dict.fromkeys(precision for _, precision in sides):
            make_run(inference_sides.configuration(options, *network[:2], precision))
        with tempfile.TemporaryDirectory() as scratch:
            arguments = {"overrides": options.overrides, "folder": str(options.folder), "tiny": options.tiny}
            arguments |= {"network": list(network), "scratch": scratch}
            rounds = [
                {side: _measured(options, side, arguments) for side in sides}
                for _ in range(1 if options.tiny else ROUNDS)
            ]
        what = f"{network[0]} at {network[1]} px"
        yield from (_compared(pair, what, rounds) for pair in pairs)
        if not has_ort:
            note = "ONNX Runtime is not measured: pip install --editable '.[export]'"
            yield Measurement("inference", what, 0, "images/s", note=note, is_complete=False)


def _measured(options: Options, side: Side, arguments: dict[str, Any]) -> dict[str, Any]:
    arguments = {**arguments, "name": side[0], "precision": side[1]}
    if options.tiny:
        return inference_sides.side(**arguments)
    measured: dict[str, Any] = in_a_process("inference_sides", arguments)
    return measured


def make_run(config: Config) -> None:
    """A training of one step, once: all sides predict with its checkpoint."""
    prepare.prepare(config)
    if not checkpoint_path(config).is_file():
        train(config)


def _compared(pair: Pair, what: str, rounds: list[dict[Side, dict[str, Any]]]) -> Measurement:
    mine, theirs = ([one[side]["images_per_s"] for one in rounds] for side in (pair.ours, pair.other))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    middle = len(rounds) // 2
    return Measurement(
        part="inference",
        what=f"{what}, {WORDS[pair.ours[0]]}, {pair.ours[1]}",
        ours=sorted(mine)[middle],
        unit="images/s",
        against=AGAINST[pair.other[0]],
        other=sorted(theirs)[middle],
        ratio=ratios[middle],
        lowest=ratios[0],
        highest=ratios[-1],
        pairs=len(rounds),
        goal=pair.goal,
        note=rounds[0][pair.other]["note"],
    )
