"""A training step, against timm's with its settings tuned, and against what this machine's matrix product reaches.

Each side has a process of its own and both take steps in turn, each in the format, float32 or bfloat16, that is faster
for it. timm's is the step of its train.py: layout channels_last, normalisation of its PrefetchLoader, label smoothing,
its SGD. Of frozen batch norms, timm has the faster of two ways: norms in evaluation mode, as ours, and its own
`freeze_batch_norm_2d`, whose scale and shift do not learn.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from measuring import Measurement, Options, in_pairs, of_runs

if TYPE_CHECKING:
    from pipeline.config.schema import Config
    from pipeline.training.state import TrainState

NETWORKS = (
    *(("mobilenetv2_100", 224, 16), ("tf_efficientnet_lite0", 224, 16), ("resnet18", 224, 16)),
    ("resnet50", 448, 4),
)
TINY = (("test_efficientnet", 32, 2),)
CLASSES, GOAL = 200, 1.25
FORMATS = ("fp32", "bf16")
MATRIX, PRODUCTS = 2048, 6
Who = Literal["ours", "timm"]
LEARNING, FROZEN, CONSTANT = "learning", "frozen", "constant"  # batch norms; constant: scale and shift, too


def measure(options: Options) -> Iterator[Measurement]:
    """Each network with batch norms that learn and with frozen ones; the share of the rate of matrix products."""
    for network in TINY if options.tiny else NETWORKS:
        with ExitStack() as opened:
            ours, timms = (opened.enter_context(_Process(who, *network)) for who in ("ours", "timm"))
            yield from _measure(network, ours, timms, rounds=1 if options.tiny else 3)


def _measure(
    network: tuple[str, int, int], ours: "_Process", timms: "_Process", rounds: int
) -> Iterator[Measurement]:
    name, px, batch = network
    mine = {norms: ours.fastest(norms) for norms in (LEARNING, FROZEN)}
    theirs = {LEARNING: timms.fastest(LEARNING), FROZEN: timms.fastest(FROZEN, CONSTANT)}
    for norms, against, goal in (
        (LEARNING, LEARNING, GOAL),
        (FROZEN, FROZEN, GOAL),
        (FROZEN, LEARNING, None),
    ):
        (precision, _), (precision_there, norms_there) = mine[norms], theirs[against]
        yield Measurement(
            part="step",
            what=f"{name} at {px} px, {batch} images, batch norms {norms}",
            unit="images/s",
            against=f"timm tuned, batch norms {norms_there}",
            goal=goal,
            note=f"{precision} against {precision_there}",
            **in_pairs(ours.steps(*mine[norms]), timms.steps(*theirs[against]), rounds=rounds),
        )
    yield _share_of_products(network, ours, mine[FROZEN][0], rounds)


def _share_of_products(
    network: tuple[str, int, int], ours: "_Process", chosen: str, rounds: int
) -> Measurement:
    """How much of the rate of large matrix products, in the same format, a step with frozen norms reaches."""
    name, px, _ = network
    a_step, products = ours.steps(chosen, FROZEN), lambda: ours.ask(products=chosen)
    pairs = [(a_step(), products()) for _ in range(rounds)]
    flops = ours.ask(flops=True)
    return Measurement(
        part="step",
        what=f"{name} at {px} px, batch norms frozen, share of this machine's matrix products",
        **of_runs(images * flops / rate for images, rate in pairs),
        unit="of 1",
        note=f"{flops / 1e9:.1f} G floating-point operations an image, forward and backward; products of {MATRIX} x "
        f"{MATRIX} in {chosen}: {statistics.median(rate for _, rate in pairs) / 1e9:.0f} G/s",
    )


class _Process:
    """One side in a process of its own, which waits while the other is measured."""

    def __init__(self, who: Who, name: str, px: int, batch: int) -> None:
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
        self._process = subprocess.Popen(
            [sys.executable, __file__, who, name, str(px), str(batch)],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, **question: Any) -> float:
        """The number that a method of `Side` of this name gives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"{question}: the process ended with {self._process.wait()}")
        return float(json.loads(answer))

    def fastest(self, *norms: str) -> tuple[str, str]:
        """The format and the kind of batch norms with which a step is fastest here."""
        ways = itertools.product(FORMATS, norms)
        rates = {(precision, kind): self.ask(steps=[precision, kind, 1]) for precision, kind in ways}
        return max(rates, key=lambda way: rates[way])

    def steps(self, precision: str, norms: str) -> Callable[[], float]:
        return lambda: self.ask(steps=[precision, norms, 2])


