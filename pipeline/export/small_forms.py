"""model.fp16.onnx and model.int8.onnx: smaller forms of model.onnx, each written only where it answers as that does."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx

from pipeline.common import console, files, seeding
from pipeline.config.schema import Config
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.export import golden, int8, layers, onnx_file
from pipeline.export.gate import Gate, Yardstick
from pipeline.export.onnx_file import Graph, GraphFault, Images
from pipeline.export.proof import TOLERANCE, channels_first

Form = Literal["fp16", "int8"]
FORMS: tuple[Form, ...] = ("fp16", "int8")
GATES: dict[Form, Gate] = {"fp16": Gate(equal=0.998, drop=0.005), "int8": Gate(equal=0.98, drop=0.005)}
INT8_TOLERANCE = 0.15
"""of logits that are computed in int8, whose kernels round differently on other processors: the same file in float32
kernels gives logits that differ by up to 0.085 of the largest (MobileNetV2)"""
FIRST_IN_FP32 = 8
"""layers left in fp32: few weights, most of the rounding error (MobileNetV2: rms of logits 0.2 % for 1.4 %)"""
CALIBRATION_IMAGES, CALIBRATION_BATCH = 128, 4


class Candidate(NamedTuple):
    """A way to a form; tolerance: of its logits on other machines, relative to the largest one."""

    name: str
    make: Callable[[], onnx.ModelProto]
    tolerance: float


def write(
    folder: Path, config: Config, data: Prepared | None, wanted: Collection[Form], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the forms that pass, of the first candidate each that does; what was measured, in plain types.

    Args:
        folder: with model.onnx and golden/.
        data: with validation images; None: nothing is written, as nothing can be judged.
        wanted: the others are None in what is returned.
        facts: the metadata of model.onnx.
    """
    measured: dict[str, Any] = dict.fromkeys(FORMS)
    if data is None:
        for form in wanted:
            console.warn(f"{form} is not written, as there are no validation images at hand to judge it on")
            measured[form] = {"file": None, "candidates": []}
    elif wanted:
        yardstick = Yardstick(config, data, Graph(folder / "model.onnx"))
        for form in (form for form in FORMS if form in wanted):
            candidates = _half(folder) if form == "fp16" else _eighth(folder, config, data)
            measured[form] = _first_that_passes(folder, form, candidates, yardstick, facts)
    return measured


def file_of(form: Form) -> str:
    """The name of a form's file."""
    return f"model.{form}.onnx"


def _half(folder: Path) -> list[Candidate]:
    model = onnx.load(folder / "model.onnx")
    every = layers.layers_of(model)
    is_deep = len(every) > FIRST_IN_FP32

    def make() -> onnx.ModelProto:
        layers.store_as_float16(model, every[FIRST_IN_FP32:] if is_deep else every)
        return model

    but = f" but the first {FIRST_IN_FP32}" if is_deep else ""
    return [Candidate(f"the weights of all layers{but}", make, TOLERANCE)]


def _eighth(folder: Path, config: Config, data: Prepared) -> list[Candidate]:
    path = folder / "model.onnx"
    model = onnx.load(path)
    ranges = functools.cache(lambda: int8.calibrate(path, _training_images(config, data)))

    def candidate(one: int8.Candidate) -> Candidate:
        tolerance = INT8_TOLERANCE if one.activations else TOLERANCE
        return Candidate(one.name, lambda: int8.converted(path, one, ranges), tolerance)

    return [candidate(one) for one in int8.CANDIDATES if one.layers_of(model)]


def _training_images(config: Config, data: Prepared) -> Iterator[Images]:
    """Centre crops of training images, the same each time."""
    rows = data.training_rows(config)
    drawn = seeding.generator("int8", config.seed).permutation(rows)[:CALIBRATION_IMAGES]
    crop = CentreCrop(config.data)
    with console.bar("calibrate", len(drawn)) as bar:
        for start in range(0, len(drawn), CALIBRATION_BATCH):
            batch = [crop(data.store[row], 0, 0) for row in drawn[start : start + CALIBRATION_BATCH]]
            yield channels_first(batch)
            bar.advance(len(batch))


def _first_that_passes(
    folder: Path,
    form: Form,
    candidates: Collection[Candidate],
    yardstick: Yardstick,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the form of the first candidate that passes the gate, with its golden logits; what was measured."""
    path = folder / file_of(form)
    tried: list[dict[str, Any]] = []
    measured = {"file": None, "gate": dataclasses.asdict(GATES[form]), "candidates": tried}
    for candidate in candidates:
        one = _judged(candidate, form, path, yardstick)
        tried.append(one)
        console.say(f"export  {form}, {candidate.name}: {_in_words(one)}")
        if not one["faults"]:
            onnx_file.describe(path, {**facts, "form": {"form": form, **one}})
            golden.write_of_form(
                folder / "golden", form, Graph(path), facts["preprocessing"], candidate.tolerance
            )
            return measured | {"file": path.name}
    path.unlink(missing_ok=True)
    console.warn(
        f"{form} is not written: no form of it answers as model.onnx does; export.json has the numbers"
    )
    return measured


def _judged(candidate: Candidate, form: Form, path: Path, yardstick: Yardstick) -> dict[str, Any]:
    """Write a candidate; its size, how far it agrees, and its faults: none, if it passes. In plain types."""
    try:
        with onnx_file.graph_faults():
            onnx.save(candidate.make(), path)
        found = yardstick.agreement(Graph(path), form)
    except GraphFault as fault:
        return {"name": candidate.name, "faults": [str(fault)]}
    size_bytes, faults = path.stat().st_size, GATES[form].faults(found)
    return {
        "name": candidate.name,
        "size_bytes": size_bytes,
        **dataclasses.asdict(found),
        "faults": faults,
    }


def _in_words(one: Mapping[str, Any]) -> str:
    if one["faults"]:
        return "; ".join(one["faults"])
    return (
        f"{one['views_equal']:,} of {one['views']:,} labels equal, top-1 {one['top1']:.4f} instead of "
        f"{one['top1_fp32']:.4f}: written, {files.size_in_words(one['size_bytes'])}"
    )
