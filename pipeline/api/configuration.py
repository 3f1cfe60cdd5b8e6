"""What a program or a command line gives as a configuration becomes a `Config`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.load import dump_departures, flatten, load_config
from pipeline.config.schema import Config
from pipeline.config.text_fields import with_text
from pipeline.config.yaml_tree import parse
from pipeline.runs.directory import RunDirectory

Keys = Mapping[str, Any]
"""keys of a configuration: in sections (`{"optim": {"lr": 0.01}}`), dotted (`{"optim.lr": 0.01}`), or both"""
Configuration = Config | Path | str | Keys
"""a configuration, the path of its YAML file, or what departs from the defaults"""
NOTHING: Keys = {}


def to_config(given: Configuration, overrides: Keys = NOTHING) -> Config:
    """The configuration that is given, with some of its keys replaced.

    Raises:
        ConfigError: a file is missing or not YAML, or a key or a value is not allowed.
    """
    texts = as_texts(overrides)
    if isinstance(given, Config):
        own = with_text(parse(dump_departures(given)), [Config])
        return load_config(None, [*as_texts(own), *texts]) if texts else given
    if isinstance(given, Mapping):
        return load_config(None, [*as_texts(given), *texts])
    return load_config(Path(given).expanduser(), texts)


def config_of_run(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run was trained with, wherever its folder lies now.

    Args:
        overrides: texts such as "eval.tta=flip".

    Raises:
        DataError: the folder is not a run directory.
        ConfigError: an override is not allowed.
    """
    path = RunDirectory(folder).config_file
    if not path.is_file():
        raise DataError(
            f"{folder}: not a run directory, as it has no config.yaml; name one such as runs/NAME"
        )
    config = load_config(path, overrides)
    place = folder if folder.name not in ("", "..") else folder.resolve()
    run = config.run.model_copy(update={"root": place.parent, "name": place.name})
    return config.model_copy(update={"run": run})


def as_texts(keys: Keys) -> list[str]:
    """Keys and values as the overrides of a command line, such as "optim.lr=0.01".

    Raises:
        ConfigError: a key is not text, or a value is of a type that no configuration holds.
    """
    return [f"{key}={_as_text(key, value)}" for key, value in flatten(dict(keys))]


def _as_text(key: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}; give text, numbers, lists or a path") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if callable(item := getattr(value, "item", None)):  # a number of NumPy or of torch
        return item()
    raise TypeError(f"a value of type {type(value).__name__} is not a configuration value")
