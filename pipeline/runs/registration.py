"""A registration: what `preregister` fixed before the test split was read, in one file that people can read.

Its digest tells an edited file from the one that was written. It cannot prove when that was: a date can be forged, so a
registration convinces others when it, or its digest, was published in time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, flatten

SCHEMA, VERSION = "plumage/registration", 1
CONFIRMATORY, EXPLORATORY = "confirmatory", "exploratory"
"""a reading of test that kept to a registration, and any other"""
EVALUATION_KEYS = ("eval.checkpoint", "eval.tta", "eval.image_px")
"""keys of an evaluation that change its numbers"""
RESTORE = "take the file as it was written: a registration is never changed"


@dataclass(frozen=True)
class DataDigests:
    """samples: digest of the sample table; pictures: of the stored pictures, where there is a record of them."""

    samples: str
    pictures: str | None


@dataclass(frozen=True)
class Arm:
    """One configuration. data: by seed, as text; weights_sha256: of the file of first weights, where one is named."""

    name: str
    configuration: dict[str, Any]
    weights_sha256: str | None
    data: dict[str, DataDigests]


@dataclass(frozen=True)
class Comparison:
    """arms: the first is compared with each of the others; a p-value is adjusted for all of them.

    test: in words; of an earlier version it may be another than that of `compare` today, which then says so.
    """

    arms: list[str]
    test: str
    alpha: float
    adjustment: str


@dataclass(frozen=True)
class Code:
    """sha256: of the code that makes numbers. commit, dirty: of its checkout; diff_sha256: of its changes since."""

    sha256: str
    commit: str | None
    dirty: bool | None
    diff_sha256: str | None


@dataclass(frozen=True)
class Registration:
    """The content of a registration. written: UTC, ISO 8601; number: the primary one; digest: of all the rest."""

    schema: Literal["plumage/registration"]
    version: int
    written: str
    split: Literal["test"]
    number: str
    comparison: Comparison | None
    seeds: list[int]
    code: Code
    arms: list[Arm]
    soups: list[str] = field(default_factory=list)
    """arms whose seeds' weights may be averaged into one more run (`plumage soup`)"""
    digest: str = ""

    def computed_digest(self) -> str:
        """The digest of all that the file says, but for its own; a file without soups has that of earlier versions."""
        said = {**asdict(self), "digest": ""}
        return files.digest_of(said if self.soups else {key: said[key] for key in said if key != "soups"})


def write(path: Path, registration: Registration) -> None:
    """Write a registration, whole or not at all."""
    files.write_json(path, asdict(registration))


def read(path: Path) -> Registration:
    """A registration as it was written.

    Raises:
        DataError: the file is missing, damaged, of a later version, or was edited.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such registration; name a file that `plumage preregister` wrote")
    found = files.read_json(path, Registration, RESTORE)
    if found.version > VERSION:
        raise DataError(
            f"{path}: is of version {found.version}, and this program knows {VERSION}; update plumage"
        )
    if found.computed_digest() != found.digest:
        raise DataError(
            f"{path}: has been edited since it was written, as its digest does not fit; {RESTORE}"
        )
    return found


def settings(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a dumped configuration that change a number, but for the seed.

    Paths of a machine are left out: the digests of data and weights stand for what lies there.
    """
    return {
        key: value
        for key, value in flatten(completed(dict(configuration)))
        if key in EVALUATION_KEYS
        or (key != "seed" and effect_of(key).changes_numbers and not effect_of(key).per_machine)
    }


def soup_of(arm: str) -> str:
    """The name that the soup of an arm has in a comparison."""
    return f"soup-{arm}"


def folder_of(root: Path) -> Path:
    """Where the registrations of the runs of a folder are: ROOT/protocols, also for those that `study` and `repeat` put
    into ROOT/studies/NAME and ROOT/repeats/NAME, and `soup` into ROOT/repeats."""
    above = next((folder for folder in (root, root.parent) if folder.name in ("studies", "repeats")), None)
    return (root if above is None else above.parent) / "protocols"
