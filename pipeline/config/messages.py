"""Sentences about mistakes in a configuration: the key, its value, what is allowed, the nearest valid one."""

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.config.data import MD5_PATTERN
from pipeline.config.run import NAME_PATTERN
from pipeline.config.schema import Config

MOST_SHOWN = 100
"""characters of a value or of a wrong key in a sentence"""
TYPE_NAMES: dict[Any, str] = {
    Any: "a value",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}

PATTERNS = {
    NAME_PATTERN: "of letters, digits and . + - _ that begins with a letter, a digit or _",
    MD5_PATTERN: "of 32 hexadecimal digits in lower case",
}


class _Location(NamedTuple):
    """Dotted key, innermost field, and section of a problem."""

    key: str
    field: FieldInfo | None
    sections: list[type[BaseModel]]
    """the types that the section can have; one where its name tells which"""


def sentence(problem: ErrorDetails, tree: Mapping[str, Any], root: type[BaseModel] = Config) -> str:
    """A sentence about a problem that pydantic reports for a tree as a `root`."""
    place = _locate(problem["loc"], root)
    match problem["type"], problem.get("ctx", {}):
        case "extra_forbidden", _:
            return _unknown(str(problem["loc"][-1]), place, root)
        case "value_error", {"error": error}:
            return f"{place.key}: {error}" if place.key else str(error)
        case "union_tag_invalid", {"tag": tag, "expected_tags": tags}:
            names = str(tags).replace("'", "")
            hint = _nearest(str(tag), names.split(", "))
            return f"{place.key}.name: {_shown(str(tag))} is not allowed; allowed: one of {names}{hint}"
    assert place.field is not None, "all other problems are about a field"
    value = _value(place.key.split("."), tree)
    hint = _nearest(str(value), [str(choice) for choice in _choices(place.field.annotation)])
    kinds = [
        kind for model in _models(place.field.annotation) for kind in _choices(_annotation(model, "name"))
    ]
    hint = hint or _nearest(str(value), kinds, f"{place.key}.name=")
    allowed = _describe(place.field.annotation, place.field.metadata)
    return f"{place.key}: {_shown(json.dumps(value, default=str))} is not allowed; allowed: {allowed}{hint}"


def _shown(text: str) -> str:
    """A text in a sentence: on one line, and no longer than one."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _locate(loc: Sequence[int | str], root: type[BaseModel]) -> _Location:
    """Follow pydantic's location, in which the name of a union's member, as of a schedule, is not a key."""
    parts: list[str] = []
    field: FieldInfo | None = None
    sections: list[type[BaseModel]] = [root]
    owners = sections
    for part in loc:
        fields = [model.model_fields[part] for model in sections if part in model.model_fields]
        members = [model for model in sections if part in _choices(_annotation(model, "name"))]
        if fields:
            parts.append(str(part))
            field, owners = fields[0], sections
            sections = _models(field.annotation)
        elif isinstance(part, int) and sections:
            parts.append(str(part))
        elif members:
            sections = members
    return _Location(".".join(parts), field, sections if loc and loc[-1] not in parts else owners)


def _unknown(name: str, place: _Location, root: type[BaseModel]) -> str:
    """A sentence about an unknown key: which section has it, or the nearest key."""
    key = f"{place.key}.{name}" if place.key else name
    models = _models(place.field.annotation) if place.field else []
    owners = [model for model in models if name in model.model_fields]
    if owners:
        names = " or ".join(_choices(_annotation(model, "name"))[0] for model in owners)
        return f"{key}: unknown key; it belongs to {place.key}.name={names}"
    return f"{_shown(key)}: unknown key{_did_you_mean(key, place, root)}"


def _did_you_mean(key: str, place: _Location, root: type[BaseModel]) -> str:
    beside = [f"{place.key}.{name}" for model in place.sections for name in model.model_fields if place.key]
    known = [*beside, *_keys(root)]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or [by_last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1)]
    return f"; did you mean {near[0]}?" if near else "; `plumage config` lists all keys"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys, without those below a list or a union of sections."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        models = _models(field.annotation)
        if len(models) == 1 and get_origin(field.annotation) is not tuple:
            yield from _keys(models[0], f"{prefix}{name}.")


def _annotation(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].annotation if name in model.model_fields else None


def _value(parts: Sequence[str], tree: Any) -> Any:
    for part in parts:
        if isinstance(tree, list) and part.isdecimal():
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section types in an annotation, also within a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _choices(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def _nearest(value: str, choices: Sequence[str], before: str = "") -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {before}{near[0]}?" if near else ""


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The allowed values of a field, such as "a number above 0" or "one of random, random_resized"."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        flat = [m for item in extra for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _describe(inner, flat)
    if origin is Literal:
        choices = ", ".join(map(str, get_args(annotation)))
        return f"one of {choices}" if "," in choices else choices
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_describe(part, metadata) for part in get_args(annotation)))
    if origin is tuple:
        parts = get_args(annotation)
        return f"a list{'' if ... in parts else f' of {len(parts)}'}, each {_describe(parts[0])}"
    if annotation is type(None):
        return "null"
    if _models(annotation) or origin is dict:
        return "keys with values, as {key: value}"
    return " and ".join([TYPE_NAMES[annotation], *_bounds(metadata)]).replace(" and ", " ", 1)


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
                yield PATTERNS.get(pattern, f"that matches {pattern}")
