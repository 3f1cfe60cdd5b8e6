"""The findings of all ranks become one."""

from pipeline.doctor.finding import Finding, difference_between_ranks, worst_of_ranks
from tests.helpers.findings import SINGLE, ranks_with_answers


def test_the_worst_finding_of_all_ranks_counts_and_names_its_host() -> None:
    fine, bad = Finding("ok", "50 GiB free"), Finding("no-go", "1 MiB free", "free some space")
    assert worst_of_ranks(fine, ranks_with_answers((fine, "b"), (fine, "c"))) == fine
    of_b = Finding("no-go", "rank 1 on b: 1 MiB free", "free some space")
    assert worst_of_ranks(fine, ranks_with_answers((bad, "b"), (fine, "c"))) == of_b
    skipped = (Finding("not applicable", ""), "b")
    assert worst_of_ranks(fine, ranks_with_answers(skipped, skipped)) == fine


def test_a_value_that_differs_between_ranks_is_named_with_its_host() -> None:
    three_ranks = ranks_with_answers(({"torch": "2.14"}, "b"), ({"torch": "2.13"}, "c"))
    assert difference_between_ranks({"torch": "2.14"}, three_ranks).endswith("and 2.13 on rank 2 (c)")
    assert difference_between_ranks({"torch": "2.14"}, SINGLE) == ""
