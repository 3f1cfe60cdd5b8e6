"""The audit finds what was planted: wrong labels among neighbours, near-copies among pictures."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.audit import audit, decisions, duplicates, label_errors
from pipeline.config.data import DataConfig
from pipeline.data import prepare
from tests.helpers import tiny

PLANTED = [
    "data.synthetic={species: 6, images_per_species: 20, train_per_species: 12, flipped_labels: 0.05, duplicates: 0.1}",
    "data.synthetic.long_side_px=128",
    "data.resize_px=96",
    "run.name=planted",
]


def samples(labels_: np.ndarray, split: str = "train") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": np.arange(len(labels_)) + 1,
            "path": [f"{number}.jpg" for number in range(len(labels_))],
            "split": split,
            "label": labels_,
            "class_name": [f"bird {label}" for label in labels_],
        }
    )


def clusters(
    classes: int = 10, images: int = 40, spread: float = 0.45, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [n, 32] around a centre for each class, and the labels."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), images)
    centres = random.normal(size=(classes, 32))
    return (centres[truth] + spread * random.normal(size=(len(truth), 32))).astype(np.float32), truth


def test_nine_of_ten_flipped_labels_are_found_and_little_else() -> None:
    features, truth = clusters()
    random = np.random.default_rng(1)
    flipped = random.choice(len(truth), 40, replace=False)
    listed = truth.copy()
    listed[flipped] = (truth[flipped] + random.integers(1, 10, 40)) % 10
    errors = label_errors.likely_errors(samples(listed), features)
    hit = set(errors["id"] - 1) & set(flipped)
    assert len(hit) >= 0.9 * 40
    assert len(hit) >= 0.9 * len(errors)
    assert errors["score"].is_monotonic_increasing
    right = errors[(errors["id"] - 1).isin(flipped)]
    assert (right["suggested_name"] == [f"bird {truth[number - 1]}" for number in right["id"]]).mean() > 0.95
    assert (right["class_name"] == [f"bird {listed[number - 1]}" for number in right["id"]]).all()


def test_a_second_view_by_other_features_lists_fewer_labels_that_are_right() -> None:
    """Each view mistakes other images for their neighbours; a wrong label is one for both."""
    views = [clusters(seed=seed, spread=1.5) for seed in (0, 1)]
    truth = views[0][1]
    flipped = np.random.default_rng(1).choice(len(truth), 20, replace=False)
    listed = truth.copy()
    listed[flipped] = (truth[flipped] + 3) % 10

    def found(*features: np.ndarray) -> tuple[int, int]:
        ids = set(label_errors.likely_errors(samples(listed), *features)["id"] - 1)
        return len(ids & set(flipped)), len(ids - set(flipped))

    alone, both = [found(features) for features, _ in views], found(*(features for features, _ in views))
    assert both[0] >= max(right for right, _ in alone)
    assert both[1] < min(wrong for _, wrong in alone) / 2


def test_an_image_has_no_vote_on_itself() -> None:
    features = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1], [0.01, 1], [0.02, 1]], np.float32)
    listed = np.array([1, 0, 0, 1, 1, 0])  # the first and the last are wrong
    votes = label_errors.neighbour_votes(features, listed, 2)
    assert votes.shape == (6, 2)
    assert votes.sum(axis=1) == pytest.approx(np.ones(6))
    assert votes[0].tolist() == [1, 0]
    assert votes[5].tolist() == [0, 1]


def test_votes_are_squared_shares_of_the_nearest_by_cosine() -> None:
    features, truth = clusters(classes=4, images=30, spread=1.2)
    votes = label_errors.neighbour_votes(features, truth, 4)
    for row in range(0, 120, 13):
        cosine = features @ features[row] / np.linalg.norm(features, axis=1)
        cosine[row] = -np.inf
        nearest = truth[np.argsort(-cosine)[:15]]  # half of 30
        counts = np.bincount(nearest, minlength=4) ** 2
        assert votes[row] == pytest.approx(counts / counts.sum())
    assert (votes.max(axis=1) < 1).any()


def test_pairs_are_near_in_hash_and_in_features(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    bits = random.random((9, duplicates.HASH_BITS)) < 0.5
    features = random.normal(size=(9, 16)).astype(np.float32)
    for copy, original, changed in ((5, 1, 10), (8, 4, 48), (7, 3, 49)):
        bits[copy] = bits[original]
        bits[copy, :changed] ^= True
        features[copy] = 3 * features[original]
    bits[6] = bits[0]  # the same hash and other features
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    pairs = duplicates.pairs(samples(np.zeros(9, int)), bits, features)
    assert pairs[["id_a", "id_b", "hash_distance"]].to_numpy().tolist() == [[2, 6, 10], [5, 9, 48]]
    assert pairs["feature_similarity"].tolist() == pytest.approx([1, 1])


DOUBLES = pd.DataFrame(
    [
        (1, "train", "wren", 2, "test", "wren"),
        (8, "test", "wren", 3, "val", "gull"),
        (4, "test", "owl", 5, "test", "owl"),
        (6, "train", "owl", 7, "train", "owl"),
    ],
    columns=["id_a", "split_a", "class_a", "id_b", "split_b", "class_b"],
).assign(path_a="a.jpg", path_b="b.jpg")


def test_test_images_that_training_has_seen_are_listed_as_decisions_to_leave_them_out() -> None:
    twice = pd.concat([DOUBLES, DOUBLES[:1].assign(id_a=9, split_a="val")], ignore_index=True)
    assert duplicates.leaked(twice).to_dict("records") == [
        {
            "id": 2,
            "path": "b.jpg",
            "decision": "drop",
            "why": "near-duplicate of image 1 of train and image 9 of val",
        },
        {"id": 8, "path": "a.jpg", "decision": "drop", "why": "near-duplicate of image 3 of val"},
    ]
    none = duplicates.leaked(DOUBLES[2:])
    assert (list(none), len(none)) == (["id", "path", "decision", "why"], 0)


def test_the_summary_counts_by_splits() -> None:
    summary = audit.summary(pd.DataFrame({"split": ["test", "train", "test"]}), DOUBLES)
    assert summary == {
        "label_errors": 3,
        "label_errors_by_split": {"test": 2, "train": 1},
        "duplicates": 4,
        "duplicates_by_splits": {"test": 1, "train": 1, "train-test": 1, "val-test": 1},
        "duplicates_of_two_classes": 1,
        "leaked_test_images": 2,
    }


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run over a set with planted faults, audited."""
    tmp = tmp_path_factory.mktemp("audited")
    for verb in ("data", "train", "audit"):
        assert do(verb, tmp) == 0
    return tmp


