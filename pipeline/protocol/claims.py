"""A claim of a run, and what became of it on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Result = Literal["holds", "fails", "not checked"]
SHOWN = 20
"""faults of a claim that are named; the others are counted"""


@dataclass(frozen=True)
class Claim:
    """about: what the claim is of, in a few words; found: each fault, or what was compared, or why nothing was."""

    about: str
    result: Result
    found: list[str]

    @classmethod
    def of(cls, about: str, faults: Sequence[str], compared: str) -> "Claim":
        """It fails where there are faults; else it holds, by what was compared."""
        if not faults:
            return cls(about, "holds", [compared])
        more = len(faults) - SHOWN
        return cls(about, "fails", [*faults[:SHOWN], *([f"{more:,} more"] if more > 0 else [])])

    @classmethod
    def unchecked(cls, about: str, why: str) -> "Claim":
        """It could not be looked at on this machine."""
        return cls(about, "not checked", [why])
