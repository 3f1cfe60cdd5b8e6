"""YAML and dotted overrides become a `Config`, and a `Config` becomes commented YAML.

Every mistake is reported at once: its dotted key, the value, what is allowed, and the nearest key.
"""

import difflib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from pipeline.common.errors import ConfigError
from pipeline.config.messages import sentence
from pipeline.config.schema import Config

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides such as "optim.lr=0.01".

    Raises:
        ConfigError: the file is missing or not YAML, or any key or value is not allowed.
    """
    tree = read_tree(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = _default_name(path)
    return validate_tree(tree, str(path) if path else "the defaults", Config)


def _default_name(path: Path | None) -> str:
    """The file's name; with W&B's id of the run where W&B's agent runs the trials of a sweep."""
    name = path.stem if path else "baseline"
    # The agent fills in ${envvar:WANDB_RUN_ID} in a sweep's command before it sets that variable.
    trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return f"{name}-{trial}" if trial else name


def validate_tree(tree: dict[str, Any], where: str, kind: type[Model]) -> Model:
    """A tree of plain types becomes a `Config`, or a model like it; all that is wrong is one `ConfigError`."""
    try:
        # JSON's strict mode takes "x" for a path and a list for a tuple, but never "1" for 1.
        return kind.model_validate_json(json.dumps(tree, default=str))
    except TypeError as error:  # YAML allows keys such as [a, b]
        raise ConfigError(f"{where}: {error}") from None
    except ValidationError as error:
        problems = list(dict.fromkeys(sentence(problem, tree, kind) for problem in error.errors()))
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}") from None
    raise ConfigError(f"{where}: {len(problems)} problems\n  " + "\n  ".join(problems)) from None


def dump_config(config: Config, comments: bool = False) -> str:
    """The whole configuration as YAML; with `comments`, each key has its documentation beside it."""
    return _yaml(_commented(config) if comments else config.model_dump(mode="json"))


def dump_departures(config: Config) -> str:
    """What departs from the defaults, as YAML: a file that `load` makes the same configuration of."""
    tree = _departing(config.model_dump(mode="json"), Config().model_dump(mode="json"))
    if "schedule" in tree:  # of which there are several, each with defaults of its own
        schedule = config.schedule
        own = _departing(schedule.model_dump(mode="json"), type(schedule)().model_dump(mode="json"))
        tree["schedule"] = {"name": schedule.name, **own}
    return _yaml(tree)


def _departing(own: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    departing: dict[str, Any] = {}
    for key, value in own.items():
        usual = default.get(key)
        if isinstance(value, dict) and isinstance(usual, dict) and usual:
            if inner := _departing(value, usual):
                departing[key] = inner
        elif value != usual:
            departing[key] = value
    return departing


def _yaml(tree: Any) -> str:
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def differences(
    one: dict[str, Any], other: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two dumped configurations differ, with both values."""
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration of an earlier version, with the defaults of the keys that there were not yet."""
    return _filled(saved, Config().model_dump(mode="json"))


def _filled(own: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    kinds = own.keys() - {"schedule"}  # of which there are several, each with keys of its own
    inner = {
        key: _filled(own[key], default[key])
        for key in kinds & default.keys()
        if isinstance(own[key], dict) and isinstance(default[key], dict)
    }
    return {**default, **own, **inner}


def read_tree(path: Path) -> dict[str, Any]:
    """A configuration file as plain types, unchecked; a `ConfigError` when it is missing or not YAML."""
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a .yaml file"
        raise ConfigError(f"{path}: no such configuration file; {hint}") from None
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: holds {type(tree).__name__}; a configuration is made of `section: {{key: value}}`"
        )
    return tree or {}


def _apply(tree: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: not an override; write section.key=value, such as optim.lr=0.01")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        in_list = isinstance(tree, list)
        tree = tree[_position(tree, section, key)] if in_list else tree.setdefault(section, {})
        if not isinstance(tree, dict | list):
            raise ConfigError(f"{key}: unknown key; {section} has a value of its own, not keys below it")
    if isinstance(tree, list):
        tree[_position(tree, last, key)] = value
    else:
        tree[last] = value


def _position(entries: list[Any], part: str, key: str) -> int:
    """Which entry of a list a part of a dotted key means, counted from 0."""
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise ConfigError(f"{key}: {part} is no entry of a list of {len(entries)}; they are counted from 0")


def _commented(section: BaseModel) -> CommentedMap:
    tree = CommentedMap()
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        tree[name] = _commented(value) if isinstance(value, BaseModel) else plain[name]
        if field.description and not isinstance(value, BaseModel):
            tree.yaml_add_eol_comment(field.description, name, column=32)
    return tree
