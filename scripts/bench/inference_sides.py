"""The sides of the part `inference`: each predicts images of the test split with a run's checkpoint, and times it."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import Options, images_per_s
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import Subset

from pipeline.answering.answer_files import AnswerFile
from pipeline.answering.answering import Answering
from pipeline.answering.picture_outputs import outputs_of
from pipeline.common import console, hardware
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.image_store import map_in_order
from pipeline.data.loader import build_loader
from pipeline.data.sampling import in_order
from pipeline.data.sources.source import source_of
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks, select_device
from pipeline.inference.load_model import checkpoint_path, load_model
from pipeline.inference.predict import predict_rows

TINY_DATA = "data.synthetic={species: 3, images_per_species: 10, train_per_species: 5, long_side_px: 64}"
BATCH, FEW = 64, 4
TOP = 5


def configuration(options: Options, name: str, px: int, precision: str) -> Config:
    """Of a run with random weights; weights that the command line names are of one network alone."""
    given = tuple(word for word in options.overrides if not word.startswith("model."))
    return dataclasses.replace(options, overrides=given).config(
        *[TINY_DATA] * (options.tiny and not options.has_data),
        *(f"model.name={name}", "model.pretrained=false", f"run.name=inference-{name}-{precision}"),
        *(f"data.image_px={px}", f"data.resize_px={round(px / 0.875)}", "data.val_fraction=0"),
        *("train.device=cpu", f"train.precision={precision}", "train.epochs=1", "train.max_steps=1"),
        *("optim.batch_size=8", "optim.lr=0.001", "eval.checkpoint=last", f"eval.batch_size={BATCH}"),
    )


def side(
    overrides: list[str],
    folder: str,
    tiny: bool,
    network: tuple[str, int, int],
    scratch: str,
    name: str,
    precision: str,
) -> dict[str, Any]:
    """Images a second of one side, and what there is to say of it."""
    console.mute()
    px, images = network[1:]
    config = configuration(Options(tuple(overrides), Path(folder), tiny), network[0], px, precision)
    measured = SIDES[name](_Task(config, images, Path(scratch)))
    return {"note": "", **measured}


class _Task:
    """The first images of the test split, and the trained model."""

    def __init__(self, config: Config, images: int, scratch: Path) -> None:
        self.config, self.scratch = config, scratch
        self.ranks = Ranks.single(select_device(config.train))
        self.data = prepare.load(config)
        self.rows = np.array(self.data.rows("test")[:images], np.int64)
        path = checkpoint_path(config)
        self.model = load_model(config, self.data.samples, path, self.ranks)
        self.plain = load_model(config, self.data.samples, path, self.ranks, as_trained=True).model

    @property
    def classes(self) -> list[str]:
        return list(self.data.samples.groupby("label")["class_name"].first())

    @property
    def files(self) -> list[Path]:
        folder = source_of(self.config.data).images(prepare.fetch(self.config.data))
        return [folder / path for path in self.data.samples["path"].iloc[self.rows]]


def from_the_store(task: _Task) -> dict[str, Any]:
    """The pass of `plumage eval`."""
    loader = build_loader(task.data, CentreCrop(task.config.data), task.config.data.workers, task.ranks)

    def predict(rows: Any) -> object:
        model, batch = task.model, task.config.eval.batch_size
        return predict_rows(
            model.network, loader, rows, model.precision, task.ranks, batch_size=batch, features=True
        )

    predict(task.rows[:FEW])
    return {"images_per_s": images_per_s(len(task.rows), lambda: predict(task.rows))}


def from_files(task: _Task) -> dict[str, Any]:
    """`plumage predict --csv`: pictures are decoded, resized, cropped, predicted, and their answers written."""
    answering = Answering.of_run(task.config, task.model, task.classes)
    table = AnswerFile("csv", task.scratch / "answers.csv")

    def predict(files: list[Path]) -> None:
        with table.writing(answering.classes, TOP, False, False, answering.columns) as write:
            for batch in outputs_of(task.config, task.model, files, task.ranks.device):
                for one in batch:
                    write(answering.answer(one, TOP))

    predict(task.files[:FEW])
    return {"images_per_s": images_per_s(len(task.rows), lambda: predict(task.files))}


def timm_validate(task: _Task, *, tuned: bool) -> dict[str, Any]:
    """What timm's validate.py does, in its order, from a folder of the classes' files."""
    root = task.scratch / "images"
    if not root.exists():
        for path, label in zip(task.files, task.data.labels[task.rows], strict=True):
            (root / f"{label:05d}").mkdir(parents=True, exist_ok=True)
            (root / f"{label:05d}" / path.name).symlink_to(path)
    device, px = torch.device("cpu"), task.config.data.image_px
    model = timm.create_model(task.config.model.name, num_classes=len(task.classes))
    model.load_state_dict(task.plain.backbone.state_dict())
    data_config = resolve_data_config({"img_size": px}, model=model, use_test_size=True)
    model = model.to(device).eval()
    class_map = {f"{label:05d}": label for label in range(len(task.classes))}
    dataset = create_dataset("", root=str(root), split="validation", class_map=class_map)
    if tuned:
        model = model.to(memory_format=torch.channels_last)

    def loader_of(pictures: Any) -> Iterable[Any]:
        made: Iterable[Any] = create_loader(
            pictures,
            input_size=data_config["input_size"],
            batch_size=BATCH if tuned else 256,
            use_prefetcher=True,
            interpolation=data_config["interpolation"],
            mean=data_config["mean"],
            std=data_config["std"],
            num_workers=4,
            crop_pct=data_config["crop_pct"],
            crop_mode=data_config["crop_mode"],
            device=device,
        )
        return made

    all_pictures = loader_of(dataset)  # it gives the data set its transforms
    few_pictures = loader_of(Subset(dataset, range(FEW)))
    criterion, losses, top1, top5 = nn.CrossEntropyLoss(), AverageMeter(), AverageMeter(), AverageMeter()

    def seconds(loader: Iterable[Any]) -> float:
        began = time.perf_counter()
        for images, target in loader:
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
            with torch.autocast("cpu", torch.bfloat16) if tuned else nullcontext():
                output = model(images)
                loss = criterion(output, target)
            acc1, acc5 = accuracy(output.detach(), target, topk=(1, min(TOP, len(class_map))))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1.item(), images.size(0))
            top5.update(acc5.item(), images.size(0))
        return time.perf_counter() - began

    with torch.inference_mode():
        model(torch.randn(FEW, *data_config["input_size"]))  # validate.py warms up, too
        to_start_s = seconds(few_pictures)  # its loader processes
        return {"images_per_s": (len(task.rows) - FEW) / (seconds(all_pictures) - to_start_s)}


def onnx_runtime(task: _Task) -> dict[str, Any]:
    """The faster of two ways, by a short trial, with the network as the dynamo exporter writes it."""
    import onnxruntime

    path, px = task.scratch / "model.onnx", task.config.data.image_px
    began = time.perf_counter()
    if not path.exists():
        example = torch.zeros((2, 3, px, px), dtype=torch.uint8)
        batches = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(
            task.plain, (example,), dynamo=True, dynamic_shapes=batches, optimize=True, verbose=False
        )
        assert program is not None
        program.save(path)
    note = f"{time.perf_counter() - began:.0f} s to export"
    loader = build_loader(task.data, CentreCrop(task.config.data), task.config.data.workers, task.ranks)

    def session(threads: int) -> Callable[[Any], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (taken,) = (one.name for one in opened.get_inputs())
        return lambda images: opened.run(None, {taken: np.ascontiguousarray(images.numpy())})

    whole, few, cores = session(hardware.cores()), session(1), hardware.cores()

    def in_batches(rows: Any) -> None:
        for batch in loader.batches(0, in_order(rows, BATCH)):
            whole(batch.image)

    def in_threads(rows: Any) -> None:
        with ThreadPoolExecutor(cores) as pool:
            served = (batch.image for batch in loader.batches(0, in_order(rows, FEW)))
            for _ in map_in_order(pool, few, served, ahead=2 * cores):
                pass

    some = task.rows[: 2 * BATCH]
    ways = {}
    for words, way in {
        f"batches of {BATCH}": in_batches,
        f"{FEW} images in each of {cores} threads": in_threads,
    }.items():
        way(some[:FEW])
        began = time.perf_counter()
        way(some)
        ways[time.perf_counter() - began] = words, way
    words, way = ways[min(ways)]
    return {"images_per_s": images_per_s(len(task.rows), lambda: way(task.rows)), "note": f"{words}; {note}"}


SIDES: dict[str, Callable[[_Task], dict[str, Any]]] = {
    "store": from_the_store,
    "files": from_files,
    "timm": lambda task: timm_validate(task, tuned=False),
    "timm_tuned": lambda task: timm_validate(task, tuned=True),
    "onnxruntime": onnx_runtime,
}
