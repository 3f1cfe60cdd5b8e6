"""Forms of a trained model: images a second, and bytes. PyTorch, and the graphs that `plumage export` writes.

All have the same random weights, the same crops and all cores, and run in turn in one process. Whether a smaller form
answers as the model does is not asked here: `plumage export` asks that of a trained one.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inference
import inference_sides
import numpy as np
import onnx
import torch
from measuring import ROUNDS, Measurement, Options, images_per_s

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.loader import Batch
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.export import int8, layers, onnx_file, small_forms
from pipeline.export.network import ExportedNetwork
from pipeline.export.onnx_file import Graph, Images
from pipeline.export.proof import channels_first
from pipeline.inference.load_model import LoadedModel, checkpoint_path, load_model
from pipeline.inference.predict import predict_batches
from pipeline.models.precision import cpu_has_bf16

NETWORKS = (("mobilenetv2_100", 224), ("tf_efficientnet_lite0", 224), ("resnet50", 224))
TINY = (("test_resnet", 32),)
BATCHES = 1, 32
IMAGES = 32
BASELINE = "PyTorch, fp32"
RANKS = Ranks.single(torch.device("cpu"))

Compute = Callable[[Images], object]


def measure(options: Options) -> Iterator[Measurement]:
    """Each form of each network, in batches of 1 and of 32, beside the model in PyTorch and float32."""
    console.mute()
    for name, px in TINY if options.tiny else NETWORKS:
        with tempfile.TemporaryDirectory() as scratch:
            images, forms, sizes = _forms(options, name, px, Path(scratch))
            for batch in BATCHES:
                yield from _measured(f"{name} at {px} px", batch, images, forms, sizes, options.tiny)


def _forms(
    options: Options, name: str, px: int, scratch: Path
) -> tuple[Images, dict[str, Compute], dict[str, int]]:
    """Crops of test images, what computes each form, and its bytes."""
    forms: dict[str, Compute] = {}
    sizes: dict[str, int] = {}
    for precision in ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]:
        config = inference_sides.configuration(options, name, px, precision)
        inference.make_run(config)
        data = prepare.load(config)
        model = load_model(config, data.samples, checkpoint_path(config), RANKS)
        forms[f"PyTorch, {precision}"] = _in_torch(model)
        sizes[f"PyTorch, {precision}"] = sum(one.nbytes for one in model.model.state_dict().values())
    crop = CentreCrop(config.data)
    images = channels_first([crop(data.store[row], 0, 0) for row in data.rows("test")[:IMAGES]])
    for form, graph in _graphs(config, model, images, scratch / "model.onnx").items():
        path = scratch / "form.onnx"
        onnx.save(graph, path)
        forms[f"ONNX Runtime, {form}"] = Graph(path).outputs
        sizes[f"ONNX Runtime, {form}"] = path.stat().st_size
    return images, forms, sizes


def _in_torch(model: LoadedModel) -> Compute:
    def compute(images: Images) -> object:
        rows = torch.arange(len(images))
        batch = Batch(torch.from_numpy(images), rows, rows)
        return predict_batches(model.network, [batch], rows.numpy(), model.precision, RANKS)

    return compute


def _graphs(config: Config, model: LoadedModel, images: Images, path: Path) -> dict[str, onnx.ModelProto]:
    network = ExportedNetwork(model.model, 1.0, "none", None)
    onnx_file.write(onnx_file.EXPORTERS["dynamo"], network, config.data.image_px, path)
    ranges = int8.calibrate(path, np.array_split(images, math.ceil(len(images) / 4)))
    plain, half = onnx.load(path), onnx.load(path)
    layers.store_as_float16(half, layers.layers_of(half)[small_forms.FIRST_IN_FP32 :])
    return {"fp32": plain, "weights of fp16": half} | {
        f"int8: {one.name}": int8.converted(path, one, lambda: ranges)
        for one in (int8.CANDIDATES[0], *int8.CANDIDATES[-2:])
        if one.layers_of(plain)
    }


def _measured(
    what: str, batch: int, images: Images, forms: dict[str, Compute], sizes: dict[str, int], tiny: bool
) -> Iterator[Measurement]:
    some = images[:batch]
    calls = 1 if tiny else max(1, IMAGES // batch)

    def run(compute: Compute) -> float:
        return images_per_s(calls * len(some), lambda: [compute(some) for _ in range(calls)])

    for compute in forms.values():
        compute(some)
    rounds = [{form: run(compute) for form, compute in forms.items()} for _ in range(1 if tiny else ROUNDS)]
    for form in forms:
        ratios = sorted(one[form] / one[BASELINE] for one in rounds)
        beside: dict[str, Any] = (
            {}
            if form == BASELINE
            else {
                "against": BASELINE,
                "other": statistics.median(one[BASELINE] for one in rounds),
                "ratio": statistics.median(ratios),
                "lowest": ratios[0],
                "highest": ratios[-1],
                "pairs": len(rounds),
            }
        )
        speed = statistics.median(one[form] for one in rounds)
        size = f"{sizes[form] / 2**20:.1f} MiB"
        yield Measurement("export", f"{what}, batch {batch}, {form}", speed, "images/s", note=size, **beside)
