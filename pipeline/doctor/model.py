"""Checks of what is trained: where the run starts, with which weights, and with which learning rates."""

import torch

from pipeline.common import seeding
from pipeline.config.training import DistributedConfig
from pipeline.distributed.process_group import Ranks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, on_main_rank
from pipeline.doctor.products import (
    RANDOM_WEIGHTS,
    STEP_0,
    BuiltModel,
    OwnData,
    PretrainedWeights,
    StartStep,
    TriedModel,
)
from pipeline.models.build import build_model, without_weights
from pipeline.models.licences import in_words
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.training import phases, resume, schedule_preview
from pipeline.training.optimizer import set_rates
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import images_per_step
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import build_state, check_passes, optimizer_of_phase
from pipeline.training.state import restore


def start(context: CheckContext, data: OwnData, setup: TrainingSetup) -> tuple[Finding, StartStep]:
    """Find out whether the run starts new, resumes from a checkpoint, or may not start."""
    finding, of_main = on_main_rank(
        lambda: _check_start(data, setup), context.ranks, elsewhere="the first rank knows"
    )
    return finding, StartStep(of_main.numbers.get("step", 0))


def _check_start(data: OwnData, setup: TrainingSetup) -> Finding:
    config = data.config
    if (status := RunDirectory(config.run_dir).read_status()) and status.state == "running":
        figures = f"process {status.pid} on {status.host} is training {config.run_dir}"
        return Finding("no-go", figures, "wait for its end, stop it, or take another run.name")
    checkpoint = resume.checkpoint_to_resume(config, setup.classes, setup.samples)
    if checkpoint is None:
        figures = f"a new run of {setup.last_step:,} steps in {config.run_dir}"
        return Finding("ok", figures, numbers={"step": 0})
    path, content = checkpoint
    phase = checkpoints.part(content, "phase", PhaseState, path)
    state, _ = build_state(_single_rank_setup(setup), phase, content["precision"], pretrained=False)
    restore(state, content, path)
    step = int(content["step"])
    numbers = {"step": step, "checkpoint": str(path)}
    if step >= setup.last_step:
        figures = f"{path} is of step {step:,} of {setup.last_step:,}: nothing is left to train"
        return Finding("warning", figures, "use another run.name for another run", numbers)
    return Finding("ok", f"resumes from {path}, step {step:,} of {setup.last_step:,}", numbers=numbers)


def weights(
    context: CheckContext, setup: TrainingSetup, start: StartStep = STEP_0
) -> tuple[Finding, PretrainedWeights]:
    """Load the pretrained weights, count the loaded tensors of the body, and compare them with random ones."""
    finding, of_main = on_main_rank(
        lambda: _check_weights(setup, start), context.ranks, elsewhere="the first rank loads them"
    )
    begins_pretrained = setup.config.model.pretrained and not start.step
    return finding, PretrainedWeights(begins_pretrained and of_main.state in ("ok", "warning"))


