"""The verb `preregister`: what will be trained, measured and compared is fixed in a file before test is read.

After Nosek et al. 2018 ("The preregistration revolution", PNAS 115) and the template for machine learning of
arXiv:2311.18807, which leave it to people to keep to it; here `eval` says whether a run did.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.evaluation import confirmatory, registered_comparison
from pipeline.evaluation.verdict import ALPHA
from pipeline.models import packaged_weights
from pipeline.runs import environment, registration
from pipeline.runs.registration import Arm, Code, Comparison, DataDigests, Registration


def preregister(
    paths: Sequence[Path],
    seeds: Sequence[int],
    compared: Sequence[str],
    soups: Sequence[str],
    number: str,
    out: Path | None,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Write a registration of configurations; return where it is, and its digest. Data that are not ready are prepared.

    Args:
        paths: of configuration files; each is an arm with the name of its run.
        seeds: of every arm.
        compared: names of arms, and soup-ARM of soups; the first is compared with each of the others.
        soups: names of arms whose seeds become one more run, the mean of their weights (`plumage soup`).
        number: the primary one, a key of metrics.json.
        out: the file; None: one in run.root/protocols.
        overrides: of every configuration.

    Raises:
        ConfigError: a configuration is wrong, arms have one name, what is compared is not among them, or the seeds of
            a soup have different validation images.
        WeightsError: the first weights of a configuration are not here.
        DataError: the file is there already, or a run of these configurations has read test.
    """
    configs = {path: load_config(path, overrides) for path in paths}
    _check_arms(configs)
    names = [str(config.run.name) for config in configs.values()]
    _check_soups({str(config.run.name): config for config in configs.values()}, soups, seeds)
    comparison = _comparison(names, [registration.soup_of(name) for name in soups], compared, seeds, number)
    root = next(iter(configs.values())).run.root
    path = out or registration.folder_of(root) / f"{'-'.join(compared or names)}.json"
    if path.exists():
        raise DataError(
            f"{path}: is there already, and a registration is never changed; name another one with --out"
        )
    arms = [_arm(config, seeds) for config in configs.values()]
    for arm in arms:
        _refuse_readings(arm, seeds, root)
    written = _registration(arms, soups, seeds, number, comparison)
    registration.write(path, written)
    _show(path, written, out is not None)
    return {"registration": str(path), "digest": written.digest, "arms": names, "number": number}


def _registration(
    arms: list[Arm], soups: Sequence[str], seeds: Sequence[int], number: str, comparison: Comparison | None
) -> Registration:
    written = Registration(
        schema="plumage/registration",
        version=registration.VERSION,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        split="test",
        number=number,
        comparison=comparison,
        seeds=list(seeds),
        code=_code(),
        arms=arms,
        soups=list(soups),
    )
    return replace(written, digest=written.computed_digest())


def _check_arms(configs: dict[Path, Config]) -> None:
    names = Counter(str(config.run.name) for config in configs.values())
    if doubled := [name for name, times in names.items() if times > 1]:
        raise ConfigError(
            f"preregister: two configurations have the name {doubled[0]}; give them a run.name each"
        )
    roots = {config.run.root for config in configs.values()}
    if len(roots) > 1:
        raise ConfigError(
            f"preregister: the configurations have different folders of runs ({', '.join(sorted(map(str, roots)))}); "
            "give all the same run.root"
        )


def _check_soups(arms: Mapping[str, Config], soups: Sequence[str], seeds: Sequence[int]) -> None:
    for name in soups:
        if name not in arms:
            raise ConfigError(f"--soup {name}: is none of the arms, {', '.join(arms)}")
        if len(seeds) < 2:
            raise ConfigError(f"--soup {name}: a mean is of two or more seeds; give more with --seeds")
        if arms[name].data.split_seed is None:
            raise ConfigError(
                f"--soup {name}: each seed has other validation images, so that none can judge the mean of all; add "
                "data.split_seed=0"
            )


def _comparison(
    arms: Sequence[str], soups: Sequence[str], compared: Sequence[str], seeds: Sequence[int], number: str
) -> Comparison | None:
    if not compared:
        return None
    names = [*arms, *soups]
    if foreign := [name for name in compared if name not in names]:
        raise ConfigError(f"--compare {foreign[0]}: is none of the arms, {', '.join(names)}")
    if len(compared) < 2 or len(set(compared)) < len(compared):
        raise ConfigError(f"--compare {' '.join(compared)}: name two or more different arms")
    if number != "top1":
        raise ConfigError(
            f"--compare: `plumage compare` tests top1 alone, and the primary number is {number}; drop one"
        )
    test = registered_comparison.test_of(compared, soups, len(seeds))
    return Comparison(list(compared), test, ALPHA, "Holm")


def _arm(config: Config, seeds: Sequence[int]) -> Arm:
    weights = packaged_weights.weights_file(config.model)
    return Arm(
        name=str(config.run.name),
        configuration=config.model_dump(mode="json"),
        weights_sha256=None if weights is None else files.digest_of_file(weights),
        data={str(seed): _data_digests(config.model_copy(update={"seed": seed})) for seed in seeds},
    )


def _data_digests(config: Config) -> DataDigests:
    try:
        data = prepare.load(config)
    except DataError:
        data = prepare.prepare(config)
    return DataDigests(sample_table.digest(data.samples), prepare.pictures_digest(config))


def _refuse_readings(arm: Arm, seeds: Sequence[int], root: Path) -> None:
    """Raise a `DataError` where a run of this arm has read test: what is registered now was not fixed before."""
    for reader in confirmatory.readers(root, registration.settings(arm.configuration), seeds):
        raise DataError(
            f"{reader.path}: has read test {len(reader.times)} time(s) with the configuration of {arm.name} and seed "
            f"{reader.seed}, so that nothing about it can be registered any more; register other seeds, or another "
            "configuration"
        )


def _code() -> Code:
    checkout, diff = environment.git() or {}, environment.diff()
    return Code(
        sha256=environment.code_sha256(),
        commit=checkout.get("commit"),
        dirty=checkout.get("dirty"),
        diff_sha256=None if diff is None else hashlib.sha256(diff.encode()).hexdigest(),
    )


def _show(path: Path, written: Registration, elsewhere: bool) -> None:
    console.say(f"registered  {path}")
    console.say(
        f"  arms {', '.join(arm.name for arm in written.arms)}; seeds {', '.join(map(str, written.seeds))}"
    )
    for name in written.soups:
        console.say(f"  soup of {name}: `plumage soup` of all seeds, kept if validation says so")
    console.say(f"  primary number {written.number} on test")
    if written.comparison is not None:
        base, *others = written.comparison.arms
        console.say(f"  {base} against {', '.join(others)}: {written.comparison.test}; alpha {ALPHA}, Holm")
    if written.code.dirty:
        console.warn("the code has changes that are in no commit: the registration holds for exactly these")
    if elsewhere:
        console.say(f"  `eval` looks in run.root/protocols: name this file with eval.protocol={path}")
    console.say(
        f"  digest {written.digest}: publish it, or the file, to show others that it was there before"
    )
