"""The description of a run: configuration, environment, history, changes of the code, and the lines at its start."""

import math
from typing import Any

from pipeline.common import console, files
from pipeline.config.load import dump_config
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.models.licences import in_words
from pipeline.runs import environment, history
from pipeline.runs.directory import RunDirectory
from pipeline.training import refit
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import RunStart
from pipeline.training.step import accumulation_steps, largest_share


def describe_run(setup: TrainingSetup, start: RunStart) -> None:
    """Write `config.yaml`, `environment.json`, `history.json` and, if there are any, `diff.patch`, `taxonomy.csv`.

    What begins is said.
    """
    config, ranks, weights = setup.config, setup.ranks, start.weights
    run = RunDirectory(config.run_dir)
    history.write(run, start.history)
    files.write_text(run.config_file, dump_config(config))
    about = {
        **environment.describe(ranks.device),
        "precision": start.precision,
        "weights": weights,
        "samples": setup.samples,
        "pictures": prepare.pictures_digest(config),
        "ranks": ranks.world_size,
    }
    if config.train.refit is not None:  # the other run may be gone when this one goes on
        about["refit"] = run.read_environment().get("refit") or refit.facts(config, config.train.refit)
    files.write_json(run.environment_file, about)
    if setup.taxonomy is not None:
        setup.taxonomy.write(run.taxonomy_file)
    diff = environment.diff()
    if diff is None:
        run.diff_file.unlink(missing_ok=True)
    else:
        files.write_text(run.diff_file, diff)
    parameters = sum(parameter.numel() for parameter in start.state.model.parameters())
    console.say(
        f"run    {config.run_dir}, step {start.state.step} of {setup.last_step}\n"
        f"model  {config.model.name}, {parameters / 1e6:.2f} M parameters, {len(setup.classes)} classes; "
        f"weights: {origin(weights)}\n"
        f"data   {len(setup.train_rows)} images to train on, {len(setup.val_rows)} to validate; "
        f"{config.data.image_px} px\n"
        f"optim  {optimizers(config)}\n"
        f"batch  {batch(config, start.batch_size, ranks.world_size)}\n"
        f"on     {ranks.world_size} x {ranks.device.type}, {start.precision}"
    )
    for sentence in setup.gaps:
        console.warn(sentence)


def origin(weights: dict[str, Any]) -> str:
    """Where the first weights came from: `resnet50.pth, 100% of the body loaded (265 tensors), licence not known`."""
    average = f" (its average, {weights['average']})" if "average" in weights else ""
    loaded = f"{weights['share']:.0%} of the body loaded ({weights['tensors']} tensors)"
    licence = in_words(weights)
    parts = [f"{weights['source']}{average}", loaded, *([licence] if licence else [])]
    return ", ".join(parts) + _head(weights.get("head"))


def _head(chosen: dict[str, Any] | None) -> str:
    """`, head of the linear probe (weight decay 0.001, validation top-1 0.853)`; empty for a random one."""
    if chosen is None:
        return ""
    top1 = "" if chosen["val_top1"] is None else f", validation top-1 {chosen['val_top1']:.3f}"
    return f", head of the linear probe (weight decay {chosen['weight_decay']:g}{top1})"


def optimizers(config: Config) -> str:
    """The phases with their learning rates: `adam lr 0.001 until 10, sgd lr 0.01 (new layers 0.1)`."""
    words = []
    for phase in config.optim.resolved_phases:
        lr = "as SWATS proposes" if phase.lr is None else f"{phase.lr:g}"
        new = config.optim.head_lr_multiplier
        heads = f" (new layers {phase.lr * new:g})" if phase.lr is not None and new != 1 else ""
        until = getattr(phase.until, "name", phase.until)
        words.append(f"{phase.name} lr {lr}{heads}" + (f" until {until}" if until is not None else ""))
    return ", ".join(words)


def batch(config: Config, batch_size: int, world: int) -> str:
    """How batch size, accumulation and ranks make the batch that the learning rate is for."""
    images = config.optim.images_per_step
    micro_batches = accumulation_steps(images, largest_share(batch_size, world), world)
    parts = [f"{world} ranks"] * (world > 1) + [f"{micro_batches} micro-batches"] * (micro_batches > 1)
    made = " x ".join([*parts, f"{math.ceil(images / (world * micro_batches))} images"])
    return f"{images} images a step" + (f" = {made}" if parts else "")
