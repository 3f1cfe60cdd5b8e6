"""Whether a comparison is said to be the registered one: by its base, its arms, and all of their seeds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import files
from pipeline.evaluation import registered_comparison, statistics
from pipeline.evaluation.registered_comparison import Reading
from pipeline.runs import registration
from pipeline.runs.directory import RunDirectory
from pipeline.runs.registration import Code, Comparison, Registration

WRITTEN = "2026-01-02T03:04:05+00:00"


TEST = registered_comparison.test_of(["plain", "strong", "soup-strong"], ["soup-strong"], 2)
EARLIER = "paired t-test over images and t-test over seeds; both p-values have to be below alpha"


def registered(arms: tuple[str, ...] = ("plain", "strong", "soup-strong"), test: str = TEST) -> Registration:
    fixed = Registration(
        schema="plumage/registration",
        version=1,
        written=WRITTEN,
        split="test",
        number="top1",
        comparison=Comparison(list(arms), test, 0.05, "Holm") if arms else None,
        seeds=[0, 1],
        code=Code("0", None, None, None),
        arms=[],
        soups=["strong"],
    )
    return replace(fixed, digest=fixed.computed_digest())


def group(
    folder: Path, arm: str, seeds: tuple[int, ...] = (0, 1), fixed: Registration | None = None
) -> list[Reading]:
    """Confirmatory readings of an arm."""
    fixed = fixed or registered()
    runs = [RunDirectory(folder / f"{arm}-seed{seed}") for seed in seeds]
    for run in runs:
        registration.write(run.registration_file, fixed)
    protocol = {"status": "confirmatory", "reasons": [], "arm": arm, "digest": fixed.digest}
    return [Reading(run, seed, protocol) for run, seed in zip(runs, seeds, strict=True)]


def write_soup(run: RunDirectory, of: list[str]) -> None:
    files.write_text(run.config_file, "run: {}\n")
    files.write_text(run.log_file, "")
    made_of = {"runs": [{"run": f"elsewhere/{name}"} for name in of]}
    files.write_json(run.environment_file, {"packages": {}, "soup": made_of})


def judged(*groups: list[Reading], tests: tuple[str, ...] = ()) -> dict[str, Any]:
    return registered_comparison.judge(groups, "test", tests)


def test_the_registered_comparison_is_named_by_date_and_digest(tmp_path: Path) -> None:
    groups = [group(tmp_path, "plain"), group(tmp_path, "strong")]
    found = judged(*groups)
    assert found == {
        "status": "registered",
        "reasons": [],
        "digest": registered().digest,
        "written": WRITTEN,
        "not_kept": ["soup-strong"],
    }
    assert registered_comparison.in_words(found) == (
        f"registered: this comparison was fixed on 2026-01-02, digest {registered().digest[:12]}; there is no "
        "soup-strong, which `plumage soup` keeps only if validation says so"
    )


def test_a_soup_that_validation_kept_has_to_be_in_the_comparison(tmp_path: Path) -> None:
    groups = [group(tmp_path, "plain"), group(tmp_path, "strong")]
    other = RunDirectory(tmp_path / "soup-other")
    write_soup(other, ["strong-seed0", "other-seed1"])
    assert judged(*groups)["not_kept"] == ["soup-strong"]
    soup = RunDirectory(tmp_path / "under-another-name")
    write_soup(soup, ["strong-seed0", "strong-seed1"])
    found = judged(*groups)
    assert found["reasons"] == ["registered and not here: soup-strong (1 in all)"]
    assert found["not_kept"] == []
    found = judged(groups[0], group(tmp_path, "soup-strong", (0,)), groups[1])
    assert (found["status"], found["not_kept"]) == ("registered", [])
    other.environment_file.write_text("{")
    assert judged(*groups)["not_kept"] == []


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (
            {"strong": (0, 1), "plain": (0, 1), "soup-strong": (0,)},
            "the base is strong, and plain was registered",
        ),
        ({"plain": (0, 1), "soup-strong": (0,)}, "registered and not here: strong (1 in all)"),
        (
            {"plain": (0, 1), "strong": (0, 1), "soup-strong": (0,), "other": (0, 1)},
            "it has other (1 in all), and plain, strong, soup-strong (3 in all) were registered",
        ),
        (
            {"plain": (0,), "strong": (0, 1), "soup-strong": (0,)},
            "plain has the seeds 0 (1 in all), and 0, 1 (2 in all) were registered",
        ),
    ],
)
def test_each_departure_is_named(arms: dict[str, tuple[int, ...]], reason: str, tmp_path: Path) -> None:
    found = judged(*(group(tmp_path, arm, seeds) for arm, seeds in arms.items()))
    assert (found["status"], found["reasons"]) == ("not registered", [reason])
    assert registered_comparison.in_words(found) == f"not a registered comparison: {reason}"


def test_runs_that_are_exploratory_or_of_two_registrations_make_none(tmp_path: Path) -> None:
    plain, strong = group(tmp_path, "plain"), group(tmp_path, "strong")
    explored = {"status": "exploratory", "reasons": ["no registration"], "arm": "strong", "digest": "0"}
    for protocol in (None, explored):
        other = [Reading(RunDirectory(tmp_path / "loose"), 0, protocol)]
        assert judged(plain, strong, other)["reasons"] == [
            "exploratory, as their metrics.json says: loose (1 in all)"
        ]
    other = group(tmp_path / "b", "strong", fixed=registered(("plain", "strong")))
    assert judged(plain, other)["reasons"] == ["its runs kept to 2 different registrations"]


def test_a_registration_without_a_comparison_or_another_file_of_it_makes_none(tmp_path: Path) -> None:
    alone = registered(())
    groups = [group(tmp_path, arm, fixed=alone) for arm in ("plain", "strong")]
    assert judged(*groups)["reasons"] == ["the registration fixes no comparison"]
    registration.write(groups[0][0].run.registration_file, registered())
    assert "is another one than metrics.json names" in judged(*groups)["reasons"][0]
    groups[0][0].run.registration_file.unlink()
    assert "no such registration" in judged(*groups)["reasons"][0]


def test_validation_is_no_matter_of_a_registration(tmp_path: Path) -> None:
    groups = [group(tmp_path, "plain"), group(tmp_path, "strong")]
    found = registered_comparison.judge(groups, "val")
    assert found["reasons"] == ["it is of val, and a registration is of test"]


def test_a_registration_of_an_earlier_version_is_read_and_its_test_named(tmp_path: Path) -> None:
    earlier = registered(("plain", "strong"), EARLIER)
    groups = [group(tmp_path, arm, fixed=earlier) for arm in ("plain", "strong")]
    found = judged(*groups, tests=(statistics.PAIRED,))
    assert found["reasons"] == [
        f'the registered test is "{EARLIER}", and this version uses "{statistics.PAIRED}"'
    ]
    assert (found["digest"], found["written"]) == (earlier.digest, WRITTEN)
    alone = replace(registered(("plain", "strong"), "McNemar's exact test over images"), seeds=[0])
    alone = replace(alone, digest=alone.computed_digest())
    groups = [group(tmp_path, arm, (0,), alone) for arm in ("plain", "strong")]
    assert judged(*groups, tests=(statistics.OVER_IMAGES,))["status"] == "registered"  # it was the same test


def test_pairs_of_seeds_that_were_registered_and_not_made_are_a_departure(tmp_path: Path) -> None:
    groups = [group(tmp_path, "plain"), group(tmp_path, "strong"), group(tmp_path, "soup-strong", (0,))]
    as_registered = (statistics.PAIRED, statistics.APART)  # a soup has no seeds to pair
    assert judged(*groups, tests=as_registered)["status"] == "registered"
    found = judged(*groups, tests=(statistics.APART, statistics.APART))
    assert found["reasons"] == ["strong is not compared seed by seed, and that was registered"]


def test_the_words_of_the_test_are_those_that_compare_gives() -> None:
    assert registered_comparison.test_of(["a", "b"], [], 1) == "McNemar's exact test over images"
    assert registered_comparison.test_of(["a", "b"], ["soup-a"], 5) == statistics.PAIRED
    assert registered_comparison.test_of(["a", "soup-a"], ["soup-a"], 5).startswith(statistics.PAIRED + "; ")
