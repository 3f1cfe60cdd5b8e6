"""What a sweep is, written down when it begins: trials of another one do not join it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.common.errors import ConfigError, DataError
from pipeline.common.locks import Lock
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, differences
from pipeline.data import sample_table
from pipeline.data.prepare import Prepared
from pipeline.experiments.sweeps.plan import SweepPlan

DEFINITION, DEFINING = "sweep.json", "sweep.lock"
WEIGHTS = "weights"
OF_TRIALS = ("method", "metric", "parameters", "early_terminate")
"""what of the sweep file makes its trials; the command is compared as the configuration that it gives"""
ANOTHER = "take it back, or name this one with run.name=NAME"


def fix_definition(plan: SweepPlan, pruner: str | None) -> None:
    """Write down the definition of the sweep; if it has begun, check that what makes its trials is unchanged.

    What changes no number of a trial (words, names, where a machine has its files, its device, how many processes
    load) may differ from command to command. The first weights are compared by their content, and the data by
    `fix_samples`.

    Raises:
        ConfigError: the file, the base configuration or the overrides have changed since it began.
        DataError: what was written down is damaged.
    """
    path = plan.folder / DEFINITION
    definition = {**plan.definition(pruner), WEIGHTS: _content(plan.common.model.weights)}
    with contextlib.closing(Lock.hold(plan.folder / DEFINING)):
        if not path.is_file():
            files.write_json(path, definition)
            return
        before = _read(path)
    if WEIGHTS not in before:  # an earlier version wrote their path alone
        for each in (before, definition):
            each[WEIGHTS] = completed(each["config"])["model"]["weights"]
    changed = [
        f"{key} {json.dumps(old)} -> {json.dumps(new)}"
        for key, old, new in differences(_of_trials(before), _of_trials(json.loads(json.dumps(definition))))
        if not key.startswith("config.") or _makes_trials(key.removeprefix("config."))
    ]
    if changed:
        raise ConfigError(f"{plan.path}: {plan.folder} is of another sweep ({', '.join(changed)}); {ANOTHER}")


def fix_samples(plan: SweepPlan, data: Prepared) -> None:
    """Write down the digest of the sweep's sample table; if it is written, check that the data have the same one.

    Raises:
        DataError: these are other data than those that the sweep began with, or what was written down is damaged.
    """
    digest, path = sample_table.digest(data.samples), plan.folder / DEFINITION
    with contextlib.closing(Lock.hold(plan.folder / DEFINING)):
        definition = _read(path)
        if "samples" not in definition:
            files.write_json(path, {**definition, "samples": digest})
        elif definition["samples"] != digest:
            raise DataError(
                f"{plan.path}: {plan.folder} began with other data (other classes, labels, images or splits); give the "
                "data that it began with, or name this sweep with run.name=NAME"
            )


def _read(path: Path) -> dict[str, Any]:
    """The definition of a sweep that has begun."""
    definition = files.read_json(path, dict[str, Any])
    for key in ("config", "sweep"):
        if not isinstance(definition.get(key), dict):
            raise DataError(f"{path}: damaged ({key}: no mapping); {files.RESTORE}")
    return definition


def _of_trials(definition: dict[str, Any]) -> dict[str, Any]:
    """What of a definition makes trials; of the configuration all, with today's names."""
    sweep = {key: definition["sweep"].get(key) for key in OF_TRIALS}
    if isinstance(sweep["parameters"], dict):
        sweep["parameters"] = dict(_searched(sweep["parameters"]))
    return {
        "sweep": sweep,
        "pruner": definition.get("pruner"),
        WEIGHTS: definition[WEIGHTS],
        "config": completed(definition["config"]),
    }


def _searched(parameters: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parameters without the constants, which are part of the configuration."""
    for key, parameter in parameters.items():
        if not isinstance(parameter, dict) or "value" not in parameter:
            yield key, parameter


def _makes_trials(key: str) -> bool:
    """Whether a key changes the numbers of a trial: a run may not resume with another value, or it learns otherwise.

    A path is where one machine has a file; what the file holds is compared.
    """
    effect = effect_of(key)
    return not effect.per_machine and (effect.changes_numbers or effect.on_resume != "free")


def _content(weights: Path | None) -> str | None:
    """The SHA-256 of a file of first weights; of the word `package`, and of a file that is not there, the text."""
    if weights is None:
        return None
    return files.digest_of_file(weights) if weights.is_file() else str(weights)
