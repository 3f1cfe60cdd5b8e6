"""What the checks have to show: each goal with the number that was measured for it."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Verdict(NamedTuple):
    """A goal, what was measured, and whether it is met; None where nothing was measured that could tell."""

    goal: str
    measured: str
    met: bool | None


class _Results:
    """The rows of all checks, by check and case."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row["check"], row.get("case")): row for row in rows}

    def value(self, check: str, case: str | None, key: str) -> Any:
        """A number of a row.

        Raises:
            LookupError: it was not measured.
        """
        value = self._rows[check, case][key]
        if value is None:
            raise LookupError(key)
        return value


def judge(rows: Iterable[Row], *, on_gpu: bool) -> list[Verdict]:
    """The verdict of each goal.

    Args:
        on_gpu: whether speeds can be judged; without a GPU only what is exact is.
    """
    results = _Results(rows)
    goals = [*_exact_goals(), *(_speed_goals() if on_gpu else [])]
    verdicts = []
    for goal, measure in goals:
        try:
            verdicts.append(Verdict(goal, *measure(results.value)))
        except LookupError:
            verdicts.append(Verdict(goal, "not measured", None))
    return verdicts


Value = Callable[[str, str | None, str], Any]
Goal = tuple[str, Callable[[Value], tuple[str, bool]]]


def _exact_goals() -> list[Goal]:
    def resumed(value: Value) -> tuple[str, bool]:
        different, tensors = value("resume", None, "different"), value("resume", None, "tensors")
        return f"{different} of {tensors} tensors differ", different == 0 and tensors > 0

    def parity(value: Value) -> tuple[str, bool]:
        apart = value("parity", "fp32", "largest")
        return f"{apart:.1e} at most, {value('parity', 'fp32', 'first'):.1e} in the first step", apart <= 1e-4

    def auto(value: Value) -> tuple[str, bool]:
        images = value("auto", None, "images")
        return f"{images} images fit", images >= 2

    return [
        ("a deterministic run that was resumed equals one that was not", resumed),
        ("losses within 1e-4 of the CPU's in fp32", parity),
        ("the batch that auto finds fits", auto),
    ]


def _speed_goals() -> list[Goal]:
    def plain_step(value: Value) -> tuple[str, bool]:
        lines = value("syncs", "plain", "lines")
        return f"{sum(lines.values())} waits", not lines

    def beside(ours: str, bare: str) -> Callable[[Value], tuple[str, bool]]:
        def measure(value: Value) -> tuple[str, bool]:
            check = "compiled" if "compiled" in ours else "step"
            ratio = value(check, ours, "images_per_s") / value(check, bare, "images_per_s")
            return f"{ratio:.3f} times", ratio >= 0.98

        return measure

    def host(value: Value) -> tuple[str, bool]:
        share = value("compiled", "ours, compiled", "host_ms") / value("compiled", "ours, compiled", "ms")
        return f"{share:.2f} of the step", share < 1 / 3

    def graphs(value: Value) -> tuple[str, bool]:
        ratio = value("graphs", "CUDA graphs", "images_per_s") / value("graphs", "compiled", "images_per_s")
        apart = value("graphs", "CUDA graphs", "losses_apart")
        return f"{ratio:.2f} times as fast, losses {apart:.1e} apart", ratio >= 1 and apart <= 1e-3

    def waiting(value: Value) -> tuple[str, bool]:
        share = value("whole_runs", "compiled, ema", "data_wait")
        return f"{share:.1%}", share < 0.03

    def epoch(value: Value) -> tuple[str, bool]:
        step_ms = value("compiled", "ours, compiled", "ms")
        run = {key: value("whole_runs", "compiled, ema", key) for key in ("epoch_s", "steps")}
        ratio = run["epoch_s"] / (run["steps"] * step_ms / 1000)
        return f"{ratio:.2f} times", ratio <= 1.15

    def memory(value: Value) -> tuple[str, bool]:
        share = value("auto", None, "share_of_memory")
        return f"{share:.0%} of the GPU's", share > 0.75

    def skipped(value: Value) -> tuple[str, bool]:
        apart = abs(value("half", "fp16", "last_loss") / value("half", "fp32", "last_loss") - 1)
        return f"{apart:.1%} apart after 12 steps", apart < 0.05

    return [
        ("no wait for the GPU in a plain step", plain_step),
        ("a step as fast as a bare loop's, 0.98 times or more", beside("ours", "bare loop")),
        ("a compiled step as fast, too", beside("ours, compiled", "bare loop, compiled")),
        ("the host is done with a compiled step in a third of its time", host),
        ("CUDA graphs make a step of few images faster, losses within 1e-3", graphs),
        ("less than 3 % of an epoch waits for data", waiting),
        ("an epoch takes at most 1.15 times its steps", epoch),
        ("auto uses more than 75 % of the memory", memory),
        ("fp16 learns as fp32 does", skipped),
    ]


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = ["| goal | measured | verdict |", "|---|---|---|"]
    lines += [f"| {verdict.goal} | {verdict.measured} | {words[verdict.met]} |" for verdict in verdicts]
    return "\n".join(lines)


def tables(rows: Iterable[Row]) -> str:
    """All that an earlier run measured, as Markdown: the machine, the verdicts, and a table of each check."""
    rows = list(rows)
    machine = next(row for row in rows if row["check"] == "machine")
    about = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("check", "at_s"))
    parts = [f"Measured on: {about}.", table(judge(rows, on_gpu=machine["device"] != "cpu"))]
    for check in dict.fromkeys(row["check"] for row in rows if row is not machine):
        parts.append(f"### {check}\n\n" + _table_of([row for row in rows if row["check"] == check]))
    return "\n\n".join(parts)


def _table_of(rows: list[Row]) -> str:
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("check", "at_s")]
    lines = [" | ".join(keys), "|".join("---" for _ in keys)]
    lines += [" | ".join(_cell(row.get(key)) for key in keys) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} x{count}" for key, count in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
