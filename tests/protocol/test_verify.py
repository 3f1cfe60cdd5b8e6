"""A certificate of a run holds, and each thing that was changed is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.cli.main import run as run_verb
from pipeline.common import files
from pipeline.common.errors import CheckpointError, ConfigError, name_some
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.evaluation import results
from pipeline.inference import load_model, predict
from pipeline.models.build import build_model
from pipeline.protocol import recorded
from pipeline.protocol.verify import Effort, verify
from pipeline.runs import status
from pipeline.runs.directory import RunDirectory
from pipeline.training.trainer import train
from tests.helpers import tiny
from tests.helpers.folders import digests

DIGESTS_ALONE = Effort(images=0, steps=0)


@pytest.fixture
def tmp(confirmed: Path, tmp_path: Path) -> Path:
    shutil.copytree(confirmed / "runs", tmp_path / "runs")
    return tmp_path


def checked(tmp: Path, effort: Effort = DIGESTS_ALONE, *more: str) -> dict[str, dict[str, Any]]:
    """The claims of the certificate by what they are about."""
    result = verify(tiny.config(tmp, *more), effort)
    content = json.loads((tmp / "runs/tiny/certificate.json").read_text())
    assert content["holds"] == result["holds"]
    claims = {claim["about"]: claim for claim in content["claims"]}
    assert result["fails"] == [about for about, claim in claims.items() if claim["result"] == "fails"]
    return claims


def faults(claims: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {about: claim["found"] for about, claim in claims.items() if claim["result"] == "fails"}


def test_every_claim_of_a_run_holds_and_nothing_of_it_is_changed(
    tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp / "runs/tiny"
    before = digests(run)
    assert run_verb(["verify", str(run)]) == 0
    said, content = json.loads(capsys.readouterr().out), json.loads((run / "certificate.json").read_text())
    assert (said["holds"], said["fails"], said["not_checked"]) == (True, [], ["first weights"])
    assert said["certificate"] == str(run / "certificate.json")
    results = {claim["about"]: claim["result"] for claim in content["claims"]}
    assert results == {
        "checkpoints": "holds",
        "configuration": "holds",
        "first weights": "not checked",
        "history": "holds",
        "log": "holds",
        "readings of test": "holds",
        "registration": "holds",
        "data": "holds",
        "numbers of test": "holds",
        "pictures": "holds",
        "predictions of test": "holds",
        "predictions of val for the temperature": "holds",
        "training": "holds",
    }
    found = {claim["about"]: claim["found"] for claim in content["claims"]}
    assert found["training"] == ["steps 1 to 10, taken again, have the losses of log.jsonl: the same bits"]
    assert found["history"] == ["history.json is that in the checkpoints: trained from step 0 on"]
    assert found["predictions of test"] == ["18 of 18 images, predicted again with best.pt: the same bits"]
    assert "every claim that was checked holds" in (run / "certificate.txt").read_text()
    after = digests(run)
    assert {name: digest for name, digest in after.items() if not name.startswith("certificate.")} == before


def test_a_flipped_bit_of_a_checkpoint_is_named(tmp: Path) -> None:
    path = tmp / "runs/tiny/checkpoints/best.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = faults(checked(tmp, Effort(images=1, steps=0)))
    assert found["checkpoints"][0].startswith(f"{path}: damaged")
    assert found["checkpoints"][1] == "best.pt: is not the file that eval/test was predicted with"
    assert found["predictions of test"][0].startswith(f"{path}: damaged")
    assert run_verb(["verify", str(tmp / "runs/tiny"), "--images", "0", "--steps", "0"]) == 2


def test_a_flipped_bit_of_a_checkpoint_that_was_not_evaluated_is_named(tmp: Path) -> None:
    path = tmp / "runs/tiny/checkpoints/last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be another name of best.pt
    path.write_bytes(content)
    (fault,) = faults(checked(tmp))["checkpoints"]
    assert fault.startswith(f"{path}: damaged")


def test_an_edited_prediction_is_named(tmp: Path) -> None:
    path = tmp / "runs/tiny/eval/test/predictions.csv"
    table = pd.read_csv(path)
    image, before = int(table.loc[4, "id"]), int(table.loc[4, "rank"])
    table.loc[4, "rank"] = before + 1
    table.to_csv(path, index=False)
    found = faults(checked(tmp))
    assert found == {
        "numbers of test": [
            f"predictions.csv: the row of id {image}: rank is {before + 1} in the file, and {before} follows from what "
            "is stored"
        ]
    }


def test_edited_logits_are_named_by_their_image(tmp: Path) -> None:
    path = tmp / "runs/tiny/eval/test/outputs.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    arrays["logits"][7] += np.float32(0.25)  # of all classes: the probabilities stay
    np.savez(path, **arrays)
    (fault,) = faults(checked(tmp, Effort(images=64, steps=0)))["predictions of test"]
    assert fault == f"image {arrays['id'][7]}: logits differ by up to 0.25"


@pytest.mark.parametrize(
    ("key", "number"), [("top1", 0.99), ("brier_low", 0.0), ("n", 19), ("top1_bootstrap_high", True)]
)
def test_an_edited_number_is_named(key: str, number: float, tmp: Path) -> None:
    path = tmp / "runs/tiny/eval/test/metrics.json"
    metrics = json.loads(path.read_text())
    files.write_json(path, {**metrics, key: number})
    assert faults(checked(tmp)) == {
        "numbers of test": [
            f"metrics.json: {key} is {number} in the file, and {metrics[key]} follows from what is stored"
        ]
    }


@pytest.mark.parametrize(
    ("table", "column", "row"),
    [
        ("per_class", "accuracy_low", "class_name"),
        ("coverage", "accuracy", "coverage"),
        ("confusion", 2, "class_name"),
    ],
)
def test_an_edited_table_is_named_with_its_row(table: str, column: str | int, row: str, tmp: Path) -> None:
    path = tmp / f"runs/tiny/eval/test/{table}.csv"
    frame = pd.read_csv(path)
    column = frame.columns[column] if isinstance(column, int) else column
    frame[column] = frame[column].astype(float)
    frame.loc[1, column] = 77.0
    frame.to_csv(path, index=False)
    (fault,) = faults(checked(tmp))["numbers of test"]
    assert fault.startswith(
        f"{table}.csv: the row of {row} {frame.loc[1, row]}: {column} is 77.0 in the file, and "
    )


def test_edited_labels_of_validation_which_fit_the_temperature_are_named(tmp: Path) -> None:
    config, folder = tiny.config(tmp), RunDirectory(tmp / "runs/tiny").evaluation("test")
    before = json.loads(folder.metrics_file.read_text())["temperature"]
    with np.load(folder.validation_file) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    data = prepare.load(config)
    arrays["label"] = arrays["logits"].argmax(axis=1)
    np.savez(folder.validation_file, **arrays)
    results.compute_metrics(folder, data.samples, data.training_rows(config))  # as `report` does
    assert json.loads(folder.metrics_file.read_text())["temperature"] < before
    wrong = arrays["label"] != data.labels[data.rows("val")]
    ids = data.samples["id"].to_numpy()[data.rows("val")][wrong]
    said = f"validation.npz: other labels than in the data for image ids {name_some(ids)}"
    assert faults(checked(tmp)) == {"numbers of test": [said]}
    np.savez(folder.validation_file, **{name: rows[1:] for name, rows in arrays.items()})
    assert "validation.npz: holds other images than the val split" in faults(checked(tmp))["numbers of test"]


@pytest.mark.parametrize(
    ("key", "value", "about", "said"),
    [
        ("epoch", 1, "checkpoints", "eval/test/metrics.json: epoch is 1, and 3 in best.pt"),
        ("step", 5, "checkpoints", "eval/test/metrics.json: step is 5, and 15 in best.pt"),
        (
            "classes",
            7,
            "numbers of test",
            "metrics.json: classes is 7 in the file, and 6 follows from what is stored",
        ),
        (
            "split",
            "val",
            "numbers of test",
            "metrics.json: split is val in the file, and test follows from what is stored",
        ),
    ],
)
def test_an_edited_origin_of_the_numbers_is_named(
    key: str, value: Any, about: str, said: str, tmp: Path
) -> None:
    path = tmp / "runs/tiny/eval/test/metrics.json"
    files.write_json(path, {**json.loads(path.read_text()), key: value})
    assert faults(checked(tmp)) == {about: [said]}


@pytest.mark.parametrize("named", ["last.pt", "step-0000005.pt"])
def test_a_confirmatory_reading_is_of_the_registered_checkpoint(named: str, tmp: Path) -> None:
    run = RunDirectory(tmp / "runs/tiny")
    path, checkpoint = run.evaluation("test").metrics_file, run.checkpoints / named
    if not checkpoint.exists():
        shutil.copyfile(run.checkpoint("best"), checkpoint)
    about = {"checkpoint": str(checkpoint), "checkpoint_sha256": files.digest_of_file(checkpoint)}
    files.write_json(path, {**json.loads(path.read_text()), **about})
    (fault,) = faults(checked(tmp))["registration"]
    name = "last" if named == "last.pt" else str(checkpoint)
    assert (
        fault
        == f"its configuration is not that of arm tiny: eval.checkpoint {name} instead of best (1 in all)"
    )


def test_an_edited_record_of_the_log_is_named(tmp: Path) -> None:
    path = tmp / "runs/tiny/log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (step,) = [line for line in lines if line["kind"] == "step"]
    before, step["loss"] = step["loss"], 1.25
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = faults(checked(tmp, Effort(images=0, steps=10)))
    assert found == {
        "log": ["log.jsonl: has changed since eval/test was predicted"],
        "training": [
            f"log.jsonl, the record 'step' of step 10: loss is 1.25, and {before} when the steps are taken again"
        ],
    }


def test_a_record_that_was_taken_out_is_missed(tmp: Path) -> None:
    path = tmp / "runs/tiny/log.jsonl"
    kept = [line for line in path.read_text().splitlines(True) if json.loads(line)["step"] != 5]
    path.write_text("".join(kept))
    found = faults(checked(tmp, Effort(images=0, steps=10)))
    assert found["training"] == ["log.jsonl, the record 'epoch' of step 5: is missing"]


def test_the_validation_of_the_best_checkpoint_is_that_of_the_log(tmp: Path) -> None:
    path = tmp / "runs/tiny/log.jsonl"
    best = RunDirectory(tmp / "runs/tiny").read_log().best()
    assert best is not None
    path.write_text(path.read_text().replace(f'"val_loss": {best["val_loss"]}', '"val_loss": 0.125'))
    found = faults(checked(tmp))["log"]
    place = f"log.jsonl, the record 'epoch' of step {best['step']}"
    assert f"{place}: val_loss is 0.125, and {best['val_loss']} in best.pt" in found


def test_a_log_that_only_grew_is_the_one_that_was_recorded(tmp: Path) -> None:
    path = tmp / "runs/tiny/log.jsonl"
    *_, last = path.read_text().splitlines(True)
    path.write_text(path.read_text() + last.replace('"step": 15', '"step": 16').replace('"val_top1"', '"x"'))
    assert checked(tmp)["log"]["result"] == "holds"


def test_another_byte_of_a_stored_picture_is_named_with_its_image_and_what_it_changes(tmp: Path) -> None:
    more = tiny.own_data(tmp)
    config = tiny.config(tmp, more)
    data = prepare.load(config)
    row = data.rows("test")[3]
    image = int(data.samples["id"].iloc[row])
    store = prepare.output_paths(config)[1]
    index = pd.read_csv(store / "index.csv").set_index("id").loc[image]
    middle = int(index["offset"] + 3 * (20 * index["store_width"] + 20))
    with (store / "pixels.bin").open("r+b") as stream:
        stream.seek(middle)
        byte = stream.read(1)[0]
        stream.seek(middle)
        stream.write(bytes([byte ^ 0x80]))
    found = faults(checked(tmp, Effort(images=64, steps=0), more))
    assert found["data"] == [
        f"{store.name}: pixels.bin has other content than it was made with",
        f"{store.name}: other pictures than their files give, for image ids {image} (1 in all)",
    ]
    (fault,) = found["predictions of test"]
    assert fault.startswith(f"image {image}: logits differ by up to ")


def test_another_file_of_a_picture_is_named(tmp: Path) -> None:
    more = tiny.own_data(tmp)
    config = tiny.config(tmp, more)
    data = prepare.load(config)
    one, other = data.samples.iloc[data.rows("test")[:2]].itertuples()
    (file,), (another,) = (list((tmp / "data").rglob(f"raw/**/{sample.path}")) for sample in (one, other))
    shutil.copyfile(another, file)
    found = faults(checked(tmp, Effort(images=64, steps=0), more))
    assert found == {"pictures": [f"image {one.id}: its file gives another picture than the store has"]}


def test_data_that_were_made_anew_otherwise_are_other_data(tmp: Path) -> None:
    path = tmp / "runs/tiny/environment.json"
    about = json.loads(path.read_text())
    files.write_json(path, {**about, "pictures": "0", "samples": "1"})
    assert faults(checked(tmp)) == {
        "data": [
            "environment.json: names another sample table (images, labels, splits) than the one that is here",
            "environment.json: names other stored pictures than those that are here",
        ]
    }


def test_an_edited_configuration_is_named(tmp: Path) -> None:
    path = tmp / "runs/tiny/config.yaml"
    path.write_text(path.read_text().replace("lr: 0.02", "lr: 0.03"))
    assert faults(checked(tmp))["configuration"] == ["config.yaml: optim.lr is 0.03, and 0.02 in last.pt"]


def test_an_edited_registration_and_a_shortened_list_of_readings_are_named(tmp: Path) -> None:
    run = tmp / "runs/tiny"
    path = run / "registration.json"
    path.write_text(path.read_text().replace('"top1"', '"nll"'))
    (run / "test_reads.jsonl").write_text("")
    found = faults(checked(tmp))
    assert found["registration"][0].startswith(f"{path}: has been edited since it was written")
    assert found["readings of test"] == ["test_reads.jsonl: lists 0, and metrics.json counts 1"]


def test_a_second_reading_that_is_called_confirmatory_is_found_out(tmp: Path) -> None:
    run = tmp / "runs/tiny"
    path = run / "eval/test/metrics.json"
    protocol = json.loads(path.read_text())["protocol"]
    assert tiny.do("eval", tmp) == 0
    claim = checked(tmp)["registration"]
    assert claim["result"] == "not checked"
    assert claim["found"][0].startswith("the evaluation is exploratory: the run has read test before")
    files.write_json(path, {**json.loads(path.read_text()), "protocol": protocol})
    assert faults(checked(tmp))["registration"] == [
        "test_reads.jsonl: lists another reading than one that is confirmatory"
    ]


def test_what_a_confirmatory_evaluation_departs_in_is_named(tmp: Path) -> None:
    for place, changed in (
        ("environment.json", {"code_sha256": "0"}),
        ("eval/test/environment.json", {"samples": "0"}),
    ):
        path = tmp / "runs/tiny" / place
        files.write_json(path, {**json.loads(path.read_text()), **changed})
    table, code = faults(checked(tmp))["registration"]
    assert table == "its sample table (images, labels, splits) is not the registered one"
    assert code.startswith("it is trained by other code than was registered (")


@pytest.mark.parametrize(
    "protocol", [None, "confirmatory", {"status": "confirmatory"}, {"status": 1, "reasons": []}]
)
def test_a_damaged_protocol_is_named(protocol: Any, tmp: Path) -> None:
    path = tmp / "runs/tiny/eval/test/metrics.json"
    files.write_json(path, {**json.loads(path.read_text()), "protocol": protocol})
    (fault,) = faults(checked(tmp))["registration"]
    assert fault.startswith("metrics.json: protocol: ")


def test_another_file_of_first_weights_is_named(tmp: Path) -> None:
    path, weights = tmp / "runs/tiny/environment.json", tmp / "weights.pth"
    weights.write_bytes(b"weights")
    about = json.loads(path.read_text())
    about["weights"] = {"source": str(weights), "sha256": files.digest_of_file(weights)}
    files.write_json(path, about)
    more = "model.pretrained=true", f"model.weights={weights}"
    assert checked(tmp, DIGESTS_ALONE, *more)["first weights"]["result"] == "holds"
    weights.write_bytes(b"others")
    assert faults(checked(tmp, DIGESTS_ALONE, *more))["first weights"] == [
        f"{weights}: is not the file that training began with"
    ]


def test_first_weights_of_a_package_are_compared_with_its_file(tmp: Path) -> None:
    more = "model.name=tf_efficientnet_lite0", "model.pretrained=true", "model.weights=package"
    _, origin = build_model(tiny.config(tmp, *more).model, 6)
    path = tmp / "runs/tiny/environment.json"
    about = json.loads(path.read_text()) | {"weights": origin}
    files.write_json(path, about)
    assert recorded.check_weights(RunDirectory(path.parent), tiny.config(tmp, *more)).result == "holds"
    files.write_json(path, about | {"weights": {**origin, "sha256": "0"}})
    assert recorded.check_weights(RunDirectory(path.parent), tiny.config(tmp, *more)).result == "fails"


def test_without_the_data_the_rest_is_checked_and_the_reason_said(tmp: Path) -> None:
    claims = checked(tmp, Effort(), f"data.root={tmp / 'nowhere'}")
    assert claims["data"]["result"] == "not checked"
    assert "name their place with data.root" in claims["data"]["found"][0]
    assert claims["checkpoints"]["result"] == "holds"
    assert not faults(claims)


def test_what_is_gone_is_not_checked_and_a_log_that_is_gone_is_missed(tmp: Path) -> None:
    run = tmp / "runs/tiny"
    (run / "eval/test/outputs.npz").unlink()
    (run / "log.jsonl").unlink()
    claims = checked(tmp, Effort())
    assert faults(claims)["log"][0] == "log.jsonl: missing"
    for about in ("numbers of test", "predictions of test", "training"):
        assert claims[about]["result"] == "not checked"


def test_other_code_promises_no_bits_and_says_so(tmp: Path) -> None:
    for place in ("environment.json", "eval/test/environment.json"):
        path = tmp / "runs/tiny" / place
        files.write_json(path, {**json.loads(path.read_text()), "code_sha256": "0"})
    claims = checked(tmp, Effort())
    assert claims["training"]["found"] == [
        "steps 1 to 10, taken again, have the losses of log.jsonl: within 2%, with other code"
    ]
    assert claims["predictions of test"]["found"][0].endswith(", with other code")


def test_a_run_of_the_first_version_is_checked_as_far_as_it_says(tmp_path: Path) -> None:
    shutil.copytree("tests/fixtures/run_of_0.1", tmp_path / "runs/tiny")
    config = load_config(
        tmp_path / "runs/tiny/config.yaml",
        [f"run.root={tmp_path / 'runs'}", "run.name=tiny", f"data.root={tmp_path}"],
    )
    result = verify(config, Effort())
    assert result["holds"]
    assert {"registration", "readings of test", "data", "training"} <= set(result["not_checked"])


def test_a_run_that_trains_is_not_verified(tmp: Path) -> None:
    with (
        status.running(tmp / "runs/tiny/status.json"),
        pytest.raises(CheckpointError, match="is being trained, and changes; verify it when that is over"),
    ):
        verify(tiny.config(tmp), DIGESTS_ALONE)


@pytest.mark.parametrize("name", ["load_model", "predict_rows"])
def test_a_machine_without_enough_memory_says_nothing_of_the_predictions(
    name: str, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("eval.batch_size: memory does not suffice")

    monkeypatch.setattr(load_model if name == "load_model" else predict, name, refuse)
    claim = checked(tmp, Effort(images=1, steps=0))["predictions of test"]
    assert (claim["result"], claim["found"]) == ("not checked", ["eval.batch_size: memory does not suffice"])


EVERY_STEP = ["tracking.log_every_steps=1", "train.keep_checkpoints=3"]


def taken_again(tmp: Path, *more: str) -> tuple[str, list[str]]:
    """What became of the claim about the first steps of a run."""
    claim = checked(tmp, Effort(images=0, steps=15), *more)["training"]
    return claim["result"], claim["found"]


def test_the_steps_of_a_run_that_was_killed_or_goes_back_hold(birds: Path, tmp_path: Path) -> None:
    with pytest.raises(tiny.EndOfPower):
        train(tiny.config(tmp_path, *EVERY_STEP), tiny.EndOfPower(7))
    assert tiny.do("train", tmp_path, *EVERY_STEP) == 0
    assert taken_again(tmp_path, *EVERY_STEP)[0] == "holds"
    back = tiny.checkpoints(tmp_path) / "step-0000010.pt"
    assert tiny.do("train", tmp_path, *EVERY_STEP, f"train.resume={back}") == 0
    assert taken_again(tmp_path, *EVERY_STEP)[0] == "holds"


def test_steps_of_other_settings_or_of_another_run_are_not_checked(birds: Path, tmp_path: Path) -> None:
    """In a folder that held another training."""
    assert tiny.do("train", tmp_path, *EVERY_STEP, "train.epochs=2") == 0
    assert tiny.do("train", tmp_path, *EVERY_STEP, "train.resume_force=true") == 0
    result, (why,) = taken_again(tmp_path, *EVERY_STEP)
    assert result == "not checked"
    assert why.startswith("steps up to 10 were taken with another train.epochs (1 in all)")
    assert tiny.do("train", tmp_path, *EVERY_STEP, "run.name=a", "train.max_steps=10") == 0
    path = tiny.checkpoints(tmp_path, "a") / "last.pt"
    assert tiny.do("train", tmp_path, *EVERY_STEP, f"train.resume={path}") == 0
    said = [f"the log has no steps up to 10: the run went on from {path}"]
    assert taken_again(tmp_path, *EVERY_STEP) == ("not checked", said)
