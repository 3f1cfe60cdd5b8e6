"""How fast: the device's ceilings, a training step beside a bare loop of PyTorch, evaluation, the loader."""

import itertools
import time
from collections.abc import Callable

import timm
import torch
from setting import Rows, Setting, largest
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data import prepare, sampling
from pipeline.data.loader import build_loader
from pipeline.data.transforms import Augmentation
from pipeline.distributed.process_group import Ranks
from pipeline.inference.predict import predict_batches
from pipeline.models.precision import autocast
from pipeline.training.phases import Rates
from pipeline.training.step import train_step

RATES = Rates(0.002, 0.9)


def ceiling(setting: Setting) -> Rows:
    """The fastest that products and copies go here: bf16, and bytes read and written."""
    side, copied = (256, 1 << 20) if setting.tiny else (8192, 1 << 31)
    left, right = (
        torch.randn(side, side, device=setting.device, dtype=torch.bfloat16).contiguous() for _ in range(2)
    )
    product_s = setting.median_seconds(lambda: left @ right, 3 if setting.tiny else 20)
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    copy_s = setting.median_seconds(lambda: target.copy_(source), 3 if setting.tiny else 20)
    yield {
        "bf16_tflops": round(2 * side**3 / product_s / 1e12, 2),
        "copy_tb_per_s": round(2 * copied / copy_s / 1e12, 3),
    }


