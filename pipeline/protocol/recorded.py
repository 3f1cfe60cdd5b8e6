"""Whether what a run says of itself fits: configuration, checkpoints, weights, log, readings of test, registration."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from pipeline.common import files
from pipeline.common.errors import CheckpointError, DataError, UserError, WeightsError
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, differences, read_tree
from pipeline.config.schema import Config
from pipeline.evaluation import confirmatory, readings
from pipeline.models import packaged_weights
from pipeline.protocol.claims import Claim
from pipeline.runs import checkpoints, predictions, registration
from pipeline.runs.directory import EvaluationDirectory, RunDirectory
from pipeline.runs.history import FILE, Held, History
from pipeline.runs.log import Log

KEPT = "config", "samples", "best", "step", "epoch", "history"
"""of a checkpoint's content; the tensors are not needed, and one of an earlier version has no history"""
MOMENT = "epoch", "step"
"""what metrics.json says of the checkpoint that was evaluated"""


class _Protocol(BaseModel):
    """`protocol` of metrics.json."""

    status: str
    reasons: list[str]
    digest: str = ""
    arm: str = ""


class _Log(BaseModel):
    bytes: NonNegativeInt
    sha256: str


class _Environment(BaseModel):
    """What is taken for granted of an evaluation's environment.json."""

    samples: str
    pictures: str | None
    code_sha256: str
    batch_size: PositiveInt
    log: _Log | None


class Evaluated(NamedTuple):
    """A stored evaluation: its metrics.json, and its environment.json, {} where an earlier version wrote none."""

    folder: EvaluationDirectory
    metrics: dict[str, Any]
    environment: dict[str, Any]

    @property
    def run(self) -> RunDirectory:
        """Whose evaluation it is."""
        return RunDirectory(self.folder.path.parent.parent)

    @property
    def checkpoint(self) -> Path:
        """The file that was evaluated: that of the run, wherever its folder lies now, or another one."""
        named = Path(str(self.metrics.get("checkpoint", self.run.checkpoint("best"))))
        own = self.run.checkpoints / named.name
        return own if own.is_file() else named

    def checkpoint_setting(self, registered: str) -> str:
        """`eval.checkpoint` as metrics.json says it: best, last, or a path, the registered one in its words."""
        named = str(self.metrics.get("checkpoint"))
        own = {self.run.checkpoint("best"): "best", self.run.checkpoint("last"): "last"}
        if Path(named) == Path(registered):
            return registered
        return own.get(self.run.checkpoints / Path(named).name, named)


def evaluations(run: RunDirectory) -> list[Evaluated]:
    """The evaluations of a run, by split.

    Raises:
        DataError: a metrics.json or environment.json is damaged.
    """
    found = []
    for split in ("train", "val", "test"):
        folder = run.evaluation(split)
        if folder.metrics_file.is_file():
            about: dict[str, Any] = {}
            if (path := folder.environment_file).is_file():
                files.read_json(path, _Environment, predictions.AGAIN)
                about = files.read_json(path, dict[str, Any], predictions.AGAIN)
            found.append(Evaluated(folder, predictions.read_metrics(folder), about))
    return found


def check_checkpoints(run: RunDirectory, evaluated: list[Evaluated]) -> tuple[Claim, dict[str, Any]]:
    """Whether the checkpoints are whole, and those that were evaluated the same files; `KEPT` of them, by name."""
    contents: dict[str, Any] = {}
    faults, compared = [], []
    for path in sorted(run.checkpoints.glob("*.pt")):
        try:
            content = checkpoints.read(path)
            contents[path.name] = {name: content.get(name) for name in KEPT}
        except CheckpointError as error:
            faults.append(str(error))
    for each in evaluated:
        path, digest = each.checkpoint, each.metrics.get("checkpoint_sha256")
        if not path.is_file():
            faults.append(f"{path}: missing, and eval/{each.folder.split} was predicted with it")
        elif digest and files.digest_of_file(path) != digest:
            faults.append(f"{path.name}: is not the file that eval/{each.folder.split} was predicted with")
        else:
            faults += _other_moment(each, contents)
            if digest:
                compared.append(f"{path.name} is the file that eval/{each.folder.split} was predicted with")
    if not contents and not faults:
        return Claim.unchecked("checkpoints", f"{run.checkpoints}: there is none"), contents
    whole = f"{', '.join(contents)}: whole by their checksums"
    return Claim.of("checkpoints", faults, "; ".join([whole, *compared])), contents