def _check_weights(setup: TrainingSetup, start: StartStep) -> Finding:
    """Compare the pretrained weights with the random ones that the same seed gives."""
    config = setup.config.model
    if start.step:
        return Finding("not applicable", "the run resumes with its checkpoint's weights")
    if not config.pretrained:
        return Finding("ok", "random, as model.pretrained=false says")
    loaded, origin = build_model(config, len(setup.classes))
    torch.manual_seed(seeding.seed_of("weights", setup.config.seed))
    random, _ = build_model(without_weights(config), len(setup.classes))
    new_layers = {id(parameter) for module in random.new_layers for parameter in module.parameters()}
    pairs = [
        (parameter, random_parameter)
        for parameter, random_parameter in zip(loaded.parameters(), random.parameters(), strict=True)
        if parameter.ndim > 1 and id(random_parameter) not in new_layers
    ]
    unlike_random = sum(not torch.equal(*pair) for pair in pairs)
    digest = f", sha256 {origin['sha256'][:12]}" if "sha256" in origin else ""
    figures = (
        f"{origin['source']}{digest}: {origin['share']:.0%} of the body's {origin['tensors']} tensors loaded, "
        f"{in_words(origin)}; {unlike_random} of {len(pairs)} matrices and kernels differ from random ones"
    )
    numbers = {**origin, "matrices": len(pairs), "unlike_random": unlike_random}
    if unlike_random < origin["share"] * len(pairs) - 0.5:
        return Finding(
            "no-go", figures, "give the weights of this exact model: this file lacks them", numbers
        )
    if origin["share"] < 1:
        what_next = "check that the tensors that were not loaded are meant to be new"
        return Finding("warning", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def initial_state(
    context: CheckContext, setup: TrainingSetup, weights: PretrainedWeights = RANDOM_WEIGHTS
) -> tuple[Finding, BuiltModel]:
    """Build the state with which trial steps begin: pretrained where those weights are available, else random."""
    first_phase = phases.first(setup.config.optim)
    state, origin = build_state(setup, first_phase, context.precision, pretrained=weights.available)
    single_rank_state = state
    syncs = context.ranks.world_size > 1 and setup.config.distributed.sync_batchnorm
    if syncs and not context.is_sharded:
        alone = _single_rank_setup(setup)
        single_rank_state, _ = build_state(alone, state.phase, context.precision, pretrained=False)
        single_rank_state.model.load_state_dict(state.model.state_dict())
    sizes = [parameter.numel() for parameter in state.model.parameters()]
    figures = f"{setup.config.model.name}, {sum(sizes) / 1e6:.2f} M parameters, {len(setup.classes)} classes"
    finding = Finding("ok", figures, numbers={"parameters": sum(sizes), "tensors": len(sizes)})
    return finding, BuiltModel(state, single_rank_state, origin)


def passes(context: CheckContext, setup: TrainingSetup, model: BuiltModel) -> tuple[Finding, TriedModel]:
    """Try what training tries at its start: passes of the true size, and a step of each phase's optimizer."""
    config = setup.config
    check_passes(setup, model.state, context.precision, config.optim.batch_size)
    sizes = sorted({config.data.image_px, *(stage.image_px for stage in config.data.progressive)})
    optimizers = ", ".join(phase.name for phase in config.optim.resolved_phases)
    figures = (
        f"forward and backward on images of {' and '.join(map(str, sizes))} px, and a step of {optimizers}; "
        "the model is as before"
    )
    return Finding("ok", figures), TriedModel(**vars(model))


def _single_rank_setup(setup: TrainingSetup) -> TrainingSetup:
    """The same training as if this rank were the only one."""
    config = setup.config.model_copy(update={"distributed": DistributedConfig()})
    return TrainingSetup(config, Ranks.single(setup.ranks.device))


def learning_rates(context: CheckContext, setup: TrainingSetup, model: BuiltModel) -> Finding:
    """Show the learning rates of the first, the highest and the last step, as the optimizer has them."""
    config, figures, phases_in_numbers = setup.config, [], []
    for state, is_certain in schedule_preview.states(config, setup.clock):
        phase = config.optim.resolved_phases[state.index]
        until = setup.clock.starts[phase.until] if isinstance(phase.until, int) else setup.last_step
        steps = range(state.start_step, min(until, setup.last_step))
        if not steps:  # train.max_steps ends the run before
            continue
        optimizer = optimizer_of_phase(setup.config, model.state.model, state)
        in_groups = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if sorted(in_groups) != sorted(map(id, model.state.model.parameters())):
            what_next = "report this: a parameter would learn twice, or not at all"
            return Finding("no-go", f"{len(in_groups)} tensors are in the groups of {phase.name}", what_next)
        rates = [phases.rates(config, state, step, setup.clock) for step in steps]
        highest = max(range(len(steps)), key=lambda number: rates[number].lr)
        group_lrs: dict[str, list[float]] = {}
        for name, number in (("first", 0), ("last", len(steps) - 1), ("highest", highest)):
            set_rates(optimizer, *rates[number])
            group_lrs[name] = [group["lr"] for group in optimizer.param_groups]
        if max(group_lrs["highest"]) == 0:
            return Finding(
                "no-go", f"{phase.name}: the learning rate is always 0", "check optim.lr and schedule"
            )
        figures.append(
            f"{phase.name} lr {rates[0].lr:.3g} first, {rates[highest].lr:.3g} at most (step "
            f"{steps[highest] + 1:,}), {rates[-1].lr:.3g} last"
            + _group_factors(group_lrs["highest"], rates[highest].lr)
            + ("" if is_certain else ", whenever its rule is met")
        )
        phases_in_numbers.append({"phase": phase.name, "groups": len(optimizer.param_groups), **group_lrs})
    images = images_per_step(config, context.last_epoch)
    numbers = {"phases": phases_in_numbers, "images_per_step": images}
    return Finding("ok", f"{'; '.join(figures)}; for {images} images a step", numbers=numbers)


def _group_factors(group_lrs: list[float], lr: float) -> str:
    """The learning rates of the parameter groups over that of the phase: `, its groups x1 to x10`."""
    lowest, highest = min(group_lrs) / lr, max(group_lrs) / lr
    return "" if lowest == highest == 1 else f", its groups x{lowest:.3g} to x{highest:.3g}"
