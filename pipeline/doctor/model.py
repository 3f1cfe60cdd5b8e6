"""Checks of what is trained: where it begins, from which weights, and with which learning rates."""

import torch

from pipeline.common import seeding
from pipeline.common.errors import UserError
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, of_error
from pipeline.models.build import build, without_weights
from pipeline.training import phases, resume, schedule_preview
from pipeline.training.optimizer import set_rates
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import images_per_step
from pipeline.training.state import restore


def start(subject: CheckContext) -> Finding:
    """Whether the run begins, goes on, or may not; the first rank reads the checkpoint."""
    step, finding = 0, Finding("not applicable", "the first rank knows")
    try:
        if subject.ranks.is_main:
            step, finding = _start(subject)
    except UserError as error:
        finding = of_error(error)
    subject.step = subject.ranks.all_gather(step)[0]
    return finding


def _start(subject: CheckContext) -> tuple[int, Finding]:
    config, job = subject.config, subject.job
    found = resume.start_from(config, job.classes, job.samples)
    if found is None:
        return 0, Finding(
            "ok", f"a new run of {subject.steps:,} steps in {config.run_dir}", numbers={"step": 0}
        )
    path, content = found
    fresh = subject.job_of_mine().build_state(
        PhaseState.load(content["phase"]), content["precision"], pretrained=False
    )
    restore(fresh.state, content, path)
    step = int(content["step"])
    numbers = {"step": step, "checkpoint": str(path)}
    if step >= subject.steps:
        figures = f"{path} is of step {step:,} of {subject.steps:,}: nothing is left to train"
        return step, Finding("warning", figures, "take another run.name for another run", numbers)
    return step, Finding("ok", f"goes on from {path}, step {step:,} of {subject.steps:,}", numbers=numbers)


def weights(subject: CheckContext) -> Finding:
    """Which share of the body's tensors was loaded, from where, and that they are not random."""
    finding = Finding("not applicable", "the first rank loads them")
    try:
        if subject.ranks.is_main:
            finding = _weights(subject)
    except UserError as error:
        finding = of_error(error)
    wanted = subject.config.model.pretrained and not subject.step
    subject.pretrained = wanted and subject.ranks.all_gather(finding)[0].state in ("ok", "warning")
    return finding


def _weights(subject: CheckContext) -> Finding:
    """Hold the pretrained weights against the random ones that the same seed gives."""
    config = subject.config.model
    if subject.step:
        return Finding("not applicable", "the run goes on with its checkpoint's weights")
    if not config.pretrained:
        return Finding("ok", "random, as model.pretrained=false says")
    loaded, origin = build(config, len(subject.job.classes))
    torch.manual_seed(seeding.seed_of("weights", subject.config.seed))
    random, _ = build(without_weights(config), len(subject.job.classes))
    new = {id(parameter) for module in random.new_layers for parameter in module.parameters()}
    pairs = [
        (own, other)
        for own, other in zip(loaded.parameters(), random.parameters(), strict=True)
        if other.ndim > 1 and id(other) not in new
    ]
    unlike_random = sum(not torch.equal(own, other) for own, other in pairs)
    digest = f", sha256 {origin['sha256'][:12]}" if "sha256" in origin else ""
    figures = (
        f"{origin['source']}{digest}: {origin['share']:.0%} of the body's {origin['tensors']} tensors loaded; "
        f"{unlike_random} of {len(pairs)} matrices and kernels differ from random ones"
    )
    numbers = {**origin, "matrices": len(pairs), "unlike_random": unlike_random}
    if unlike_random < origin["share"] * len(pairs) - 0.5:
        return Finding("no-go", figures, "bring the weights of this very model: these are not in it", numbers)
    if origin["share"] < 1:
        what_next = "see that the tensors that were not loaded are meant to be new"
        return Finding("warning", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def built(subject: CheckContext) -> Finding:
    """The state with which trial steps begin: pretrained where those weights are there, else random."""
    config, job = subject.config, subject.job
    fresh = job.build_state(phases.first(config.optim), subject.precision, pretrained=subject.pretrained)
    subject.state, subject.weights = fresh.state, fresh.weights
    subject.own = fresh.state
    if subject.ranks.world_size > 1 and config.distributed.sync_batchnorm and not subject.in_shards:
        alone = subject.job_of_mine()
        subject.own = alone.build_state(fresh.state.phase, subject.precision, pretrained=False).state
        subject.own.model.load_state_dict(fresh.state.model.state_dict())
    parameters = [parameter.numel() for parameter in subject.state.model.parameters()]
    what = f"{config.model.name}, {sum(parameters) / 1e6:.2f} M parameters, {len(job.classes)} classes"
    return Finding("ok", what, numbers={"parameters": sum(parameters), "tensors": len(parameters)})


def rates(subject: CheckContext) -> Finding:
    """Learning rates of the first, the highest and the last step, as the optimizer has them."""
    config, job = subject.config, subject.job
    words, phases_in_numbers = [], []
    for state, known in schedule_preview.states(config, job.clock):
        phase = config.optim.resolved_phases[state.index]
        until = job.clock.starts[phase.until] if isinstance(phase.until, int) else subject.steps
        steps = range(state.start_step, min(until, subject.steps))
        if not steps:  # train.max_steps ends the run before
            continue
        optimizer = job.build_optimizer(subject.state.model, state)
        learned = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if sorted(learned) != sorted(map(id, subject.state.model.parameters())):
            what_next = "report this: a parameter would learn twice, or not at all"
            return Finding("no-go", f"{len(learned)} tensors are in the groups of {phase.name}", what_next)
        of_steps = [phases.rates(config, state, step, job.clock) for step in steps]
        highest = max(range(len(steps)), key=lambda number: of_steps[number].lr)
        lrs: dict[str, list[float]] = {}
        for name, number in (("first", 0), ("last", len(steps) - 1), ("highest", highest)):
            set_rates(optimizer, *of_steps[number])
            lrs[name] = [group["lr"] for group in optimizer.param_groups]
        if max(lrs["highest"]) == 0:
            return Finding(
                "no-go", f"{phase.name}: the learning rate is always 0", "see optim.lr and schedule"
            )
        words.append(
            f"{phase.name} lr {of_steps[0].lr:.3g} first, {of_steps[highest].lr:.3g} at most (step "
            f"{steps[highest] + 1:,}), {of_steps[-1].lr:.3g} last"
            + _spread(lrs["highest"], of_steps[highest].lr)
            + ("" if known else ", whenever its rule is met")
        )
        phases_in_numbers.append({"phase": phase.name, "groups": len(optimizer.param_groups), **lrs})
    images = images_per_step(config, subject.last_epoch)
    numbers = {"phases": phases_in_numbers, "images_per_step": images}
    return Finding("ok", f"{'; '.join(words)}; for {images} images a step", numbers=numbers)


def _spread(lrs: list[float], lr: float) -> str:
    """What the groups' own multipliers make of a learning rate: `, in groups x1 to x10`."""
    least, most = min(lrs) / lr, max(lrs) / lr
    return "" if least == most == 1 else f", its groups x{least:.3g} to x{most:.3g}"
