"""`train.precision=fastest`: whether bfloat16 or float32 is faster for this network on this CPU, by a trial.

Processors that have products of bfloat16 differ in what they gain by them, and so do networks: depthwise convolutions
gain little. `auto` asks the processor alone, so that it is the same in every run; a trial asks the clock, and of two
formats that are about as fast another run may take the other one. What it takes stands in the checkpoints, with which a
run goes on, is evaluated and predicts.
"""

import statistics
import time

import torch
from torch import Tensor

from pipeline.common import console, seeding
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import option_errors, where_size_matters
from pipeline.models.precision import Precision, autocast, has_units, resolve_precision
from pipeline.training.freezing import FreezeSchedule, learn_fast

IMAGES, CLASSES, ROUNDS = 2, 100, 3
CLEARLY_FASTER = 1.1  # float32 has more digits


def choose_precision(config: Config, ranks: Ranks) -> Precision:
    """The precision of a new run: that of `train.precision`, for fastest by the trial of the first rank.

    Raises:
        ConfigError: the network does not exist, or does not take images of this size.
    """
    setting = config.train.precision
    tries = setting == "fastest" and ranks.is_main
    return ranks.broadcast(
        fastest_precision(config, ranks.device) if tries else resolve_precision(setting, ranks.device)
    )


def fastest_precision(config: Config, device: torch.device) -> Precision:
    """bf16 where the passes of this network are clearly faster in it than in fp32, else fp32; on a GPU, as auto.

    Passes forward and backward of two images, which fit into memory wherever a training does, are taken in both
    formats in turn; the median of the ratios counts, so that what else the machine does falls on both.

    Raises:
        ConfigError: as `choose_precision`.
    """
    usual = resolve_precision("auto", device)
    if device.type != "cpu" or not has_units("bf16", device):
        return usual
    gain = _gain_of_bf16(config)
    chosen: Precision = "bf16" if gain >= CLEARLY_FASTER else "fp32"
    console.say(f"format {chosen}: bf16 is {gain:.2f} times as fast as fp32 for {config.model.name} here")
    return chosen


def _gain_of_bf16(config: Config) -> float:
    """Seconds of a pass in fp32 over those in bf16; the first pass of each warms up."""
    side_px = config.data.image_px
    pixels = seeding.generator("precision").integers(0, 256, (IMAGES, side_px, side_px, 3), "uint8")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        model, _ = build_model(without_weights(config.model), CLASSES)
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        with option_errors(*where_size_matters(config, model.backbone, side_px)):
            learn_fast(config, model, "bf16")
            FreezeSchedule(config, model).apply(config.train.epochs - 1)  # the fewest frozen stages
            pairs = [
                (pass_s(model, images, "fp32"), pass_s(model, images, "bf16")) for _ in range(1 + ROUNDS)
            ]
    return statistics.median(in_fp32 / in_bf16 for in_fp32, in_bf16 in pairs[1:])


def pass_s(model: Classifier, images: Tensor, precision: Precision) -> float:
    """Seconds of a forward and a backward pass in a format; no gradient is left."""
    began = time.perf_counter()
    with autocast(images.device, precision):
        logits = model(images)
    logits.float().square().mean().backward()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds
