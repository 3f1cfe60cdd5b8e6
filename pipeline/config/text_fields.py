"""Which fields of a model hold text: there `001` is text, whatever YAML says."""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from pipeline.config.yaml_tree import Plain


def with_text(tree: Any, annotations: Sequence[Any]) -> Any:
    """A tree of `yaml_tree.parse` as plain types; `annotations`: the types that it may have."""
    if isinstance(tree, Plain):
        return tree.text if holds_text(annotations) else tree.value
    if isinstance(tree, dict):
        return {key: with_text(value, annotations_below(annotations, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_text(value, annotations_below(annotations, str(i))) for i, value in enumerate(tree)]
    return tree


def holds_text(annotations: Sequence[Any]) -> bool:
    """Whether a value of these types is text or a path, or null; never so where it could be a number, too."""
    kinds = {kind for annotation in annotations for kind in _members(annotation)} - {type(None)}
    return bool(kinds) and kinds <= {str, Path}


def annotations_below(annotations: Sequence[Any], part: str) -> list[Any]:
    """The types that a key, or the entry of a list, can have in a value of these types."""
    below: list[Any] = []
    for kind in (kind for annotation in annotations for kind in _members(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below += [kind.model_fields[part].annotation] if part in kind.model_fields else []
        elif get_origin(kind) is dict:
            below.append(get_args(kind)[1])
        elif get_origin(kind) is tuple:
            below += [entry for entry in get_args(kind) if entry is not ...]
    return below


def _members(annotation: Any) -> list[Any]:
    """The types of a union, without what is annotated to them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _members(member)]
    return [annotation]
