"""Whether a reading of the test split is confirmatory: all that made its number was registered before it.

Anything else is exploratory, with the reasons. A number that was looked for on test is no worse a description of what
happened, but it is no test of a claim that was made before.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common import console
from pipeline.common.errors import DataError, UserError, name_some
from pipeline.config.load import completed, read_tree
from pipeline.config.schema import Config
from pipeline.data import sample_table
from pipeline.data.prepare import Prepared, pictures_digest
from pipeline.evaluation import readings
from pipeline.inference import load_model
from pipeline.runs import environment, registration
from pipeline.runs.directory import RunDirectory, find_run_directories
from pipeline.runs.history import History, TrainingProcess
from pipeline.runs.registration import Arm, Registration


@dataclass(frozen=True)
class Averaged:
    """A run that a soup was chosen from. trained_by: SHA-256 of the code; history: None where the run is not here."""

    path: Path
    seed: int | None
    trained_by: str | None
    history: History | None

    @classmethod
    def listed(cls, run: RunDirectory, about: Mapping[str, Any]) -> "tuple[Averaged, ...] | None":
        """Those that the environment of a run names; None of a run that was trained.

        Raises:
            UserError: a history or a checkpoint of one is damaged.
        """
        if "soup" not in about:
            return None
        return tuple(cls._of(run, one) for one in about["soup"]["runs"])

    @classmethod
    def _of(cls, soup: RunDirectory, named: Mapping[str, Any]) -> "Averaged":
        path, code = Path(str(named.get("run"))), named.get("code_sha256")
        places = (RunDirectory(place) for place in (path, soup.path.parent / path.name))
        here = next((place for place in places if place.is_run()), None)
        return cls(path, named.get("seed"), code, None if here is None else History.of_run(here))


@dataclass(frozen=True)
class Facts:
    """What made a run's predictions of test, as a registration fixes it.

    settings: `registration.settings`; trained_by, evaluated_by: SHA-256 of the code, of the last process that trained;
    history: of all of these, for a run that was trained; averaged: the runs of a soup.
    """

    settings: Mapping[str, Any]
    seed: int
    weights_sha256: str | None
    samples: str
    pictures: str | None
    trained_by: str | None
    evaluated_by: str
    averaged: tuple[Averaged, ...] | None = None
    history: History = field(default_factory=History)

    @classmethod
    def gather(cls, config: Config, data: Prepared) -> "Facts":
        """Those of an evaluation that is about to begin.

        Raises:
            UserError: the run's configuration is missing; it, the environment, the history or a checkpoint is damaged.
        """
        run = RunDirectory(config.run_dir)
        if not run.config_file.is_file():
            raise DataError(f"{run.config_file}: missing, so it is not known how the run was trained")
        trained = completed(read_tree(run.config_file))
        about = run.read_environment()
        averaged = Averaged.listed(run, about)
        return cls(
            settings=registration.settings({**trained, "eval": config.eval.model_dump(mode="json")}),
            seed=int(trained["seed"]),
            weights_sha256=about.get("weights", {}).get("sha256"),
            samples=sample_table.digest(data.samples),
            pictures=pictures_digest(config),
            trained_by=about.get("code_sha256"),
            evaluated_by=environment.code_sha256(),
            averaged=averaged,
            history=History.of_run(run, load_model.checkpoint_path(config))
            if averaged is None
            else History(),
        )


class Reader(NamedTuple):
    """A run that has read test. times: of the readings that came to an end, at least one; seed: of a soup, its first."""

    path: Path
    seed: int
    is_soup: bool
    times: list[str]


@dataclass(frozen=True)
class Judgement:
    """The verdict for metrics.json, and the registration that it is by, if there is one."""

    protocol: dict[str, Any]
    registered: Registration | None = None

    @property
    def is_confirmatory(self) -> bool:
        """Whether nothing speaks against it."""
        return bool(self.protocol["status"] == registration.CONFIRMATORY)

    @property
    def purpose(self) -> str:
        """For the list of readings of the test split."""
        return readings.CONFIRMATORY if self.is_confirmatory else readings.EVALUATION

    def keep(self, run: RunDirectory) -> None:
        """Put the registration of a confirmatory reading into the run."""
        if self.is_confirmatory and self.registered is not None:
            registration.write(run.registration_file, self.registered)


def judge(config: Config, data: Prepared, training: Mapping[str, str]) -> Judgement:
    """Judge the reading of test that is about to begin; of several registrations the one that fits best counts.

    Args:
        training: what metrics.json says of a training that has not finished.

    Raises:
        ConfigError, DataError: the file that `eval.protocol` names is no registration, or has been edited.
    """
    run = RunDirectory(config.run_dir)
    always = [*_unfinished(training), *_read_before(run)]
    candidates, spoilt = _registrations(config)
    try:
        facts = Facts.gather(config, data)
    except UserError as error:
        return Judgement(_verdict([*always, str(error)]))
    always += _not_here(facts)
    ranked = sorted(
        (
            (list(mismatches(arm, found, facts)), found, arm, path)
            for path, found in candidates
            for arm in found.arms
        ),
        key=lambda judged: len(judged[0]),
    )
    if not ranked:
        return Judgement(
            _verdict([*always, *(spoilt or ["no registration was found in run.root/protocols"])])
        )
    differing, found, arm, path = ranked[0]
    reasons = [*always, *differing, *(spoilt if differing else [])]
    if not reasons:
        reasons += _read_by_others(config, facts)
    about = {"registration": str(path), "digest": found.digest, "written": found.written}
    name = arm.name if facts.averaged is None else registration.soup_of(arm.name)
    return Judgement({**_verdict(reasons), **about, "arm": name, "number": found.number}, found)


def mismatches(arm: Arm, found: Registration, facts: Facts) -> Iterator[str]:
    """In what a run departs from an arm of a registration, a clause each."""
    if changed := _changed(registration.settings(arm.configuration), facts.settings):
        yield f"its configuration is not that of arm {arm.name}: {changed}"
    if arm.weights_sha256 != facts.weights_sha256:
        yield f"its first weights are not those of arm {arm.name}"
    if facts.seed not in found.seeds:
        yield f"its seed {facts.seed} is not registered ({', '.join(map(str, found.seeds))} are)"
        return
    if facts.averaged is not None:
        yield from _mismatches_of_soup(arm, found, facts, facts.averaged)
    data = arm.data[str(facts.seed)]
    if data.samples != facts.samples:
        yield "its sample table (images, labels, splits) is not the registered one"
    if data.pictures != facts.pictures:
        yield "its pictures are not those that were registered"
    yield from _mismatches_of_history(arm, found, facts.history, facts.settings, facts.trained_by)
    for verb, code in (("trained", facts.trained_by), ("evaluated", facts.evaluated_by)):
        if code is None:
            yield f"it does not say which code {verb} it"
        elif code != found.code.sha256:
            yield f"it is {verb} by other code than was registered ({_code(found)})"


def _mismatches_of_history(
    arm: Arm, found: Registration, history: History, settings: Mapping[str, Any], trained_by: str | None
) -> Iterator[str]:
    """In what a history does not fit, or a process that trained departs.

    Args:
        settings, trained_by: of the run, whose departures are named already.
    """
    yield from history.faults
    yield from history.gaps()
    for start in history.starts:
        if _of_training(registration.settings(start.configuration)) != _of_training(settings):
            yield from _other_settings(arm, start)
        if start.code_sha256 not in (found.code.sha256, trained_by):
            yield f"from step {start.step} on it is trained by other code than was registered ({_code(found)})"


def _other_settings(arm: Arm, start: TrainingProcess) -> Iterator[str]:
    """In what a process that trained departs from an arm."""
    fixed, its = (
        _of_training(registration.settings(each)) for each in (arm.configuration, start.configuration)
    )
    if changed := _changed(fixed, its):
        yield f"from step {start.step} on its configuration is not that of arm {arm.name}: {changed}"


def _changed(fixed: Mapping[str, Any], its: Mapping[str, Any]) -> str:
    """The settings that are others than the fixed ones, in words; empty where none is."""
    keys = [key for key in sorted(fixed.keys() | its.keys()) if fixed.get(key) != its.get(key)]
    return name_some([f"{key} {its.get(key)} instead of {fixed.get(key)}" for key in keys]) if keys else ""


def _mismatches_of_soup(
    arm: Arm, found: Registration, facts: Facts, averaged: Collection[Averaged]
) -> Iterator[str]:
    """In what a soup departs from the registered one, which is chosen from all seeds."""
    if arm.name not in found.soups:
        yield f"it is a soup, and none of arm {arm.name} is registered"
    seeds = [one.seed for one in averaged]
    if Counter(seeds) != Counter(found.seeds):
        yield f"it was chosen from the seeds {name_some(seeds)}, not from all that are registered"
    if any(one.trained_by != found.code.sha256 for one in averaged):
        yield f"a run that it was chosen from is trained by other code than was registered ({_code(found)})"
    for one in averaged:
        if one.history is not None:
            for clause in _mismatches_of_history(arm, found, one.history, facts.settings, one.trained_by):
                yield f"{one.path}, which it was chosen from: {clause}"


def _code(found: Registration) -> str:
    commit = "outside git" if found.code.commit is None else f"commit {found.code.commit[:12]}"
    return f"{commit}, with changes" if found.code.dirty else commit


def readers(root: Path, settings: Mapping[str, Any], seeds: Collection[int]) -> Iterator[Reader]:
    """The runs below a folder that have read test with a configuration, whatever its evaluation, and one of the seeds.

    A run whose configuration cannot be read is said, and left out.

    Args:
        settings: `registration.settings` of the configuration.
    """
    for run in find_run_directories(root):
        if not (times := readings.completed(run)):
            continue
        try:
            tree, is_soup = completed(read_tree(run.config_file)), "soup" in run.read_environment()
        except UserError as error:
            console.warn(f"left out: {error}")
            continue
        same = _of_training(registration.settings(tree)) == _of_training(settings)
        if same and tree["seed"] in seeds:
            yield Reader(run.path, int(tree["seed"]), is_soup, times)


def _of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in registration.EVALUATION_KEYS}


def _read_by_others(config: Config, facts: Facts) -> Iterator[str]:
    """Another run (of a soup: another soup) of the same configuration and seed, which has read test already."""
    root = registration.folder_of(config.run.root).parent
    for reader in readers(root, facts.settings, [facts.seed]):
        if (
            reader.is_soup == (facts.averaged is not None)
            and reader.path.resolve() != config.run_dir.resolve()
        ):
            yield f"{reader.path} has read test with the same configuration and seed, first at {reader.times[0]}"


def _unfinished(training: Mapping[str, str]) -> Iterator[str]:
    if training:
        yield f"its training had not finished ({training['training']})"


def _not_here(facts: Facts) -> Iterator[str]:
    for one in facts.averaged or ():
        if one.history is None:
            yield f"{one.path}, which it was chosen from, is not here, and its history not known"


def _read_before(run: RunDirectory) -> Iterator[str]:
    times = readings.completed(run)
    if times:
        yield f"the run has read test before, {len(times)} time(s), first at {times[0]}"


def _registrations(config: Config) -> tuple[list[tuple[Path, Registration]], list[str]]:
    """The registrations that may name a run, and why files beside them cannot count."""
    if config.eval.protocol is not None:
        return [(config.eval.protocol, registration.read(config.eval.protocol))], []
    found, spoilt = [], []
    for path in sorted(registration.folder_of(config.run.root).glob("*.json")):
        try:
            found.append((path, registration.read(path)))
        except DataError as error:
            spoilt.append(str(error))
    return found, spoilt


def _verdict(reasons: list[str]) -> dict[str, Any]:
    return {"status": registration.EXPLORATORY if reasons else registration.CONFIRMATORY, "reasons": reasons}