class Side:
    """What a process measures. The models are built when they are first asked for."""

    def __init__(self, who: Who, name: str, px: int, batch: int) -> None:
        self.who, self.name, self.px, self.batch = who, name, px, batch
        self._takers: dict[tuple[str, str], Callable[[], object]] = {}

    def steps(self, question: tuple[str, str, int]) -> float:
        """Images a second over steps, after one to warm up."""
        precision, norms, count = question
        if (precision, norms) not in self._takers:
            build = ours if self.who == "ours" else timms
            self._takers[precision, norms] = build(self.name, self.px, self.batch, precision, norms)
        take = self._takers[precision, norms]
        take()
        began = time.perf_counter()
        for _ in range(count):
            take()
        return count * self.batch / (time.perf_counter() - began)

    def products(self, precision: str) -> float:
        """Floating-point operations a second of products of large square matrices."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        matrix = torch.rand((MATRIX, MATRIX), dtype=dtype)
        matrix @ matrix
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            matrix @ matrix
        return 2 * MATRIX**3 * PRODUCTS / (time.perf_counter() - began)

    def flops(self, _: bool) -> float:
        """Floating-point operations of a forward and a backward pass, for an image: three times those of the forward.

        The backward pass is not counted itself: torch's counter takes that of a grouped convolution for a dense one.
        """
        from torch.utils.flop_counter import FlopCounterMode

        from pipeline.config.model import ModelConfig
        from pipeline.models.build import build_model

        with torch.device("meta"):
            model, _origin = build_model(ModelConfig(name=self.name, pretrained=False), CLASSES)
            images = torch.zeros((2, 3, self.px, self.px), dtype=torch.uint8)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(images)
        return 3 * counter.get_total_flops() / len(images)


def drawn(px: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as a loader gives them: uint8 [B, 3, H, W], and their labels."""
    pixels = torch.randint(256, (batch, px, px, 3), dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2), torch.arange(batch)


def ours(name: str, px: int, batch: int, precision: str, norms: str) -> Callable[[], object]:
    """What takes a step of a run of ours, whose loss is read as it is where each step is logged."""
    from pipeline.data.loader import Batch
    from pipeline.distributed import process_group
    from pipeline.distributed.process_group import Ranks
    from pipeline.training import phases, step

    config = configuration(
        name, px, batch, precision, f"model.freeze_batchnorm={str(norms == FROZEN).lower()}"
    )
    ranks = Ranks.single(process_group.select_device(config.train))
    state = fresh_state(config)
    settings = step.StepSettings(0, 0.1, (), None, batch, precision, ranks)  # type: ignore[arg-type]
    images, labels = drawn(px, batch)

    def take() -> object:
        made = Batch(images, labels, labels)
        return step.train_step(state, state.model, made, batch, phases.Rates(1e-3, 0.9), settings).tolist()

    return take


def configuration(name: str, px: int, batch: int, precision: str, *more: str) -> "Config":
    """Of a network with random weights on the CPU."""
    from pipeline.config.load import load_config

    words = [f"model.name={name}", "model.pretrained=false", f"data.image_px={px}", f"data.resize_px={px}"]
    words += [f"train.precision={precision}", "train.device=cpu", f"optim.batch_size={batch}", *more]
    return load_config(None, words)


def fresh_state(config: "Config") -> "TrainState":
    """A state at the beginning of a run, made as a run makes it; the format is not to be auto."""
    from pipeline.models.build import build_model
    from pipeline.training import phases
    from pipeline.training.freezing import FreezeSchedule, learn_fast
    from pipeline.training.optimizer import build_optimizer, parameter_groups
    from pipeline.training.state import TrainState

    model, _ = build_model(config.model, CLASSES)
    model.to(memory_format=torch.channels_last)
    learn_fast(config, model, config.train.precision)  # type: ignore[arg-type]
    FreezeSchedule(config, model).apply(0)
    groups = parameter_groups(model, config.optim, weight_decay=config.optim.weight_decay)
    phase, begin = config.optim.resolved_phases[0], phases.first(config.optim)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, build_optimizer(groups, phase, lr=begin.lr), scaler, None, begin)


def timms(name: str, px: int, batch: int, precision: str, norms: str) -> Callable[[], object]:
    """What takes a step as timm's train.py does with `--channels-last --amp --amp-dtype bfloat16`, or without amp."""
    import timm
    from timm.data.loader import PrefetchLoader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils.model import freeze_batch_norm_2d

    model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    if norms == CONSTANT:
        model = freeze_batch_norm_2d(model)
    model = model.to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if norms == FROZEN and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-3, momentum=0.9, weight_decay=2e-5)
    loss_of, device = LabelSmoothingCrossEntropy(0.1), torch.device("cpu")
    loader = PrefetchLoader([drawn(px, batch)], device=device)

    def take() -> object:
        for normalised, labels in loader:
            images = normalised.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return take


def _answer() -> None:
    """Answer the questions of the other process, one a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    who, name, px, batch = sys.argv[1:]
    side = Side(who, name, int(px), int(batch))  # type: ignore[arg-type]
    for line in sys.stdin:
        ((method, question),) = json.loads(line).items()
        print(json.dumps(getattr(side, method)(question)), file=answers, flush=True)


if __name__ == "__main__":
    _answer()
