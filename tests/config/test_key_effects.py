"""Every configuration key is in the table of effects, and each verb derives from it what may differ."""

from collections.abc import Iterator
from typing import get_origin

import pytest
from pydantic import BaseModel

from pipeline.config.key_effects import KEY_EFFECTS, NAMING_SECTIONS, TRAINING, KeyEffect, effect_of
from pipeline.config.load import flatten
from pipeline.config.schema import Config

# The prefixes of the lists that the table replaced, each with the property that they stood for.
PREFIXES = {
    "resume: free": (
        ["run.", "eval.", "lr_find.", "report.", "summary.", "tracking.", "distributed.bucket_mb"],
        ["distributed.data_timeout_minutes", "distributed.shard", "distributed.static_graph"],
        ["distributed.timeout_s", "data.root", "data.archive", "data.path", "data.workers"],
        ["data.corrections", "data.taxonomy"],
        [
            "model.pretrained",
            "model.weights",
            "train.device",
            "train.max_steps",
            "train.refit",
            "train.start_from",
            "train.resume",
            "train.checkpoint_every",
        ],
        ["train.keep_checkpoints"],
    ),
    "resume: forced": (
        ["data.color_jitter", "data.crop", "data.flip", "data.auto_augment", "data.random_erasing"],
        ["distributed.compress", "distributed.sync_batchnorm", "model.freeze_batchnorm"],
        ["optim.clip_norm", "optim.lr", "optim.momentum", "optim.nesterov", "optim.weight_decay"],
        ["schedule", "train.early_stop_epochs", "train.epochs", "train.label_smoothing", "train.mix"],
    ),
    "ranks": (
        ["data.root", "data.archive", "data.path", "data.corrections", "data.taxonomy", "data.workers"],
        ["model.weights", "run.root", "train.refit"],
    ),
    "runs": (["run.", "tracking."],),
    "sweeps": (["run.", "train.resume"],),
    "eval": (
        ["model.name", "model.options", "model.pool", "model.mid_level_head", "model.mean", "model.std"],
    ),
}
DERIVED = {
    "resume: free": lambda key: effect_of(key).on_resume == "free",
    "resume: forced": lambda key: effect_of(key).on_resume == "forced",
    "ranks": lambda key: effect_of(key).per_machine,
    "runs": lambda key: effect_of(key).name_only,
    "sweeps": lambda key: effect_of(key).per_trial,
    "eval": lambda key: key.startswith("model.") and effect_of(key).effect == "identity",
}


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted leaf keys; a list, a mapping and `schedule`, which is of several kinds, are one key each."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from schema_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_of_the_schema_is_in_the_table_and_no_other() -> None:
    assert list(KEY_EFFECTS) == list(schema_keys(Config))


def test_every_key_of_a_configuration_is_found_in_the_table() -> None:
    for key, _ in flatten(Config().model_dump(mode="json")):
        assert key in KEY_EFFECTS or key.startswith("schedule.")


@pytest.mark.parametrize("verb", PREFIXES)
def test_a_verb_lets_those_keys_differ_that_it_always_did(verb: str) -> None:
    prefixes = tuple(prefix for line in PREFIXES[verb] for prefix in line)
    before = {key for key in KEY_EFFECTS if key.startswith(prefixes)}
    assert {key for key in KEY_EFFECTS if DERIVED[verb](key)} == before


def test_run_and_tracking_are_no_part_of_a_sweeps_definition() -> None:
    assert NAMING_SECTIONS == {"run": None, "tracking": None}


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("schedule.gamma", KEY_EFFECTS["schedule"]),
        ("model.options.width", KEY_EFFECTS["model.options"]),
        ("optim.options", KEY_EFFECTS["optim.options"]),
        ("optim.lrx", TRAINING),
        ("distributed.x", TRAINING),
        ("eval.views", KEY_EFFECTS["eval.split"]),
        ("tracking.x", KEY_EFFECTS["tracking.notes"]),
        ("train", TRAINING),
        ("nothing.of.this", TRAINING),
    ],
)
def test_a_key_below_one_of_the_table_has_its_effect_and_an_unknown_one_is_free_where_all_of_its_section_are(
    key: str, effect: KeyEffect
) -> None:
    assert effect_of(key) == effect
