"""The section "How these numbers were made": protocol, readings of test, choice of the epoch, seed, certificate."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from pipeline.common import files
from pipeline.config.data import OWN
from pipeline.config.load import completed, flatten, read_tree
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.evaluation.screen import protocol_in_words
from pipeline.runs import registration
from pipeline.runs.directory import EvaluationDirectory, RunDirectory

VERIFY = "run `verify` again"
FAULTS_SHOWN = 5
TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")


class Row(NamedTuple):
    """A line of the section: what it is about, and sentences."""

    name: str
    sentences: list[str]


class _Claim(BaseModel):
    about: str
    result: str
    found: list[str]


class _Certificate(BaseModel):
    """What the page relies on finding in certificate.json."""

    claims: list[_Claim]
    environment: dict[str, Any]
    metrics_sha256: dict[str, str] = {}


def rows(config: Config, folder: EvaluationDirectory, metrics: Mapping[str, Any]) -> list[Row]:
    """The lines of the section.

    Raises:
        DataError: certificate.json, the log or the sample table is damaged.
    """
    run = RunDirectory(config.run_dir)
    found = [
        Row("Protocol", list(_protocol(metrics))),
        Row("Readings of test", list(_readings(run))) if folder.split == "test" else None,
        Row("Epoch", [_epoch(config, run, metrics)]),
        Row("Seed", [_seed(config, run, metrics)]),
        Row("Certificate", list(_certificate(run, folder))),
    ]
    return [
        Row(row.name, [TIME.sub(r"\1 \2 UTC", sentence) for sentence in row.sentences])
        for row in found
        if row is not None and row.sentences
    ]


def _protocol(metrics: Mapping[str, Any]) -> Iterator[str]:
    if "protocol" in metrics:
        protocol = metrics["protocol"]
        place = protocol.get("registration")
        words = protocol_in_words({**protocol, "registration": place and Path(place).name})
        yield f"{words[0].upper()}{words[1:]}."


def _readings(run: RunDirectory) -> Iterator[str]:
    paths = run.test_readings_file, run.probe_folder / run.test_readings_file.name
    lines = [line for path in paths if path.is_file() for line in path.read_bytes().splitlines()]
    yield f"{len(lines)}, each listed in test_reads.jsonl before it began" + (":" if lines else ".")
    yield from map(_reading, lines)


def _reading(line: bytes) -> str:
    try:
        reading = json.loads(line)
        purpose = f"{reading['time']}, {reading.get('purpose', 'eval')}, {Path(reading['checkpoint']).name}"
    except (ValueError, TypeError, LookupError):
        return "one whose line is damaged"
    return purpose + (", interrupted" if reading.get("top1") is None else "")


def _epoch(config: Config, run: RunDirectory, metrics: Mapping[str, Any]) -> str:
    name = Path(str(metrics["checkpoint"])).name
    which = f"{metrics['epoch']} of {_trained_with(config, run, 'train.epochs')}"
    if name != run.checkpoint("best").name:
        return f"{which}: {name}, which `eval.checkpoint` names."
    if not run.log_file.is_file():
        return f"{which}: {name}; the log that tells how it was chosen, {run.log_file.name}, is gone."
    if run.read_log(steps=False).best() is None:
        return f"{which}: the last one, as nothing validates."
    whose = " that the data set has" if _brings_validation(config) else ", drawn from train"
    return f"{which}: the highest top-1 on the validation images{whose}; of equals, the lowest loss."


def _brings_validation(config: Config) -> bool:
    """Whether the data set has validation images of its own; then none are drawn from train (`data.splits`)."""
    if config.data.source not in OWN:
        return False
    samples = sample_table.read(prepare.output_paths(config)[0])
    return bool((samples["official"] == "val").any())


def _seed(config: Config, run: RunDirectory, metrics: Mapping[str, Any]) -> str:
    seed, protocol = _trained_with(config, run, "seed"), metrics.get("protocol", {})
    if protocol.get("status") == "confirmatory" and run.registration_file.is_file():
        seeds = registration.read(run.registration_file).seeds
        return f"{seed}, of the registered {', '.join(map(str, seeds))}."
    return f"{seed}; one run does not tell how much another seed would change."


def _trained_with(config: Config, run: RunDirectory, key: str) -> Any:
    """The value of a key such as "train.epochs" in the run's own config.yaml, which an evaluation need not repeat.

    Without a config.yaml it is that of `config`, as in `results.learned_rows`.
    """
    is_kept = run.config_file.is_file()
    tree = completed(read_tree(run.config_file)) if is_kept else config.model_dump(mode="json")
    return dict(flatten(tree))[key]


def _certificate(run: RunDirectory, folder: EvaluationDirectory) -> Iterator[str]:
    path = run.certificate_file
    if not path.is_file():
        yield "None: `plumage verify` computes the numbers again, and says what holds."
        return
    found = files.read_json(path, _Certificate, VERIFY)
    counts = Counter(claim.result for claim in found.claims)
    failing = [
        f"{claim.about}: {fault}"
        for claim in found.claims
        if claim.result == "fails"
        for fault in claim.found
    ]
    failed = counts["fails"]
    verdict = (
        f"{failed} of its claims fail{'s' if failed == 1 else ''}"
        if failed
        else "every claim that was checked holds"
    )
    yield (
        f"Of {found.environment.get('time')}: {verdict} ({counts['holds']} hold, {counts['not checked']} could not be "
        f"checked), on {found.environment.get('cpu')}."
    )
    if found.metrics_sha256.get(folder.split) != files.digest_of_file(folder.metrics_file):
        yield "It is about other numbers than these: run `plumage verify` again."
    yield from failing[:FAULTS_SHOWN]
    if len(failing) > FAULTS_SHOWN:
        yield f"and {len(failing) - FAULTS_SHOWN} more, in certificate.txt"
