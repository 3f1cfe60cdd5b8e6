"""YAML text becomes a tree of plain types, within limits that a hand-written file never meets.

The parser's events are read before anything is constructed, so no file costs more than its bytes: not one that refers
to itself or doubles itself by aliases, and not one that is nested deeper than Python's stack.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml as pyyaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

MOST_BYTES = 2**18
MOST_VALUES = 10_000
"""keys, values and collections, each as often as aliases repeat it"""
MOST_DEPTH = 32
TAGS = {
    None,
    *(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")),
}
CONTROL = {*map(chr, range(32)), "\x7f"} - {"\t", "\n", "\r"}


class NotYaml(ValueError):
    """A text is not YAML, or not of plain types."""


class BeyondLimits(NotYaml):
    """A text is larger, deeper or of other types than a configuration is; the message says what to do."""


class Plain(NamedTuple):
    """An unquoted scalar that YAML reads as a number or a truth value. A key that holds text uses its text."""

    value: bool | int | float
    text: str

    def __str__(self) -> str:
        return self.text


def parse(text: str, version: Literal["1.1", "1.2"] = "1.2") -> Any:
    """Plain types of a YAML text: dict with text as keys, list, str, None, and `Plain`.

    Version 1.2 is ruamel.yaml's. Version 1.1 is PyYAML's, as W&B reads its files.

    Raises:
        BeyondLimits: the text is not of plain types, or too large.
        NotYaml: it is not YAML.
    """
    if len(text) > MOST_BYTES:
        raise BeyondLimits(f"more than {MOST_BYTES:,} bytes, too many for a configuration")
    with warnings.catch_warnings(action="ignore"):  # an anchor given twice
        try:
            if version == "1.1":
                _check(pyyaml.parse(text, _Loader11))
                tree = pyyaml.load(text, _Loader11)  # a SafeLoader
            else:
                _check(_yaml().parse(text))
                tree = _yaml().load(text)
        except BeyondLimits:
            raise
        except (
            YAMLError,
            pyyaml.YAMLError,
            ValueError,
            KeyError,
        ) as error:  # the last two: `!!int abc`, `!!bool abc`
            raise NotYaml(" ".join(str(error).split())) from None
    return _with_text_as_keys(tree)


@dataclass
class _Open:
    """A collection whose end has not come yet."""

    anchor: str | None
    values: int = 1
    depth: int = 1

    def add(self, values: int, depth: int) -> None:
        self.values += values
        self.depth = max(self.depth, depth + 1)


def _check(events: Iterable[Any]) -> None:
    """Refuse what would exhaust time, memory or the stack when constructed.

    Args:
        events: of ruamel.yaml or of PyYAML, which name them alike.
    """
    opened, closed = [_Open(None, 0, 0)], dict[str, _Open]()
    for event in events:
        kind = type(event).__name__.removesuffix("Event")
        if kind in ("SequenceStart", "MappingStart"):
            opened.append(_Open(event.anchor))
        elif kind in ("SequenceEnd", "MappingEnd"):
            _close(opened.pop(), opened[-1], closed)
        elif kind == "Scalar":
            check_characters(event.value)
            _close(_Open(event.anchor, depth=0), opened[-1], closed)
        elif kind == "Alias":
            if any(collection.anchor == event.anchor for collection in opened[1:]):
                raise BeyondLimits(f"the alias *{event.anchor} stands within what it repeats")
            known = closed.get(event.anchor, _Open(None))  # the parser refuses one that is not known
            opened[-1].add(known.values, known.depth)
        if getattr(event, "tag", None) not in TAGS:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise BeyondLimits(f"the tag {tag} is not allowed; write the value as text, number, list or keys")
        if len(opened) - 2 + opened[-1].depth > MOST_DEPTH:
            raise BeyondLimits(f"nested deeper than {MOST_DEPTH} levels, too deep for a configuration")
        if opened[-1].values > MOST_VALUES:
            raise BeyondLimits(f"more than {MOST_VALUES:,} values, too many for a configuration")


def _close(node: _Open, parent: _Open, closed: dict[str, _Open]) -> None:
    parent.add(node.values, node.depth)
    if node.anchor:
        closed[node.anchor] = node


def check_characters(text: str) -> None:
    """Refuse what no file name, table or log can hold.

    Raises:
        BeyondLimits: the text holds a control character other than tab and newline, or half a surrogate pair.
    """
    if wrong := next(
        (letter for letter in text if letter in CONTROL or "\ud800" <= letter <= "\udfff"), None
    ):
        raise BeyondLimits(f"the character {wrong!a} is not allowed in text")


class _Constructor(SafeConstructor):
    """ruamel.yaml's, with the text of unquoted scalars kept; dates are text."""


class _Loader11(pyyaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's, likewise."""


def _construct(constructor: Any, node: Any) -> Plain | str:
    kind = node.tag.rpartition(":")[2]
    if kind == "timestamp":
        return str(node.value)
    return Plain(getattr(constructor, f"construct_yaml_{kind}")(node), node.value)


for _kind in ("int", "float", "bool", "timestamp"):
    for _class in (_Constructor, _Loader11):
        _class.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _with_text_as_keys(tree: Any) -> Any:
    """A copy, in which aliases share nothing, with each key as it is written."""
    if isinstance(tree, list):
        return [_with_text_as_keys(entry) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    copy: dict[str, Any] = {}
    for key, value in tree.items():
        name = key.text if isinstance(key, Plain) else key
        if not isinstance(name, bool | int | float | str):
            kind = "a list" if isinstance(name, tuple) else "null"
            raise BeyondLimits(f"a key is {kind}; write each key as text")
        if str(name) in copy:
            raise NotYaml(f'found duplicate key "{name}"')
        copy[str(name)] = _with_text_as_keys(value)
    return copy
