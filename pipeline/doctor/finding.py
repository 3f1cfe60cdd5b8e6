"""What a check found, and how the findings of all ranks become one."""

import platform
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.distributed.process_group import Ranks

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
    found: list[tuple[Finding, str]] = ranks.all_gather((own, platform.node()))
    rank = max(range(len(found)), key=lambda number: SEVERITY[found[number][0].state])
    worst, host = found[rank]
    alike = [finding.state for finding, _ in found].count(worst.state)
    if {finding.state for finding, _ in found} <= {worst.state, "not applicable"}:
        return worst
    where = f"rank {rank} on {host}" + (f" and {alike - 1} more" if alike > 1 else "")
    return replace(worst, figures=f"{where}: {worst.figures}")


def unlike(own: dict[str, Any], ranks: Ranks) -> str:
    """`torch is 2.6 on rank 0 (host x) and 2.7 on rank 2 (host y)`, the first of what differs; or nothing."""
    found: list[tuple[dict[str, Any], str]] = ranks.all_gather((own, platform.node()))
    first, first_host = found[0]
    for rank, (values, host) in enumerate(found):
        for name, value in values.items():
            if value != first[name]:
                return f"{name} is {first[name]} on rank 0 ({first_host}) and {value} on rank {rank} ({host})"
    return ""
