import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data import prepare, sample_table
from pipeline.evaluation import results, screen
from pipeline.explain import explain, grad_cam, neighbours
from pipeline.report import content, figures, page_values
from pipeline.report.page_values import data_uri
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log
from tests.helpers import tiny
from tests.helpers.folders import digests

MORE = ["data.resize_px=96", "data.image_px=96", "report.pairs=3", "report.gallery=4"]


@pytest.fixture(scope="module")
def reported(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run at 96 px, barely trained, with its report: tests copy it to change it."""
    tmp = tmp_path_factory.mktemp("reported")
    for verb in ("data", "train"):
        assert tiny.do(verb, tmp, *MORE) == 0
    assert tiny.do("eval", tmp, *MORE, "report.write=true") == 0
    return tmp


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    shutil.copytree(reported / "runs", tmp_path / "runs")
    for place in ("config.yaml", "environment.json", "eval/test/metrics.json"):
        path = tmp_path / "runs/tiny" / place
        path.write_text(path.read_text().replace(str(reported), str(tmp_path)))
    return tmp_path


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " " if tag in ("td", "th", "br", "p", "dd", "small") else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def folder_of(tmp: Path) -> Path:
    return tmp / "runs/tiny/eval/test"


def page_of(tmp: Path) -> Page:
    return Page((folder_of(tmp) / "report.html").read_text())


def words_of(tmp: Path) -> str:
    """The text of the page, all white space alike."""
    return " ".join(page_of(tmp).text.split())


def test_the_page_says_what_the_tables_say(reported: Path) -> None:
    folder, page = folder_of(reported), page_of(reported)
    numbers = json.loads((folder / "metrics.json").read_text())
    words = words_of(reported)
    low, high = 100 * numbers["top1_low"], 100 * numbers["top1_high"]
    assert f"95 % interval (Wilson) {low:.1f} to {high:.1f} %" in words
    assert f"{round(numbers['top1'] * 18)} of 18 images are named correctly" in words
    assert "has read the test split 1 time." in words
    assert "How these numbers were made Protocol Exploratory: no registration was found in" in words
    data = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "report.html").read_text(), re.S)[1])
    counts = pd.read_csv(folder / "confusion.csv", index_col="class_name").to_numpy()
    rebuilt = np.zeros_like(counts)
    for true, predicted, count in data["cells"]:
        rebuilt[true, predicted] = count
    assert (rebuilt == counts).all()
    assert len(data["points"]) == 18
    assert sorted(data["order"]) == list(range(6))
    pairs = pd.read_csv(folder / "confused_pairs.csv").head(3)
    for position, pair in enumerate(pairs.itertuples()):
        assert {"id": f"pair-{position}"} in page.all("details")
        assert page_values.readable(pair.class_a) in words
    game = pd.read_csv(folder / "explain/pointing_game.csv")
    assert f"all 18 {100 * game['rate'][0]:.1f} %" in words
    assert "What tells them apart" in words


def test_the_page_asks_for_nothing_and_every_picture_has_its_words(reported: Path) -> None:
    page, text = page_of(reported), (folder_of(reported) / "report.html").read_text()
    assert "http://" not in re.sub(r"http://www\.w3\.org/[\w/]*", "", text)
    assert "https://" not in text
    pictures = page.all("img")
    assert len(pictures) > 20
    assert all(picture["src"].startswith("data:image/webp;base64,") for picture in pictures)
    assert all("alt" in picture for picture in pictures)
    assert not [one for tag in ("link", "iframe", "object") for one in page.all(tag)]
    assert not any("src" in script for script in page.all("script"))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert set(targets) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]


def test_report_is_rebuilt_from_stored_files_alone(
    reported: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(run)
    before = (folder / "report.html").read_text().replace(str(reported), str(run))
    reads = (run / "runs/tiny/test_reads.jsonl").read_text()
    (folder / "report.html").unlink()
    shutil.rmtree(run / "runs/tiny/checkpoints")
    monkeypatch.setattr("torch.nn.Module.__call__", lambda *_: pytest.fail("a model was run"))
    assert tiny.do("report", run, *MORE) == 0
    assert (folder / "report.html").read_text() == before
    assert (run / "runs/tiny/test_reads.jsonl").read_text() == reads
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["report"] == str(folder / "report.html")
    assert said["size_bytes"] == (folder / "report.html").stat().st_size


def test_without_its_checkpoint_the_page_says_what_is_left_out(run: Path) -> None:
    folder = folder_of(run)
    shutil.rmtree(folder / "explain")
    last = run / "runs/tiny/checkpoints/best.pt"
    last.write_bytes(last.read_bytes() + b"trained on")
    assert tiny.do("report", run, *MORE) == 0
    words = words_of(run)
    assert "There are no heat maps: the checkpoint of these predictions (best.pt of epoch" in words
    assert "There are no nearest training images" in words
    assert "Peak in the box" not in words
    assert "recall@1" in words


def test_what_depends_on_the_predictions_is_computed_anew_when_they_change(run: Path) -> None:
    def stamps() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder_of(run) / "explain").glob("*.json")}

    before = stamps()
    assert tiny.do("report", run, *MORE) == 0
    assert stamps() == before
    assert tiny.do("eval", run, *MORE, "eval.tta=flip", "report.write=true") == 0
    changed = {name for name, time in stamps().items() if time != before[name]}
    assert {"heatmaps.npz.stamp.json", "nearest.csv.stamp.json", "embedding.csv.stamp.json"} <= changed


@pytest.mark.parametrize("damage", ["empty", "half", "other"])
def test_damaged_explanations_and_tables_are_made_anew(reported: Path, run: Path, damage: str) -> None:
    folder = folder_of(run)
    before = digests(folder)
    page = (folder / "report.html").read_text().replace(str(reported), str(run))
    originals = {"predictions.csv", "outputs.npz", "validation.npz", "metrics.json", "environment.json"}
    damaged = [path for path in folder.rglob("*") if path.is_file() and path.name not in originals]
    damaged += list((folder.parent / "features").iterdir())
    for path in damaged:
        content = path.read_bytes()
        halves = {"empty": b"", "half": content[: len(content) // 2], "other": b'{"id": [1]}\n'}
        path.write_bytes(halves[damage])
    assert len(damaged) > 12
    assert tiny.do("report", run, *MORE) == 0
    assert (folder / "report.html").read_text() == page
    assert {name for name, digest in digests(folder).items() if digest != before[name]} <= {"report.html"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("label_errors.csv", "id,path,split,class_name,suggested_name\nx,a,b,c,d\n"),
        ("duplicates.csv", "id_a,path_a\n1,x\n"),
        (
            "label_errors.csv",
            "id,path,split,class_name,suggested_name\n1,x,test,a,b\n",
        ),  # and the second row?
    ],
)
def test_a_damaged_audit_is_named(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(run) / "audit"
    folder.mkdir()
    (folder / name).write_text(damage)
    (folder / "summary.json").write_text('{"label_errors": 2, "duplicates": 1}')
    assert tiny.do("report", run, *MORE) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {folder / name}: damaged")
    assert said.endswith("run `audit` again")


def test_classes_without_a_training_image_and_ties_and_an_unfinished_training_are_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(run)
    samples = prepare.load(tiny.config(run, *MORE)).samples
    taught = samples.index[(samples["split"] == "train") & (samples["label"] != 2)].to_numpy()
    monkeypatch.setattr(results, "learned_rows", lambda *_: taught)
    with np.load(folder / "outputs.npz") as outputs:
        stored = dict(outputs)
    guess = stored["logits"][0].argmax()
    stored["logits"][0, -1 if guess < 5 else 5] = stored["logits"][0].max()
    if guess == 5:
        pytest.fail("the first image is predicted as the last class: tie another one")
    np.savez(folder / "outputs.npz", **stored)
    numbers = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**numbers, "training": "stopped"}))
    assert tiny.do("report", run, *MORE) == 0
    words, name = words_of(run), page_values.readable(sample_table.class_names(samples)[2])
    assert (
        f"Without a training image, and therefore never taught: {name}. What the network says of this class"
        in words
    )
    assert "1 image has several classes in first place; the lowest label counts." in words
    assert "The training had not finished when this was predicted (stopped)" in words
    capsys.readouterr()
    screen.show(RunDirectory(run / "runs/tiny").evaluation("test"))
    said = capsys.readouterr().err
    assert f"warning: no training image of {sample_table.class_names(samples)[2]} (1 in all)" in said
    assert "1 images have several classes in first place" in said
    assert "of a training that had not finished (stopped)" in said


def test_a_training_of_one_epoch_has_curves_that_are_seen() -> None:
    epoch = {"kind": "epoch", "step": 5, "epoch": 1, "train_loss": 2.0, "train_top1": 0.1}
    drawn = figures.curves(Log([{**epoch, "val_loss": 2.0, "val_top1": 0.2}]), 1)
    for colour in ("accent", "soft"):
        assert re.search(rf'<use [^>]*style="fill: var\(--{colour}\)', drawn), "a dot"


def test_networks_without_maps_get_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder_of(run) / "explain")
    monkeypatch.setattr(grad_cam, "spatial_layer", lambda *_: None)  # as of a vision transformer
    assert tiny.do("report", run, *MORE) == 0
    words = words_of(run)
    assert "There are no heat maps: test_resnet has no last layer with height and width." in words
    assert "Peak in the box" not in words
    assert "nearest training images" in words


def test_damaged_predictions_are_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder_of(run) / "predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert tiny.do("report", run, *MORE) == 2
    assert "predictions.csv: no prediction for image ids" in capsys.readouterr().err
    assert tiny.do("report", run, *MORE, "eval.split=val") == 2
    assert "missing; run `eval`" in capsys.readouterr().err


def test_an_audit_is_shown_where_there_was_one(run: Path) -> None:
    assert "Data audit" not in page_of(run).text
    folder = folder_of(run) / "audit"
    folder.mkdir()
    predicted = pd.read_csv(folder_of(run) / "predictions.csv")
    (a, b), path = predicted["id"][:2], "x/<b>.jpg"
    (folder / "label_errors.csv").write_text(
        f"id,path,split,class_name,suggested_name,score\n{a},{path},test,001.One_Bird,002.Other_Bird,0.1\n"
    )
    (folder / "duplicates.csv").write_text(
        "id_a,path_a,split_a,class_a,id_b,path_b,split_b,class_b,hash_distance,feature_similarity\n"
        f"{a},{path},train,001.One_Bird,{b},{path},test,002.Other_Bird,3,0.987\n"
    )
    assert tiny.do("report", run, *MORE) == 0
    words = words_of(run)
    assert "Labels that may be wrong: 1" in words
    assert "One Bird (test) looks like Other Bird x/<b>.jpg" in words
    assert "Near-duplicates: 1 pair, 1 across splits" in words
    assert "cosine 0.987" in words


def test_plots_take_their_colours_from_the_page_and_share_no_ids() -> None:
    epochs = [
        {"kind": "epoch", "step": 5, "epoch": 1, "train_loss": 2.0, "train_top1": 0.1},
        {"kind": "phase", "step": 6, "epoch": 1.0, "phase": "adam"},
        {"kind": "epoch", "step": 10, "epoch": 2, "train_loss": 1.0, "train_top1": 0.5},
    ]
    bins = pd.DataFrame({"n": [0, 4], "confidence": [np.nan, 0.8], "accuracy": [np.nan, 0.75]})
    curve = pd.DataFrame({"coverage": [0.5, 1.0], "accuracy": [0.9, 0.8], "threshold": [0.7, 0.1]})
    drawn = [figures.curves(Log(epochs), 2), figures.reliability(bins), figures.coverage(curve)]
    text = "".join(drawn)
    assert "var(--accent)" in text
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", text)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= set(ids)
    assert [one.count("<svg ") for one in drawn] == [2, 1, 1]
    assert "validation" not in drawn[0]
    assert drawn[0].count("adam from here") == 2
    assert figures.curves(Log(), 1) == ""


def test_a_picture_survives_its_way_into_the_page(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :15] = 200, 60, 20
    uri = data_uri(picture)
    path = tmp_path / "x.webp"

    path.write_bytes(base64.b64decode(uri.partition(",")[2]))
    again = np.asarray(Image.open(path).convert("RGB"))
    assert again.shape == picture.shape
    assert np.abs(again[10, 5].astype(int) - [200, 60, 20]).max() < 25
    assert again[10, 25].max() < 25


def test_names_and_shares_as_a_reader_sees_them() -> None:
    assert page_values.readable("001.Black_footed_Albatross") == "Black footed Albatross"
    assert page_values.readable("Chuck-will") == "Chuck-will"
    assert page_values.percent(0.8187) == "81.9\N{NO-BREAK SPACE}%"
    assert page_values.percent(float("nan")) == page_values.percent(None) == "–"
    assert page_values.interval(0.788, 0.8467) == "78.8 to 84.7\N{NO-BREAK SPACE}%"


def test_of_many_classes_the_page_has_the_worst_and_the_best_and_the_numbers_of_all(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MANY_CLASSES", 5)
    monkeypatch.setattr(content, "ENDS_SHOWN", 2)
    assert tiny.do("report", run, *MORE) == 0
    page, text = page_of(run), (folder_of(run) / "report.html").read_text()
    classes = pd.read_csv(folder_of(run) / "per_class.csv")
    shown = [int(row["data-label"]) for row in page.all("tr") if "data-label" in row]
    accuracy = classes["accuracy"].iloc[shown].tolist()
    assert len(shown) == 4
    assert accuracy == sorted(accuracy)
    assert accuracy[:2] == sorted(classes["accuracy"])[:2]
    assert accuracy[2:] == sorted(classes["accuracy"])[2:][-2:]
    assert "4 of 6 classes" in words_of(run)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    numbers = pd.DataFrame(data["classes"], columns=content.NUMBERS)
    for name in ("n", "accuracy", "precision", "f1", "train_images", "accuracy_low"):
        assert numbers[name].tolist() == pytest.approx(classes[name].tolist(), abs=5e-5), name
    predicted = pd.read_csv(folder_of(run) / "predictions.csv")
    for label, other in enumerate(numbers["taken_for"]):
        wrong = predicted[(predicted["label"] == label) & (predicted["predicted"] != label)]["predicted"]
        assert (other == -1) == wrong.empty
        assert wrong.empty or (wrong == other).sum() == wrong.value_counts().max()


def test_a_precision_that_does_not_exist_is_neither_0_nor_a_number_of_the_script() -> None:
    nan = float("nan")
    row = {"n": 0, "accuracy": nan, "precision": nan, "f1": nan, "train_images": 3, "taken_for": -1}
    table = pd.DataFrame([row | {"accuracy_low": 0.0, "accuracy_high": 1.0}])
    assert content.class_numbers(table) == [[0, -1, None, -1, 3, -1, 0, 1]]


def test_many_images_are_a_sample_on_the_map_and_in_retrieval_and_the_page_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "MAP_IMAGES", 10)
    monkeypatch.setattr(neighbours, "MANY_IMAGES", 17)
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    shutil.rmtree(folder_of(run) / "explain")
    assert tiny.do("report", run, *MORE) == 0
    text = (folder_of(run) / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["points"]) == 10
    words = words_of(run)
    assert "a dot an image of 10 that were drawn at random" in words
    assert "Retrieval among the test images for 7 of them that were drawn at random" in words


def test_the_page_says_whose_weights_began_the_training_and_under_what_licence(run: Path) -> None:
    assert content.origin(RunDirectory(run / "runs/tiny"), "test_resnet")["weights"] == "random"
    path = run / "runs/tiny/environment.json"
    about = json.loads(path.read_text())
    about["weights"] = {"source": "/home/someone/w.pth", "sha256": "ab", "tensors": 3, "share": 1.0}
    path.write_text(json.dumps(about))
    assert tiny.do("report", run, *MORE) == 0
    assert "The training began with the weights w.pth, whose licence is not known." in words_of(run)
