"""How checks take products of earlier checks, and what is skipped when one is missing."""

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import DataError, Stopped
from pipeline.doctor.check import Check, origin, run_checks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.doctor import CHECKS
from pipeline.doctor.finding import Finding
from tests.helpers import findings

OK = Finding("ok", "")


@dataclass
class Flour:
    kind: str


class Wheat(Flour):
    pass


NO_FLOUR = Flour("none")


@dataclass
class Bread:
    flour: Flour


def mill(_: CheckContext) -> tuple[Finding, Flour | None]:
    return OK, Flour("rye")


def no_mill(_: CheckContext) -> tuple[Finding, Flour | None]:
    return Finding("no-go", "no mill"), None


def bake(_: CheckContext, flour: Flour) -> tuple[Finding, Bread]:
    return OK, Bread(flour)


def burn(_: CheckContext, flour: Flour) -> tuple[Finding, Bread]:
    raise DataError("burnt; bake again")


def eat(_: CheckContext, bread: Bread, flour: Flour) -> Finding:
    return Finding("ok", f"{bread.flour.kind} bread of {flour.kind}")


def say_kind(_: CheckContext, flour: Flour = NO_FLOUR) -> Finding:
    return Finding("ok", flour.kind)


def eat_wheat(_: CheckContext, flour: Wheat) -> Finding:
    return Finding("ok", flour.kind)


@pytest.fixture
def context(birds: Path, tmp_path: Path) -> CheckContext:
    return findings.context(tmp_path)


def run(context: CheckContext, *checks: Check, quick: bool = False) -> dict[str, Finding]:
    return dict(run_checks(checks, context, quick=quick))


def test_a_check_takes_the_products_of_earlier_checks_by_their_types(context: CheckContext) -> None:
    checks = Check("mill", mill), Check("bake", bake), Check("eat", eat)
    assert run(context, *checks)["eat"].figures == "rye bread of rye"


def test_a_check_without_its_product_is_skipped_and_names_the_nearest_cause(context: CheckContext) -> None:
    checks = Check("mill", no_mill), Check("bake", bake), Check("eat", eat), Check("kind", say_kind)
    ended = run(context, *checks)
    assert ended["bake"] == Finding("not applicable", "not looked at, because of mill")
    assert ended["eat"] == Finding("not applicable", "not looked at, because of bake")
    assert ended["kind"].figures == "none"


def test_a_check_that_raises_is_a_no_go_without_a_product(context: CheckContext) -> None:
    ended = run(context, Check("mill", mill), Check("bake", burn), Check("eat", eat))
    assert ended["bake"] == Finding("no-go", "burnt", "bake again")
    assert ended["eat"].figures == "not looked at, because of bake"


def test_a_bug_in_a_check_is_its_no_go_with_the_traceback_and_the_others_run(
    context: CheckContext, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(_: CheckContext) -> tuple[Finding, Flour]:
        raise KeyError("millstone")

    ended = run(context, Check("mill", break_down), Check("kind", say_kind), Check("bake", bake))
    assert ended["mill"] == Finding(
        "no-go", "a bug (KeyError: 'millstone')", "report it with the traceback above"
    )
    assert (ended["kind"].state, ended["bake"].figures) == ("ok", "not looked at, because of mill")
    said = capsys.readouterr().err
    assert "Traceback" in said and "KeyError: 'millstone'" in said


@pytest.mark.parametrize(
    ("error", "figures"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full"), "/full: the disk is full"),
        (torch.OutOfMemoryError("CUDA out of memory"), "optim.batch_size: memory does not suffice"),
    ],
)
def test_what_the_machine_refuses_in_a_check_is_its_no_go(
    context: CheckContext, capsys: pytest.CaptureFixture[str], error: Exception, figures: str
) -> None:
    def refuse(_: CheckContext) -> Finding:
        raise error

    finding = run(context, Check("mill", refuse))["mill"]
    assert finding.state == "no-go"
    assert finding.figures.startswith(figures)
    assert finding.next
    assert "Traceback" not in capsys.readouterr().err


def test_a_signal_ends_the_checks(context: CheckContext) -> None:
    def stop(_: CheckContext) -> Finding:
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped):
        run(context, Check("mill", stop))


def test_on_several_ranks_a_bug_ends_the_checks(tmp_path: Path) -> None:
    def break_down(_: CheckContext) -> Finding:
        raise KeyError("millstone")

    two_ranks = findings.context(tmp_path, ranks=findings.ranks_with_answers((OK, "b")))
    with pytest.raises(KeyError):
        run(two_ranks, Check("mill", break_down))


def test_a_product_of_a_more_general_type_is_not_taken(context: CheckContext) -> None:
    ended = run(context, Check("mill", mill), Check("wheat", eat_wheat))
    assert ended["wheat"].figures == "not looked at, because of mill"


def test_a_product_that_another_rank_lacks_is_taken_on_none(tmp_path: Path) -> None:
    class OtherRankHasNone(findings.RanksWithAnswers):
        def all_gather(self, value: object) -> list[object]:
            return [value, (OK, "b") if isinstance(value, tuple) else False]

    two_ranks = findings.context(tmp_path, ranks=OtherRankHasNone(0, 2, 1, findings.SINGLE.device))
    ended = run(two_ranks, Check("mill", mill), Check("bake", bake))
    assert ended["mill"] == OK
    assert ended["bake"].figures == "not looked at, because of mill"


def test_quick_leaves_out_what_is_slow(context: CheckContext) -> None:
    ended = run(context, Check("mill", mill, is_slow=True), quick=True)
    assert ended["mill"] == Finding("not applicable", "left out by --quick")


def test_every_product_that_a_check_takes_comes_from_an_earlier_one() -> None:
    for number, check in enumerate(CHECKS):
        for parameter in check.inputs:
            assert CHECKS.index(origin(CHECKS, parameter)) < number, f"{check.name}: {parameter}"
