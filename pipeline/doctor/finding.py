"""What a check found, and how the findings of all ranks become one."""

import platform
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.distributed import Ranks
from pipeline.errors import UserError

State = Literal["ok", "warning", "no-go", "not applicable"]
SEVERITY: dict[State, int] = {"not applicable": 0, "ok": 1, "warning": 2, "no-go": 3}


@dataclass(frozen=True)
class Finding:
    """figures: one line of what was seen; next: a sentence that says what to do; numbers: for programs."""

    state: State
    figures: str
    next: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def of_error(error: UserError) -> Finding:
    """The no-go that a check ended with; such a sentence says what to do behind its first semicolon."""
    what, _, what_next = str(error).partition("; ")
    return Finding("no-go", what, what_next)


def agreed(own: Finding, ranks: Ranks) -> Finding:
    """The worst finding of all ranks; where they differ in state, with the rank and host it is from."""
    found: list[tuple[Finding, str]] = ranks.gather((own, platform.node()))
    rank = max(range(len(found)), key=lambda number: SEVERITY[found[number][0].state])
    worst, host = found[rank]
    alike = [finding.state for finding, _ in found].count(worst.state)
    if {finding.state for finding, _ in found} <= {worst.state, "not applicable"}:
        return worst
    where = f"rank {rank} on {host}" + (f" and {alike - 1} more" if alike > 1 else "")
    return replace(worst, figures=f"{where}: {worst.figures}")


def unlike(name: str, own: Any, ranks: Ranks) -> str:
    """`name is a on rank 0 (host x) and b on rank 2 (host y)` when it differs among ranks, or nothing."""
    found: list[tuple[Any, str]] = ranks.gather((own, platform.node()))
    for rank, (value, host) in enumerate(found):
        if value != found[0][0]:
            return f"{name} is {found[0][0]} on rank 0 ({found[0][1]}) and {value} on rank {rank} ({host})"
    return ""
