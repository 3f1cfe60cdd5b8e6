"""YAML and dotted overrides become a `Config`, and a `Config` becomes commented YAML.

Every mistake is reported at once: its dotted key, the value, what is allowed, and the nearest key.
"""

import difflib
import io
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from pipeline.config import Config
from pipeline.errors import ConfigError


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides such as "optim.lr=0.01".

    Raises:
        ConfigError: the file is missing or not YAML, or any key or value is not allowed.
    """
    tree = read_tree(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = path.stem if path else "baseline"
    return validate(tree, str(path) if path else "the defaults")


def validate(tree: dict[str, Any], where: str) -> Config:
    """A tree of plain types becomes a `Config`; all that is wrong with it is one `ConfigError`."""
    try:
        # JSON's strict mode takes "x" for a path and a list for a tuple, but never "1" for 1.
        return Config.model_validate_json(json.dumps(tree, default=str))
    except TypeError as error:  # YAML allows keys such as [a, b]
        raise ConfigError(f"{where}: {error}") from None
    except ValidationError as error:
        problems = list(dict.fromkeys(_sentence(problem, tree) for problem in error.errors()))
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}") from None
    raise ConfigError(f"{where}: {len(problems)} problems\n  " + "\n  ".join(problems)) from None


def dump(config: Config, comments: bool = False) -> str:
    """The whole configuration as YAML; with `comments`, each key has its documentation beside it."""
    tree = _commented(config) if comments else config.model_dump(mode="json")
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


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: not an override; write section.key=value, such as optim.lr=0.01")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: unknown key; {section} has a value of its own, not keys below it")
        tree = below
    tree[last] = value


def _sentence(problem: ErrorDetails, tree: dict[str, Any]) -> str:
    fields = _fields(Config, tree)
    parts = [part for part in problem["loc"] if isinstance(part, str) and "[" not in part]
    if parts[:1] == ["schedule"]:
        del parts[1:2]  # the tag that pydantic adds for the kind of schedule
    match problem["type"], problem.get("ctx", {}):
        case "extra_forbidden", _:
            key = ".".join(parts)
            kinds = _models(Config.model_fields["schedule"].annotation)
            owners = [kind for kind in kinds if parts[0] == "schedule" and parts[-1] in kind.model_fields]
            if owners:
                names = " or ".join(_choices(kind.model_fields["name"].annotation)[0] for kind in owners)
                return f"{key}: unknown key; it belongs to schedule.name={names}"
            return f"{key}: unknown key{_did_you_mean(key, fields)}"
        case "value_error", {"error": error}:
            return f"{'.'.join(parts)}: {error}"
        case "union_tag_invalid", {"tag": tag, "expected_tags": tags}:
            names = tags.replace("'", "")
            near = _nearest(tag, names.split(", "))
            return f"schedule.name: {tag} is not allowed; allowed: one of {names}{near}"
    while ".".join(parts) not in fields:
        parts.pop()  # the kinds of a union: int, tuple, ...
    key = ".".join(parts)
    value, field = _value(parts, tree), fields[key]
    hint = _nearest(str(value), [str(choice) for choice in _choices(field.annotation)])
    allowed = _describe(field.annotation, field.metadata)
    return f"{key}: {json.dumps(value, default=str)} is not allowed; allowed: {allowed}{hint}"


def _value(parts: Sequence[str], tree: Any) -> Any:
    for part in parts:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _fields(model: type[BaseModel], tree: dict[str, Any], prefix: str = "") -> dict[str, FieldInfo]:
    """All dotted keys with their fields; for the schedule, those of the kind that `tree` names."""
    found = {}
    for name, field in model.model_fields.items():
        kinds = _models(field.annotation)
        below = tree.get(name) if isinstance(tree.get(name), dict) else {}
        if len(kinds) > 1:
            wanted = below.get("name", "cosine") if isinstance(below, dict) else "cosine"
            kinds = [
                kind for kind in kinds if wanted in _choices(kind.model_fields["name"].annotation)
            ] or kinds[:1]
        found[f"{prefix}{name}"] = field
        for kind in kinds:
            found.update(_fields(kind, below if isinstance(below, dict) else {}, f"{prefix}{name}."))
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _choices(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or [by_last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1)]
    return f"; did you mean {near[0]}?" if near else "; `python -m pipeline config` lists all keys"


def _nearest(value: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a field takes, in words: "a number above 0", "one of random, random_resized"."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        flat = [m for item in extra for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _describe(inner, flat)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_describe(part, metadata) for part in get_args(annotation)))
    if origin is tuple:
        parts = get_args(annotation)
        return f"a list{'' if ... in parts else f' of {len(parts)}'}, each {_describe(parts[0])}"
    if annotation is type(None):
        return "null"
    if _models(annotation) or origin is dict:
        return "keys with values, as {key: value}"
    return " and ".join([WORDS[annotation], *_bounds(metadata)]).replace(" and ", " ", 1)


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        match item:
            case Gt(gt):
                yield f"above {gt}"
            case Ge(ge):
                yield f"of at least {ge}"
            case Lt(lt):
                yield f"below {lt}"
            case Le(le):
                yield f"of at most {le}"
            case _ if pattern := getattr(item, "pattern", None):
                yield f"that matches {pattern}"


def _commented(section: BaseModel) -> CommentedMap:
    tree = CommentedMap()
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        tree[name] = _commented(value) if isinstance(value, BaseModel) else plain[name]
        if field.description and not isinstance(value, BaseModel):
            tree.yaml_add_eol_comment(field.description, name, column=32)
    return tree
