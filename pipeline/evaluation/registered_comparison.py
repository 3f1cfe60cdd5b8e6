"""Whether a comparison of runs is the one that `preregister` fixed: its base, arms, all of their seeds, and its test."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.errors import DataError, name_some
from pipeline.evaluation import statistics
from pipeline.runs import registration
from pipeline.runs.directory import RunDirectory, find_run_directories
from pipeline.runs.registration import Registration

REGISTERED, OTHER = "registered", "not registered"
OF_A_SOUP = "; of a soup, which is one run, over images and the seeds of the other side"


@dataclass(frozen=True)
class Reading:
    """A run's reading of test. protocol: as metrics.json has it; None of an earlier version."""

    run: RunDirectory
    seed: int | None
    protocol: Mapping[str, Any] | None

    @property
    def arm(self) -> str | None:
        """The registered arm that it is of; None of an exploratory one."""
        if self.protocol is None or self.protocol["status"] != registration.CONFIRMATORY:
            return None
        return str(self.protocol["arm"])


def test_of(arms: Collection[str], soups: Collection[str], seeds: int) -> str:
    """The test that `compare` makes of registered arms, in words.

    Args:
        arms: those compared, soups among them by their names.
        seeds: of each arm.
    """
    test = statistics.OVER_IMAGES if seeds == 1 else statistics.PAIRED
    return test + (OF_A_SOUP if set(arms) & set(soups) else "")


def judge(groups: Sequence[Sequence[Reading]], split: str, tests: Sequence[str] = ()) -> dict[str, Any]:
    """Judge a comparison of the first group with each of the others.

    Args:
        tests: the one that was made of each of the others.

    Returns:
        status, `registered` or `not registered`; reasons, of the latter; and, where the runs kept to a registration,
        digest and written (UTC, ISO 8601) of it, and not_kept, the registered soups that there are none of.
    """
    if split != "test":
        return _verdict([f"it is of {split}, and a registration is of test"])
    runs = [reading for group in groups for reading in group]
    if loose := [reading.run.path.name for reading in runs if reading.arm is None]:
        return _verdict([f"exploratory, as their metrics.json says: {name_some(loose)}"])
    digests = {str(reading.protocol["digest"]) for reading in runs if reading.protocol is not None}
    if len(digests) > 1:
        return _verdict([f"its runs kept to {len(digests)} different registrations"])
    try:
        found = registration.read(runs[0].run.registration_file)
    except DataError as error:
        return _verdict([str(error)])
    if found.digest not in digests:
        return _verdict([f"{runs[0].run.registration_file}: is another one than metrics.json names"])
    not_kept = _soups_not_kept(groups, found)
    return {
        **_verdict([*_departures(groups, found, not_kept), *_other_tests(groups, found, tests)]),
        "digest": found.digest,
        "written": found.written,
        "not_kept": not_kept,
    }


def in_words(judged: Mapping[str, Any]) -> str:
    """One line for the screen."""
    if judged["status"] == REGISTERED:
        words = f"registered: this comparison was fixed on {judged['written'][:10]}, digest {judged['digest'][:12]}"
        for soup in judged["not_kept"]:
            words += f"; there is no {soup}, which `plumage soup` keeps only if validation says so"
        return words
    return f"not a registered comparison: {'; '.join(judged['reasons'])}"


def _departures(
    groups: Sequence[Sequence[Reading]], found: Registration, not_kept: Collection[str]
) -> Iterator[str]:
    if found.comparison is None:
        yield "the registration fixes no comparison"
        return
    arms = [_name(group) for group in groups]
    base, *others = found.comparison.arms
    if arms[0] != base:
        yield f"the base is {arms[0]}, and {base} was registered"
    if more := sorted(set(arms) - set(found.comparison.arms)):
        yield f"it has {name_some(more)}, and {name_some(found.comparison.arms)} were registered"
    if absent := [arm for arm in others if arm not in (*arms, *not_kept)]:
        yield f"registered and not here: {name_some(absent)}"
    soups = {registration.soup_of(arm) for arm in found.soups}
    for arm, group in zip(arms, groups, strict=True):
        seeds = sorted(int(reading.seed or 0) for reading in group)
        if arm not in soups and seeds != sorted(found.seeds):
            yield f"{arm} has the seeds {name_some(seeds)}, and {name_some(found.seeds)} were registered"


def _other_tests(
    groups: Sequence[Sequence[Reading]], found: Registration, tests: Sequence[str]
) -> Iterator[str]:
    """What is tested otherwise than registered, be it by an earlier version."""
    if found.comparison is None:
        return
    soups = {registration.soup_of(arm) for arm in found.soups}
    own = test_of(found.comparison.arms, soups, len(found.seeds))
    if found.comparison.test != own:
        yield f'the registered test is "{found.comparison.test}", and this version uses "{own}"'
        return
    base, *others = (_name(group) for group in groups)
    if len(found.seeds) > 1 and base not in soups:
        for arm, test in zip(others, tests, strict=False):
            if arm not in soups and test != statistics.PAIRED:
                yield f"{arm} is not compared seed by seed, and that was registered"


def _name(group: Sequence[Reading]) -> str:
    return "/".join(sorted({str(reading.arm) for reading in group}))


def _soups_not_kept(groups: Sequence[Sequence[Reading]], found: Registration) -> list[str]:
    """The registered soups of the groups' runs that no run directory beside them is."""
    if not found.soups:
        return []
    arms = {_name(group): {reading.run.path.name for reading in group} for group in groups}
    root = registration.folder_of(groups[0][0].run.path.resolve().parent).parent
    made_of = [runs for run in find_run_directories(root) if (runs := _averaged(run))]
    return [
        registration.soup_of(arm)
        for arm in found.soups
        if arm in arms and not any(runs <= arms[arm] for runs in made_of)
    ]


def _averaged(run: RunDirectory) -> set[str]:
    """The names of the runs that a soup was chosen from; of any other run none."""
    try:
        about = run.read_environment().get("soup")
    except DataError as error:
        console.warn(f"left out: {error}")
        return set()
    return {Path(one["run"]).name for one in about["runs"]} if about else set()


def _verdict(reasons: list[str]) -> dict[str, Any]:
    return {"status": OTHER if reasons else REGISTERED, "reasons": reasons}