def _other_moment(each: Evaluated, contents: dict[str, Any]) -> Iterator[str]:
    """Where metrics.json names another moment of the training than the checkpoint is of."""
    path = each.checkpoint
    own = path.parent == each.run.checkpoints
    try:
        content = contents.get(path.name) if own else checkpoints.read(path)
    except CheckpointError as error:
        yield str(error)
        return
    for key in MOMENT:
        if content is not None and key in each.metrics and each.metrics[key] != content[key]:
            yield (
                f"eval/{each.folder.split}/metrics.json: {key} is {each.metrics[key]}, and {content[key]} in {path.name}"
            )


def check_history(run: RunDirectory, contents: dict[str, Any]) -> Claim:
    """Whether the processes that trained the run are the same in history.json and in its checkpoints."""
    about = "history"
    try:
        found = _history(run, contents)
    except UserError as error:
        return Claim(about, "fails", [str(error)])
    if not found.starts and not found.faults:
        return Claim.unchecked(about, f"neither {FILE} nor a checkpoint has one, as of an earlier version")
    if not contents and not found.faults:
        return Claim.unchecked(about, "no checkpoint to compare it with")
    gaps = list(found.gaps())
    if gaps and not found.faults:
        return Claim.unchecked(about, "; ".join(gaps))
    starts = ", ".join(str(start.step) for start in found.starts)
    return Claim.of(about, found.faults, f"{FILE} is that in the checkpoints: trained from step {starts} on")


def _history(run: RunDirectory, contents: dict[str, Any]) -> History:
    """That of history.json, compared with those in the best and the last checkpoint.

    Raises:
        UserError: a history is damaged.
    """
    paths = (run.checkpoint("best"), run.checkpoint("last"))
    return History.compared(
        run, {path.name: Held.of(contents[path.name], path) for path in paths if path.name in contents}
    )


def check_configuration(run: RunDirectory, contents: dict[str, Any]) -> Claim:
    """Whether config.yaml is the configuration in the last checkpoint, but for what changes no number."""
    names = [path.name for path in (run.checkpoint("last"), run.checkpoint("best"))]
    name = next((name for name in names if name in contents), None)
    if name is None:
        return Claim.unchecked("configuration", "no checkpoint to compare it with")
    trained, stored = completed(contents[name]["config"]), completed(read_tree(run.config_file))
    faults = [
        f"config.yaml: {key} is {now}, and {before} in {name}"
        for key, before, now in differences(trained, stored)
        if effect_of(key).changes_numbers and not effect_of(key).per_machine
    ]
    return Claim.of("configuration", faults, f"config.yaml is the configuration in {name}")


def check_weights(run: RunDirectory, config: Config) -> Claim:
    """Whether the file of the first weights has the digest that environment.json names."""
    about = run.read_environment().get("weights") or {}
    digest = about.get("sha256")
    if digest is None:
        return Claim.unchecked(
            "first weights", f"environment.json names no file of weights ({about.get('source')})"
        )
    try:
        path = packaged_weights.weights_file(config.model)
    except WeightsError as error:
        return Claim.unchecked("first weights", str(error))
    if path is None:
        return Claim.unchecked("first weights", f"{about['source']}: not here; name it with model.weights")
    if files.digest_of_file(path) != digest:
        return Claim("first weights", "fails", [f"{path}: is not the file that training began with"])
    return Claim("first weights", "holds", [f"{path} is the file that training began with"])


def check_log(run: RunDirectory, log: Log, evaluated: list[Evaluated], contents: dict[str, Any]) -> Claim:
    """Whether the log is as it was when the run was evaluated, and its best validation that of the best checkpoint."""
    faults, compared = [], []
    for each in evaluated:
        recorded = each.environment.get("log")
        if recorded and not run.log_file.is_file():
            faults.append(f"{run.log_file.name}: missing")
        elif recorded:
            with run.log_file.open("rb") as stream:
                head = stream.read(recorded["bytes"])
            if hashlib.sha256(head).hexdigest() != recorded["sha256"]:
                faults.append(f"log.jsonl: has changed since eval/{each.folder.split} was predicted")
            else:
                compared.append(f"log.jsonl is as it was when eval/{each.folder.split} was predicted")
    content = contents.get(run.checkpoint("best").name)
    if content is not None and (best := content["best"]):
        faults += list(_other_best(log, best))
        compared.append("its best validation is that of best.pt")
    if not faults and not compared:
        return Claim.unchecked(
            "log", "no evaluation has recorded its digest, and there is no best checkpoint"
        )
    return Claim.of("log", faults, "; ".join(compared))