def step(setting: Setting) -> Rows:
    """Training steps: as the program takes them, and as a bare loop does."""
    images = setting.batch_size
    work = training_tflop(setting)

    def row(case: str, made: Callable[[], object], count: int) -> Rows:
        measured = setting.measure(made, images=count)
        yield {"case": case, **measured, "tflops": round(measured["images_per_s"] * work, 1)}

    # In turn, as clocks and temperature change in the first seconds; the better round of each counts.
    sides = {"ours": our_step(setting, [images]), "bare loop": bare_step(setting, compiled=False)}
    rounds = [{case: setting.measure(made, images=images) for case, made in sides.items()} for _ in range(3)]
    for case in sides:
        best = max((one[case] for one in rounds), key=lambda measured: measured["images_per_s"])
        yield {"case": case, **best, "tflops": round(best["images_per_s"] * work, 1)}
    for fewer in (images // 4, images // 8):
        yield from row(f"ours, {fewer} images", our_step(setting, [fewer]), fewer)
    for case, overrides in CASES.items():
        yield from row(f"ours, {case}", our_step(setting, [images], *overrides), images)


CASES = {
    "mixup": ["train.mix=[{name: mixup, alpha: 0.4, probability: 1}]"],
    "snapmix, two heads": [
        "train.mix=[{name: snapmix, alpha: 5, probability: 1}]",
        "model.mid_level_head=true",
    ],
    "ema, clip": ["train.ema_decay=0.999", "optim.clip_norm=5"],
    "fp16": ["train.precision=fp16"],
    "default layout": ["train.channels_last=false"],
    "fp32, tf32": ["train.precision=fp32", "train.tf32=true"],
    "fp32": ["train.precision=fp32"],  # the last: cuDNN tries algorithms for a minute
}


def compiled(setting: Setting) -> Rows:
    """Compiled steps, with batches of one size and of the two sizes that an epoch has."""
    images, work = setting.batch_size, training_tflop(setting)
    for case, step_once, count in (
        ("bare loop, compiled", lambda: bare_step(setting, compiled=True), images),
        (
            "ours, compiled",
            lambda: our_step(setting, [images, images - 1], "train.compile=true"),
            images - 0.5,
        ),
    ):
        measured = setting.measure(step_once(), images=count, warm_up=4)
        yield {"case": case, **measured, "tflops": round(measured["images_per_s"] * work, 1)}


def graphs(setting: Setting) -> Rows:
    """What CUDA graphs bring where the host sets the pace, at few images a step; and whether they change a loss."""
    images = setting.batch_size // 8
    ways = {"compiled": ["train.compile=true"]}
    if setting.on_gpu:
        ways["CUDA graphs"] = ["train.compile=true", "train.cuda_graphs=true"]
    losses = {}
    for case, overrides in ways.items():
        once = our_step(setting, [images, images], "train.ema_decay=0.999", "optim.clip_norm=5", *overrides)
        losses[case] = [float(once()[0]) / images for _ in range(8)]  # graphs are recorded in the second step
        apart = [abs(one / other - 1) for one, other in zip(losses[case], losses["compiled"], strict=True)]
        yield {"case": case, **setting.measure(once, images=images), "losses_apart": largest(apart)}
    if setting.on_gpu:
        once = our_step(setting, [setting.batch_size], *ways["CUDA graphs"])
        case = f"CUDA graphs, {setting.batch_size} images"
        yield {"case": case, **setting.measure(once, images=setting.batch_size, warm_up=4)}


def our_step(setting: Setting, sizes: list[int], *overrides: str) -> Callable[[], Tensor]:
    """A step of `train`, with batches of these sizes in turn."""
    trainer = setting.trainer(f"optim.batch_size={max(sizes)}", *overrides)
    trainer._set_train_mode(0)  # a run's own way to wrap and compile its model
    batches = itertools.cycle([setting.random_batch(size) for size in sizes])

    def once() -> Tensor:
        batch = next(batches)
        return train_step(trainer.state, trainer.ddp_model, batch, len(batch.label), RATES, trainer.settings)

    return once


def bare_step(setting: Setting, *, compiled: bool) -> Callable[[], object]:
    """A step of a plain loop of PyTorch: the same network, format, layout and optimizer, normalised images."""
    torch.backends.cudnn.benchmark = True
    classes = setting.config().data.synthetic.species
    model = timm.create_model(setting.model, num_classes=classes).to(
        setting.device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        0.002,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        fused=setting.on_gpu or None,
    )
    called = torch.compile(model, dynamic=False) if compiled else model
    images = torch.randn(setting.batch_size, 3, setting.image_px, setting.image_px, device=setting.device)
    images = images.contiguous(memory_format=torch.channels_last)
    label = torch.randint(classes, (setting.batch_size,), device=setting.device)
    precision = "bf16" if setting.on_gpu else "fp32"

    def once() -> None:
        with autocast(setting.device, precision):
            loss = F.cross_entropy(called(images), label, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def training_tflop(setting: Setting) -> float:
    """Operations of one image's forward and backward pass, 1e12: three times those of its forward pass."""
    with torch.device("meta"):
        model = timm.create_model(setting.model, num_classes=200)
        image = torch.empty(1, 3, setting.image_px, setting.image_px)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return 3 * counter.get_total_flops() / 1e12


def evaluation(setting: Setting) -> Rows:
    """Evaluation from batches in memory, beside bare forward passes."""
    trainer = setting.trainer()
    rounds = 2 if setting.tiny else 20
    batches = [setting.random_batch(setting.batch_size) for _ in range(2)] * rounds
    numbered = [
        batch._replace(row=batch.row + number * len(batch.row)) for number, batch in enumerate(batches)
    ]
    images = setting.batch_size * len(numbered)
    rows = torch.arange(images).numpy()

    def predict() -> None:
        predict_batches(trainer.state.model, numbered, rows, trainer.start.precision, trainer.ranks)

    model = trainer.state.model.eval()
    on_device = numbered[0].to(setting.device).image

    @torch.inference_mode()
    def bare() -> None:
        for _ in numbered:
            with autocast(setting.device, trainer.start.precision):
                model(on_device)

    for case, action in (("ours", predict), ("bare loop", bare)):
        yield {"case": case, "images_per_s": round(images / setting.median_seconds(action, 3), 1)}


def loader(setting: Setting) -> Rows:
    """The loader with its processes, batches copied to the device."""
    config = setting.config()
    data, ranks = prepare.load(config), Ranks.single(setting.device)
    view = Augmentation(config.data, config.seed)
    for workers in (1, 2) if setting.tiny else (1, 4, 8, 16):
        server = build_loader(data, view, workers, ranks)
        per_worker = 6 if setting.tiny else 12
        order = sampling.epoch_order(range(len(data.samples)), 0, 0)
        batches = sampling.in_batches(order, setting.batch_size)
        batches = list(itertools.islice(itertools.cycle(batches), per_worker * workers))
        served = 0
        for number, batch in enumerate(server.batches(0, batches)):
            batch.to(setting.device)
            if number == len(batches) // 2:  # processes have started, and the first pages are in memory
                setting.wait()
                began, served = time.perf_counter(), 0
            served += len(batch.label)
        setting.wait()
        rate = (served - len(batches[0])) / (time.perf_counter() - began)
        yield {"case": f"{workers} processes", "workers": workers, "images_per_s": round(rate, 1)}
