"""What a check says, and how the findings of all ranks become one."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.distributed.process_group import Ranks

State = Literal["ok", "warning", "no-go", "not applicable"]
SEVERITY: dict[State, int] = {"not applicable": 0, "ok": 1, "warning": 2, "no-go": 3}


@dataclass(frozen=True)
class Finding:
    """figures: one line of what was measured; next: a sentence that says what to do; numbers: for programs."""

    state: State
    figures: str
    next: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def of_error(error: UserError) -> Finding:
    """The no-go of a check that raised; its sentence says what to do behind the first semicolon."""
    what, _, what_next = str(error).partition("; ")
    return Finding("no-go", what, what_next)


def on_main_rank(look: Callable[[], Finding], ranks: Ranks, elsewhere: str) -> tuple[Finding, Finding]:
    """Look on the first rank only; return this rank's finding and the first rank's.

    Args:
        elsewhere: what the other ranks say.
    """
    finding = Finding("not applicable", elsewhere)
    if ranks.is_main:
        try:
            finding = look()
        except UserError as error:
            finding = of_error(error)
    return finding, ranks.all_gather(finding)[0]


def worst_of_ranks(finding: Finding, ranks: Ranks) -> Finding:
    """The worst finding of all ranks; where they differ in state, with its rank and host."""
    findings: list[tuple[Finding, str]] = ranks.all_gather((finding, platform.node()))
    rank = max(range(len(findings)), key=lambda rank: SEVERITY[findings[rank][0].state])
    worst, host = findings[rank]
    states = [finding.state for finding, _ in findings]
    if set(states) <= {worst.state, "not applicable"}:
        return worst
    more = states.count(worst.state) - 1
    where = f"rank {rank} on {host}" + (f" and {more} more" if more else "")
    return replace(worst, figures=f"{where}: {worst.figures}")


def difference_between_ranks(values: dict[str, Any], ranks: Ranks) -> str:
    """The first value that differs: `torch is 2.6 on rank 0 (host x) and 2.7 on rank 2 (host y)`; "" without one."""
    all_values: list[tuple[dict[str, Any], str]] = ranks.all_gather((values, platform.node()))
    first, first_host = all_values[0]
    for rank, (others, host) in enumerate(all_values):
        for name, value in others.items():
            if value != first[name]:
                return f"{name} is {first[name]} on rank 0 ({first_host}) and {value} on rank {rank} ({host})"
    return ""
