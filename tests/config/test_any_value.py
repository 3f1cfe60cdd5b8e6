"""Any value for any key is refused in one sentence, or the configuration reads back from what is printed of it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.load import differences, dump_config, dump_departures, flatten, load_config
from pipeline.config.schema import Config

VALUES = [
    "0", "-1", "1", "1e3", "1e400", "-0.0", ".nan", ".inf", "0x10", "0o7", "1_000", "9" * 400, "9" * 5000, "1e-320",
    "true", "yes", "null", "~", "''", "' '", "[]", "{}", "[[]]", "[1, 2", "{a: 1", "{1: 2}", "{a: {b: [1]}}",
    "!!int abc", "!!bool maybe", "!!binary x", "!!str 1", "! 1", "*a", "&a 1", "&a [*a]", "<<", "=", "? a", "- a",
    '"\\ud800"', '"\\0"', '"a\\nb"', '"a\\n\\n b "', "|\n a\n b\n", "a: b", "a # b", "'#'", "2024-99-99", "10:30",
    "../x", "/dev/null", "$HOME/x", "~/x", "~root/x", "~nobody.here/x", "x" * 5000, "\u202e", "\u0661", "\u2028",
    "\x85", "🐦", "\x07", "\ud800", "sgd", "auto", "none", "0.5", "3", "[0.1, 0.2]", "[{name: sgd}]", "{name: step}",
]  # fmt: skip
TEXT = [
    "run.name",
    "run.root",
    "tracking.notes",
    "tracking.tags",
    "tracking.group",
    "data.archive",
    "optim.options.x",
]
SCHEDULES = ["constant", "step", "multi_step", "exponential", "cosine", "one_cycle", "polynomial", "plateau"]


def keys() -> Iterator[str]:
    """Every dotted key, with those of every schedule, of a list's entry, and of sections themselves."""
    tree = Config().model_dump(mode="json")
    yield from (key for key, _ in flatten(tree))
    yield from tree
    for name in SCHEDULES:
        schedule = load_config(None, [f"schedule.name={name}"]).schedule
        yield from (f"schedule.{key}" for key in type(schedule).model_fields)
    yield from (f"optim.phases.0.{key}" for key in ("name", "lr", "until", "schedule", "options.x"))
    yield from ("optim.options.x", "model.options.x", "train.mix.0.alpha", "data.progressive.0.image_px")


def overrides(draw: random.Random, known: list[str]) -> list[str]:
    """Lists to be changed within, then one to three keys with any value; half of the keys are those of text."""
    lists = [
        "optim.phases=[{name: sgd}]",
        "train.mix=[{name: mixup}]",
        "schedule.name=" + draw.choice(SCHEDULES),
    ]
    chosen = [
        draw.choice(known if draw.random() < 0.5 else TEXT) for _ in range(draw.choice([1, 1, 1, 2, 3]))
    ]
    return [*(lists if draw.random() < 0.3 else []), *(f"{key}={draw.choice(VALUES)}" for key in chosen)]


def plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def dump_with_comments(config: Config) -> str:
    return dump_config(config, comments=True)


def test_a_configuration_is_refused_in_a_sentence_or_reads_back(tmp_path: Path) -> None:
    draw, known, taken = random.Random("any value"), list(keys()), 0
    for _ in range(150):
        words = overrides(draw, known)
        try:
            config = load_config(None, words)
        except ConfigError as error:
            said = str(error)
            assert said.isprintable() or " problems\n" in said, words
            assert len(said) < 2000, words
            continue
        taken += 1
        text = draw.choice([dump_departures, dump_config, dump_with_comments])(config)
        (tmp_path / "baseline.yaml").write_text(text, encoding="utf-8")
        assert not [*differences(plain(load_config(tmp_path / "baseline.yaml")), plain(config))], (
            words,
            text,
        )
    assert taken > 25
