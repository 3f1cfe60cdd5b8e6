"""What a configuration will do to learning rate, momentum and optimizer, before anything is trained."""

from typing import Any

from pipeline.common import console
from pipeline.common.errors import RUN_DATA, DataError
from pipeline.config.optim import SwatsRule
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.plots import training_curves
from pipeline.runs.directory import RunDirectory
from pipeline.training import phases, preflight
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import StepClock, step_clock

ROWS, BAR_CELLS = 16, 30
NOMINAL_STEPS = 100  # an epoch, where the data are not there to be counted


def preview(config: Config) -> dict[str, Any]:
    """Draw learning rate and momentum over the run in `schedule.png`, and in the terminal.

    A phase that a rule ends, and those after it, may begin at any time: they are drawn, dashed, over all
    epochs that they can have; where no step is left for one, that is said. Reduce-on-plateau is drawn as if no plateau
    came.

    Raises:
        ConfigError: a phase has an optimizer that does not exist, or does not take its options.
    """
    preflight.check_optimizers(config)
    clock, counted = _step_clock(config)
    lines = [_line(config, state, known, clock) for state, known in states(config, clock)]
    path = RunDirectory(config.run_dir).schedule_file
    drawn = [line for line in lines if line["epoch"]]
    training_curves.draw_rates(path, f"{config.run.name}: {config.train.epochs} epochs", drawn)
    for line in drawn:
        _show(line)
    for line in lines:
        if not line["epoch"]:
            console.warn(f"phase {line['name']}: no step is left for it; raise train.epochs")
    if not counted:
        console.warn(f"the data are not prepared: drawn for {NOMINAL_STEPS} steps an epoch; {RUN_DATA} first")
    console.say(f"picture  {path}")
    return {"steps": clock.last_step if counted else None, "picture": str(path)}


def _step_clock(config: Config) -> tuple[StepClock, bool]:
    try:
        return step_clock(config, len(prepare.load(config).training_rows(config))), True
    except DataError:
        return StepClock((NOMINAL_STEPS,) * config.train.epochs), False


def states(config: Config, clock: StepClock) -> list[tuple[PhaseState, bool]]:
    """The phases with the first step that each can have, and whether it is known to be its first."""
    states, known = [(phases.first(config.optim), True)], True
    for before in config.optim.resolved_phases[:-1]:
        state = states[-1][0]
        known = known and isinstance(before.until, int)
        step = clock.starts[before.until] if isinstance(before.until, int) else state.start_step + 1
        if isinstance(before.until, SwatsRule):
            state.swats.proposed = state.lr  # unknown before the run: drawn as if it were Adam's
        states.append((phases.following(config.optim, state, step), known))
    return states


def _line(config: Config, state: PhaseState, known: bool, clock: StepClock) -> dict[str, Any]:
    """The rates of a phase at each step that it can have."""
    phase = config.optim.resolved_phases[state.index]
    last = clock.starts[phase.until] if isinstance(phase.until, int) else clock.last_step
    steps = range(state.start_step, last)
    rates = [phases.rates(config, state, step, clock) for step in steps]
    return {
        "name": phase.name,
        "known": known,
        "epoch": [clock.moment(step).epoch for step in steps],
        "lr": [rate.lr for rate in rates],
        "momentum": [rate.momentum for rate in rates],
    }


def _show(line: dict[str, Any]) -> None:
    count = len(line["epoch"])
    places = sorted({round(row * (count - 1) / (ROWS - 1)) for row in range(ROWS)})
    highest = max(line["lr"]) or 1.0
    rows = []
    for place in places:
        lr = line["lr"][place]
        bar = "█" * round(BAR_CELLS * lr / highest)
        rows.append([f"{line['epoch'][place]:.2f}", f"{lr:.3g}", f"{line['momentum'][place]:.3f}", bar])
    title = line["name"] if line["known"] else f"{line['name']}, whenever its rule is met"
    console.show_table(title, ["epoch", "learning rate", "momentum", ""], rows)
