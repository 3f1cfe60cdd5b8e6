"""A folder of runs of one recipe with several seeds, as `plumage repeat` leaves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from pipeline.common import files

FILE = "repeat.json"
AGAIN = "run `plumage repeat` again, which trains nothing anew"


class _Content(BaseModel):
    runs: list[str]
    seeds: list[int]


@dataclass(frozen=True)
class Repeat:
    """The finished runs of a recipe, one a seed."""

    folder: Path
    seeds: tuple[int, ...]
    runs: tuple[Path, ...]
    """their folders, in the order of the seeds"""


def write(folder: Path, runs: Sequence[Path], seeds: Sequence[int]) -> None:
    """Keep which runs there are; they lie in the folder."""
    files.write_json(folder / FILE, {"runs": [run.name for run in runs], "seeds": list(seeds)})


def read(folder: Path) -> Repeat | None:
    """The repeat of a folder; None where it is none.

    Raises:
        DataError: its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = files.read_json(path, _Content, AGAIN)
    return Repeat(folder, tuple(content.seeds), tuple(folder / name for name in content.runs))
