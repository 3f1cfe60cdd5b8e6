"""YAML and dotted overrides become a `Config`, and a `Config` becomes commented YAML.

Every mistake is reported at once: its dotted key, the value, what is allowed, and the nearest key.
"""

import copy
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.common import console
from pipeline.common.errors import ConfigError
from pipeline.config.messages import sentence
from pipeline.config.schema import Config
from pipeline.config.text_fields import annotations_below, holds_text, with_text
from pipeline.config.yaml_tree import MOST_BYTES, MOST_DEPTH, BeyondLimits, NotYaml, check_characters, parse

Model = TypeVar("Model", bound=BaseModel)
RENAMED_KEYS = {
    "schedule.least_factor": "schedule.min_factor",
    "schedule.rise_fraction": "schedule.warmup_fraction",
}
"""SECTION.OLD -> SECTION.NEW, for a section of this name at any depth; the old names are still read"""
YAML_MARKS = "'\"|>!&*"
"""the first characters of values in YAML's own notation, such as quotes"""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides such as "optim.lr=0.01".

    Raises:
        ConfigError: the file is missing or not YAML, or any key or value is not allowed.
    """
    in_file = rename_keys(read_tree(path)) if path else {}
    tree = copy.deepcopy(in_file)
    for override in overrides:
        _apply(tree, override)
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = _default_name(path)
    try:
        return validate_tree(tree, str(path), Config)
    except ConfigError:
        if overrides and _is_valid(in_file):
            return validate_tree(tree, "overrides", Config)
        raise


def _is_valid(tree: dict[str, Any]) -> bool:
    try:
        validate_tree(tree, "", Config)
    except ConfigError:
        return False
    return True


def _default_name(path: Path | None) -> str:
    """The file's name; under W&B's sweep agent, with W&B's id of the run."""
    name = name_from_file(path) if path else "baseline"
    # An override run.name=${envvar:WANDB_RUN_ID} fails: the agent fills it in before it sets that variable.
    trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return f"{name}-{trial}" if trial else name


def name_from_file(path: Path) -> str:
    """A name of a run from a file's: `my birds.yaml` -> my_birds."""
    return re.sub(r"[^\w.+-]+|^[.+-]", "_", path.stem)


def validate_tree(tree: dict[str, Any], where: str, model: type[Model]) -> Model:
    """Make a `Config`, or another model, of a tree of plain types; one `ConfigError` lists all problems."""
    try:
        # JSON's strict mode takes "x" for a path and a list for a tuple, but never "1" for 1.
        return model.model_validate_json(json.dumps(tree, default=str))
    except TypeError as error:  # YAML allows keys such as [a, b]
        raise ConfigError(f"{where}: {error}") from None
    except ValidationError as error:
        problems = list(dict.fromkeys(sentence(problem, tree, model) for problem in error.errors()))
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}") from None
    raise ConfigError(f"{where}: {len(problems)} problems\n  " + "\n  ".join(problems)) from None


def dump_config(config: Config, comments: bool = False) -> str:
    """The whole configuration as YAML; with `comments`, each key has its documentation beside it."""
    return _yaml(_commented(config) if comments else config.model_dump(mode="json"))


def dump_departures(config: Config) -> str:
    """The keys that depart from the defaults, as YAML; `load_config` makes the same configuration of it."""
    tree = _departures(config.model_dump(mode="json"), Config().model_dump(mode="json"))
    if "schedule" in tree:  # each kind of schedule has its own defaults
        schedule = config.schedule
        departures = _departures(schedule.model_dump(mode="json"), type(schedule)().model_dump(mode="json"))
        tree["schedule"] = {"name": schedule.name, **departures}
    return _yaml(tree)