def keys(tmp: Path) -> list[str]:
    return [f"data.root={tmp / 'data'}", *PLANTED]


def do(verb: str, tmp: Path) -> int:
    return tiny.do(verb, tmp, *keys(tmp))


def test_planted_copies_are_found_with_a_picture_of_each_pair(audited: Path) -> None:
    folder = audited / "runs/planted/eval/test/audit"
    raw = next((audited / "data").glob("synthetic-*-flipped0.05-doubled0.1/raw/CUB_200_2011"))
    truth = [sorted(map(int, line.split())) for line in (raw / "duplicates.txt").read_text().splitlines()]
    pairs = pd.read_csv(folder / "duplicates.csv")
    reported = pairs[["id_a", "id_b"]].to_numpy().tolist()
    assert len(truth) == 12
    assert sum(pair in reported for pair in truth) >= 0.9 * 12
    assert sum(pair in truth for pair in reported) >= 0.8 * len(reported)
    pictures = sorted(path.name for path in (folder / "pairs").iterdir())
    assert pictures == sorted(f"{a}-{b}.jpg" for a, b in reported)
    picture = cv2.imread(str(folder / "pairs" / pictures[0]))
    assert picture is not None and picture.shape[:2] == (256, 512)


def test_the_audit_adds_up_and_is_no_reading_of_test(
    audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = audited / "runs/planted"
    summary = json.loads((folder / "eval/test/audit/summary.json").read_text())
    errors = pd.read_csv(folder / "eval/test/audit/label_errors.csv")
    pairs = pd.read_csv(folder / "eval/test/audit/duplicates.csv")
    assert summary["images"] == 120
    assert summary["label_errors"] == len(errors) == sum(summary["label_errors_by_split"].values())
    assert summary["duplicates"] == len(pairs) == sum(summary["duplicates_by_splits"].values())
    assert (errors["class_name"] != errors["suggested_name"]).all()
    assert not (folder / "test_reads.jsonl").exists()
    assert do("audit", audited) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == summary
    assert "features" not in said.err, "the second time they are kept"
    pd.testing.assert_frame_equal(pd.read_csv(folder / "eval/test/audit/duplicates.csv"), pairs)


def test_the_test_images_that_training_has_seen_are_left_out_of_a_second_score(
    audited: Path, tmp_path: Path
) -> None:
    shutil.copytree(audited / "runs", tmp_path / "runs")
    given = [*PLANTED, f"data.root={audited / 'data'}"]
    folder = tmp_path / "runs/planted/eval/test"
    listed = pd.read_csv(folder / "audit/near_duplicates_of_train.csv")
    summary = json.loads((folder / "audit/summary.json").read_text())
    assert len(listed) == summary["leaked_test_images"] > 0
    own = tmp_path / "in_imagenet.csv"  # a list of the user's: ids of images that the first weights have seen
    tested = prepare.load(tiny.config(tmp_path, *given)).samples.query("split == 'test'")["id"].tolist()
    seen = sorted(set(tested) - set(listed["id"]))[:3]
    own.write_text("id,label\n" + "".join(f"{number},drop\n" for number in seen))
    labels = f"eval.labels=[{folder / 'audit/near_duplicates_of_train.csv'}, {own}]"
    assert tiny.do("eval", tmp_path, *given, labels) == 0
    scores = json.loads((folder / "metrics.json").read_text())["label_sets"]
    predicted = pd.read_csv(folder / "predictions.csv").set_index("id")
    for name, ids in (("near_duplicates_of_train", listed["id"]), ("in_imagenet", seen)):
        kept = predicted.drop(index=ids)
        assert (scores[name]["left_out"], scores[name]["n"]) == (len(ids), len(kept))
        assert scores[name]["top1"] == pytest.approx((kept["label"] == kept["predicted"]).mean())


def test_decisions_in_the_audits_table_correct_the_data_and_the_next_audit_keeps_them(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(audited, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs/planted/eval/test/audit"
    errors = pd.read_csv(folder / "label_errors.csv")
    path = folder / "corrections.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(table) == [
        *("id", "path", "label", "suggested_label", "score", "decision", "who", "when", "why")
    ]
    assert table["id"].astype(int).tolist() == errors["id"].tolist()
    assert table["label"].tolist() == errors["class_name"].tolist()
    assert table["suggested_label"].tolist() == errors["suggested_name"].tolist()
    assert (table["decision"] == "").all()
    assert tiny.do("data", tmp_path, *keys(tmp_path), f"data.corrections={path}") == 0
    assert "decides nothing" in capsys.readouterr().err
    assert len(table) >= 3
    table.loc[0, ["decision", "who", "when", "why"]] = [table["suggested_label"][0], "Ann", "today", "a, b"]
    table.loc[1, "decision"] = "drop"
    table.loc[2, "why"] = "not sure"
    other = next(number for number in range(1, 121) if number not in set(errors["id"]))
    table.loc[len(table)] = [str(other), "", "", "", "", "drop", "", "", "seen by chance"]
    table = table.assign(note="")
    table.loc[0, "note"] = "=mine"
    table.to_csv(path, index=False)
    assert tiny.do("audit", tmp_path, *keys(tmp_path)) == 0
    again = pd.read_csv(path, dtype=str, keep_default_na=False)
    filled = ["id", "decision", "who", "when", "why", "note"]
    pd.testing.assert_frame_equal(again[filled], table[filled])
    assert again["label"].iloc[-1] != ""
    capsys.readouterr()
    assert tiny.do("data", tmp_path, *keys(tmp_path), f"data.corrections={path}") == 0
    assert "1 relabelled, 2 dropped by" in capsys.readouterr().err
    config = tiny.config(tmp_path, *keys(tmp_path), f"data.corrections={path}")
    samples = prepare.load(config).samples.set_index("id")
    assert samples.loc[errors["id"][0], "class_name"] == errors["suggested_name"][0]
    assert {errors["id"][1], other}.isdisjoint(samples.index)
    assert len(samples) == 118


def test_features_that_probe_has_kept_vote_too(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(audited / "runs", tmp_path / "runs")
    root = f"data.root={audited / 'data'}"

    def audit_again(*more: str) -> tuple[dict[str, object], pd.DataFrame]:
        assert tiny.do("audit", tmp_path, *PLANTED, root, *more) == 0
        table = pd.read_csv(tmp_path / "runs/planted/eval/test/audit/label_errors.csv")
        return json.loads(capsys.readouterr().out.splitlines()[-1]), table

    assert tiny.do("probe", tmp_path, *PLANTED, root) == 0
    alone, listed = audit_again()
    assert "probe_weights" not in alone, "random weights know nothing"
    path = tmp_path / "runs/planted/probe/probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "some.pth"}))
    both, listed_by_both = audit_again()
    assert both["probe_weights"] == "some.pth" and both["duplicates"] == alone["duplicates"]
    assert not listed_by_both.equals(listed)
    with np.load(path.parent / "features.npz") as kept:
        cache = dict(kept)
    np.savez(path.parent / "features.npz", **cache | {"crops": np.array("others")})
    assert audit_again()[0] == alone


def test_decisions_that_cannot_be_read_are_said_before_the_work_and_kept(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(audited, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs/planted/eval/test/audit/corrections.csv"
    path.write_text("id,decision\n7,x\n7,y\n")
    assert tiny.do("audit", tmp_path, *keys(tmp_path)) == 2
    assert "more than one decision for image ids 7" in capsys.readouterr().err
    assert path.read_text() == "id,decision\n7,x\n7,y\n"


def test_an_audit_of_corrected_data_begins_with_their_decisions(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,label,who\n1,bird 1,Ann\n3,drop,\n5,bird 0,\n")
    data = DataConfig(corrections=tmp_path / "d.csv")
    rows = samples(np.array([0, 1, 1])).assign(id=[1, 2, 5])
    errors = rows.iloc[:2].assign(suggested_name="bird 2", score=[0.25, 0.5])
    before = decisions.earlier(tmp_path / "corrections.csv", data)
    table = decisions.to_decide(errors, rows, before)
    assert table[["id", "label", "score", "decision", "who"]].to_numpy().tolist() == [
        [1, "bird 0", 0.25, "bird 1", "Ann"],
        [2, "bird 1", 0.5, "", ""],
        [3, "", "", "drop", ""],
        [5, "bird 1", "", "bird 0", ""],
    ]


def test_features_that_are_not_finite_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("eval"))
    path = tmp_path / "runs/tiny/checkpoints/best.pt"
    content = torch.load(path, weights_only=True)
    for name in ("running_var", "weight"):
        content["model"][f"backbone.layer4.0.bn2.{name}"][0] = float("nan")
    torch.save(content, path)
    assert tiny.do("audit", tmp_path) == 2
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs/tiny/eval/features").exists()
    assert not (tmp_path / "runs/tiny/eval/test").exists()