def _other_best(log: Log, best: dict[str, Any]) -> Iterator[str]:
    records = [record for record in log.validations() if record["step"] == best["step"]]
    if not records:
        yield f"log.jsonl: has no validation of step {best['step']}, which best.pt is of"
    elif best["top1"] is not None:
        for field, value in (("val_top1", best["top1"]), ("val_loss", best["loss"])):
            if records[-1][field] != value:
                place = f"log.jsonl, the record {records[-1]['kind']!r} of step {best['step']}"
                yield f"{place}: {field} is {records[-1][field]}, and {value} in best.pt"
        chosen = log.best()
        if chosen is not None and chosen["step"] != best["step"]:
            yield f"log.jsonl: its best validation is of step {chosen['step']}, and best.pt is of step {best['step']}"


def check_readings(run: RunDirectory, evaluated: list[Evaluated]) -> Claim:
    """Whether the list of readings of test has at least as many as an evaluation counted."""
    counted = [reads for each in evaluated if isinstance(reads := each.metrics.get("test_reads"), int)]
    if not counted:
        return Claim.unchecked("readings of test", "test was not evaluated")
    listed = run.count_test_readings()
    faults = [f"test_reads.jsonl: lists {listed}, and metrics.json counts {max(counted)}"] * (
        listed < max(counted)
    )
    return Claim.of(
        "readings of test", faults, f"{listed} in test_reads.jsonl; metrics.json counts {max(counted)}"
    )


def check_registration(run: RunDirectory, evaluated: list[Evaluated], contents: dict[str, Any]) -> Claim:
    """Whether a confirmatory evaluation kept to the registration that it names, by all that is stored."""
    about = "registration"
    judged = next((each for each in evaluated if "protocol" in each.metrics), None)
    if judged is None:
        return Claim.unchecked(about, "test was not evaluated, or by an earlier version")
    try:
        protocol = _Protocol.model_validate(judged.metrics["protocol"])
        if protocol.status == registration.EXPLORATORY:
            return Claim.unchecked(about, f"the evaluation is exploratory: {'; '.join(protocol.reasons)}")
        kept = registration.read(run.registration_file)
    except ValidationError as error:
        return Claim(about, "fails", [f"metrics.json: protocol: {files.first_fault(error)}"])
    except DataError as error:
        return Claim(about, "fails", [str(error)])
    is_soup = "soup" in run.read_environment()
    named = {registration.soup_of(arm.name) if is_soup else arm.name: arm for arm in kept.arms}
    arm = named.get(protocol.arm)
    if arm is None or kept.digest != protocol.digest:
        return Claim(
            about, "fails", [f"{run.registration_file.name}: is another one than metrics.json names"]
        )
    try:
        facts = _facts(run, judged, arm, contents)
    except UserError as error:
        return Claim(about, "fails", [str(error)])
    faults = list(confirmatory.mismatches(arm, kept, facts))
    if not readings.are_confirmatory(run):
        faults.append(f"{run.test_readings_file.name}: lists another reading than one that is confirmatory")
    return Claim.of(
        about, faults, f"confirmatory: kept to {kept.digest[:12]} of {kept.written}, arm {protocol.arm}"
    )


def _facts(
    run: RunDirectory, judged: Evaluated, arm: registration.Arm, contents: dict[str, Any]
) -> confirmatory.Facts:
    """What the run says of itself; of an evaluation its checkpoint and its views are stored.

    Raises:
        UserError: a history, or a checkpoint of a soup's runs, is damaged.
    """
    trained, about = completed(read_tree(run.config_file)), run.read_environment()
    own = {
        "checkpoint": judged.checkpoint_setting(str(arm.configuration["eval"]["checkpoint"])),
        "tta": judged.metrics.get("tta"),
        "image_px": judged.metrics.get("image_px"),
    }
    averaged = confirmatory.Averaged.listed(run, about)
    return confirmatory.Facts(
        settings=registration.settings({**trained, "eval": {**arm.configuration["eval"], **own}}),
        seed=int(trained["seed"]),
        weights_sha256=(about.get("weights") or {}).get("sha256"),
        samples=str(judged.environment.get("samples")),
        pictures=judged.environment.get("pictures"),
        trained_by=about.get("code_sha256"),
        evaluated_by=str(judged.environment.get("code_sha256")),
        averaged=averaged,
        history=_history(run, contents) if averaged is None else History(),
    )