def _departures(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    departures: dict[str, Any] = {}
    for key, value in tree.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            if inner := _departures(value, default):
                departures[key] = inner
        elif value != default:
            departures[key] = value
    return departures


def _yaml(tree: Any) -> str:
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two dumped configurations differ, with both values."""
    for key in sorted(a.keys() | b.keys()):
        value_a, value_b = a.get(key), b.get(key)
        if isinstance(value_a, dict) and isinstance(value_b, dict):
            yield from differences(value_a, value_b, f"{prefix}{key}.")
        elif value_a != value_b:
            yield f"{prefix}{key}", value_a, value_b


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a dumped configuration with their values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration of an earlier version, with today's names and the defaults of newer keys."""
    return _with_defaults(rename_keys(saved), Config().model_dump(mode="json"))


def _with_defaults(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    sections = {
        key: _with_defaults(value, defaults[key])
        for key, value in tree.items()
        if key != "schedule"  # each kind of schedule has its own keys
        and isinstance(value, dict)
        and isinstance(defaults.get(key), dict)
    }
    return {**defaults, **tree, **sections}


def rename_keys(tree: Any, section: str = "") -> Any:
    """A tree with its keys renamed to today's; where the new name is also there, the old stays, as an unknown key."""
    if isinstance(tree, list):
        return [rename_keys(entry, section) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    names = {key: _new_name(section, key) for key in tree}
    return {key if names[key] in tree else names[key]: rename_keys(value, key) for key, value in tree.items()}


def _new_name(section: str, key: str) -> str:
    old = f"{section}.{key}"
    if old not in RENAMED_KEYS:
        return key
    warn_renamed(old)
    return RENAMED_KEYS[old].rpartition(".")[2]


@functools.cache  # one line a process, however many runs are read
def warn_renamed(old: str) -> None:
    """Warn that a key has been renamed."""
    console.warn(f"{old} is now {RENAMED_KEYS[old]}")


def read_tree(
    path: Path, model: type[BaseModel] = Config, version: Literal["1.1", "1.2"] = "1.2"
) -> dict[str, Any]:
    """A configuration file, or another file of a `model`, as plain types, otherwise unchecked.

    Args:
        version: of YAML.

    Raises:
        ConfigError: it is missing, not YAML, or not a configuration by its size or types.
    """
    try:
        with path.open("rb") as file:  # a device has no end
            tree = parse(file.read(MOST_BYTES + 1).decode(), version)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; {_hint(path)}") from None
    except BeyondLimits as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: not YAML, not UTF-8, or a NUL in the path
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if tree is not None and not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise ConfigError(f"{path}: holds {kind}; a configuration is made of `section: {{key: value}}`")
    plain: dict[str, Any] = with_text(tree or {}, [model])
    return plain


def _hint(path: Path) -> str:
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which is missing"
    near = nearest_file(path, path.parent.glob("*.yaml"))
    return f"did you mean {near}?" if near else "give the path of a .yaml file"


def nearest_file(path: Path, others: Iterable[Path]) -> Path | None:
    """The one of other files, as far as they exist, whose name is most like a path's."""
    names = {other.stem: other for other in others if other.exists()}
    near = difflib.get_close_matches(path.stem, names, n=1)
    return names[near[0]] if near else None


def _apply(tree: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or not key.isprintable():
        raise ConfigError(f"{override!r}: not an override; write section.key=value, such as optim.lr=0.01")
    *sections, last = key.split(".")
    if len(sections) > MOST_DEPTH:
        raise ConfigError(f"{key[:80]}...: unknown key; no key has more than {MOST_DEPTH} parts")
    value = _value_of(key, text)
    for section in sections:
        if isinstance(tree, list):
            tree = tree[_index(tree, section, key)]
        else:
            if tree.get(section) is None:  # no key, or one without a value: a section may be empty
                tree[section] = {}
            tree = tree[section]
        if not isinstance(tree, dict | list):
            raise ConfigError(f"{key}: unknown key; {section} has a value, not keys below it")
    if isinstance(tree, list):
        tree[_index(tree, last, key)] = rename_keys(value)
    else:
        tree[_new_name(sections[-1] if sections else "", last)] = rename_keys(value, last)


def _value_of(key: str, text: str) -> Any:
    """The value of an override: YAML, except that a key that holds text takes what is written, `001` or `a #1`."""
    annotations = [Config]
    for part in key.split("."):
        annotations = annotations_below(annotations, part)
    try:
        check_characters(text)
        value = parse(text)
    except BeyondLimits as error:
        raise ConfigError(f"{key}: {error}") from None
    except NotYaml:
        value = text
    is_written_plainly = value is not None and text.lstrip()[0] not in YAML_MARKS
    if holds_text(annotations) and is_written_plainly:
        return text.strip()
    return with_text(value, annotations)


def _index(entries: list[Any], part: str, key: str) -> int:
    """The index that a part of a dotted key names in a list."""
    if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(entries):
        return int(part)
    raise ConfigError(f"{key}: the list has {len(entries)} entries, counted from 0; there is no {part}")


def _commented(section: BaseModel) -> CommentedMap:
    tree = CommentedMap()
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        tree[name] = _commented(value) if isinstance(value, BaseModel) else plain[name]
        if field.description and not isinstance(value, BaseModel):
            tree.yaml_add_eol_comment(field.description, name, column=32)
    return tree
