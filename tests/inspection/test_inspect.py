"""`plumage inspect` finds what was drawn into small pictures, and writes nothing where the pictures are."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.config.load import load_config
from pipeline.data.prepare import Prepared
from pipeline.inspection import findings, measures, page, suggestions, twins
from tests.helpers import own_pictures

PHONE = {"width": 390, "height": 844}


def noise(number: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A picture like no other: large blotches under fine noise, uint8 [H, W, 3]."""
    random = np.random.default_rng(number)
    blotches = cv2.resize(random.integers(60, 200, (8, 8, 3)).astype(np.uint8), (width, height))
    return np.asarray(
        np.clip(blotches.astype(int) + random.integers(-30, 31, blotches.shape), 0, 255), np.uint8
    )


def write(path: Path, pixels: np.ndarray, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training, 2 validation and 4 test pictures of owls and wrens, 80 x 60, with faults planted; birds.csv."""
    birds = tmp_path_factory.mktemp("inspect") / "birds"
    rows = []
    for number in range(18):
        split = "train" if number < 12 else "val" if number < 14 else "test"
        box = (50, 10, 20, 40) if number == 0 else ("", "", "", "")
        rows.append((f"{number}.png", ("owl", "wren")[number % 2], split, *box, ""))
        write(birds / f"{number}.png", noise(number))
    write(birds / "1.png", noise(1) // 12)  # dark
    write(birds / "2.png", cv2.GaussianBlur(noise(2), (0, 0), 8))  # blurred
    write(birds / "3.png", np.full((60, 80, 3), (90, 140, 200), np.uint8))  # empty
    shutil.copy(birds / "4.png", birds / "15.png")  # across splits, of two classes
    write(birds / "6.jpg", noise(6))
    rows[6] = ("6.jpg", *rows[6][1:])
    write(
        birds / "16.jpg", np.rot90(noise(6)), orientation=6
    )  # the same, lying on its side: near, across splits
    rows[16] = ("16.jpg", *rows[16][1:])
    shutil.copy(birds / "8.png", birds / "10.png")  # within train
    columns = ["path", "label", "split", "box_x", "box_y", "box_width", "box_height", "group"]
    table = pd.DataFrame(rows, columns=columns)
    table.loc[[0, 2], "group"] = "nest"
    table.to_csv(birds / "birds.csv", index=False)
    assert own_pictures.do("data", birds.parent, "csv", birds / "birds.csv") == 0
    return birds


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def result(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    before = state(folder)
    assert own_pictures.do("inspect", folder.parent, "csv", folder / "birds.csv") == 0
    assert state(folder) == before
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    return {**json.loads(said.out), "said": said.err}


def test_counts_sizes_and_files(result: dict[str, Any]) -> None:
    assert (result["images"], result["classes"]) == (18, 2)
    assert result["images_by_split"] == {"train": 12, "val": 2, "test": 4}
    assert result["images_a_class"]["train"] == {"least": 6, "median": 6, "most": 6}
    assert result["sizes"]["width"] == {"least": 80, "5 %": 80, "median": 80, "95 %": 80, "most": 80}
    assert result["sizes"]["aspect ratio"]["median"] == 1.3333
    assert result["files"] == {
        "formats": {"PNG": 16, "JPEG": 2},
        "modes": {"RGB": 18},
        "orientation_flags": {"6": 1},
    }
    assert result["groups"] == {"groups": 1, "straddling": []}
    assert "turned by an orientation flag: 1" in result["said"]


def test_twins_within_and_across_splits(result: dict[str, Any]) -> None:
    assert result["exact_duplicates"] == {
        "groups": 2, "images": 4, "groups_across_splits": 1, "groups_of_two_classes": 1
    }  # fmt: skip
    assert result["near_duplicates"] == {
        "groups": 1, "images": 2, "groups_across_splits": 1, "groups_of_two_classes": 0
    }  # fmt: skip
    assert result["leaked_test_images"] == 2
    assert "2 test images have a twin in train or validation" in result["said"]


def test_the_dark_the_blurred_and_the_empty_one_are_the_first_candidates(result: dict[str, Any]) -> None:
    found = result["candidates"]
    assert found["darkest"][0] == "1.png"
    assert found["most of one colour"][0] == "3.png"
    assert set(found["least sharp"][:3]) == {
        "1.png",
        "2.png",
        "3.png",
    }  # the dark and the empty one have few edges


def test_the_box_that_the_crop_cuts(result: dict[str, Any]) -> None:
    """Squashed to 20 x 20 the box is 12.5..17.5 by 3.3..16.7, and the middle crop of 16 px is 2..18: whole.

    With the aspect ratio kept it is 27 x 20 px, and a crop of 15 in the middle of it is 6..21 by 2.5..17.5.
    The box is 16.875..23.625 by 3.3..16.7: 4.125 of 6.75 is left.
    """
    kept = {(row["resize"], row["crop"], row["crop_px"]): row for row in result["cuts"]}
    assert kept["squash", "centre", 16]["box"] == 1
    assert kept["squash", "centre", 16]["picture"] == 0.64
    narrow = kept["short_side", "centre", 15]
    assert narrow["box"] == narrow["box_least"] == pytest.approx(4.125 / 6.75, abs=1e-6)
    assert narrow["boxes_below_half"] == 0
    assert narrow["picture"] == pytest.approx(15 * 15 / (27 * 20), abs=1e-6)
    assert kept["squash", "random_resized", 16]["picture_least"] is None
    assert result["cuts"][0]["crop_px"] == 16


def test_a_folder_that_is_away_leaves_its_files_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "birds"
    folder.rename(elsewhere)
    try:
        assert own_pictures.do("inspect", folder.parent, "csv", folder / "birds.csv") == 0
    finally:
        elsewhere.rename(folder)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["files"] is None
    assert found["exact_duplicates"] is None
    assert found["near_duplicates"]["groups"] == 3  # equal files are alike, too
    assert "the folder of the pictures is not there now" in said.err


def test_data_that_were_not_prepared_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    assert own_pictures.do("inspect", tmp_path, "csv", folder / "birds.csv") == 2
    assert not [*tmp_path.rglob("*.html")]


def test_only_training_images_choose(folder: Path) -> None:
    config = load_config(None, ["train.device=cpu"])
    table = pd.DataFrame(
        {"split": ["train"] * 40 + ["test"] * 40, "label": [0, 1] * 40, "width": 150, "height": 170}
    )
    other = table.copy()
    other.loc[40:, ["width", "height", "label"]] = (2000, 1000, 0)
    assert suggestions.suggest(table, config) == suggestions.suggest(other, config)
    other.loc[:39, ["width", "height"]] = (200, 210)
    assert suggestions.suggest(other, config)[0].value == 192


def test_suggestions_by_their_rules() -> None:
    sizes = pd.DataFrame({"width": [500, 375, 20], "height": [375, 500, 400]})
    assert [suggestions.image_size(sizes, kind)[0] for kind in ("cuda", "cpu")] == [352, 224]
    assert suggestions.image_size(sizes.tail(1), "cpu")[0] == 32
    much = 2**40
    assert [suggestions.batch_size_for(images, 448, "cuda", much)[0] for images in (100_000, 700, 10)] == [
        64,
        32,
        8,
    ]
    # 0.17 GiB an image at 448 px in bf16, twice that in float32, of 85 % of what is free
    assert suggestions.batch_size_for(10**6, 448, "cuda", int(0.17 * 33 / 0.85 * 2**30))[0] == 32
    assert suggestions.batch_size_for(10**6, 448, "cpu", int(0.17 * 33 / 0.85 * 2**30))[0] == 16
    assert suggestions.batch_size_for(10**6, 224, "cpu", int(0.17 * 33 / 0.85 * 2**30))[0] == 64
    keys = [one.key for one in suggestions.for_classes(pd.Series([5, 6, 30]))]
    assert keys == ["optim.frozen_stages", "data.sampler"]
    assert suggestions.for_classes(pd.Series([10, 49])) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("source", ["cub200", "digits"])
def test_the_suggested_recipe_is_there(device: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestions, "device", lambda _train: torch.device(device))
    monkeypatch.setattr(suggestions.hardware, "free_bytes", lambda _device: 2**36)
    table = pd.DataFrame({"split": "train", "label": [0, 1], "width": 1000, "height": 1000})
    found = suggestions.as_mapping(suggestions.suggest(table, load_config(None, [f"data.source={source}"])))
    assert (Path(__file__).parents[2] / str(found["recipe"])).is_file()
    assert found["data.image_px"] == {"cpu": 224, "cuda": 448}[device]
    assert found["data.resize_px"] == {"cpu": 256, "cuda": 512}[device]


def test_groups_that_straddle_are_named() -> None:
    table = pd.DataFrame(
        {"group": ["nest 1", "nest 1", "nest 2", "", ""], "split": ["train", "test", *["train"] * 2, "val"]}
    )
    assert twins.straddling(table) == {"groups": 2, "straddling": ["nest 1"]}
    assert twins.straddling(table[["split"]]) is None


def test_a_chain_of_close_hashes_is_one_group_and_empty_pictures_are_none() -> None:
    random = np.random.default_rng(0)
    hashes = random.random((6, 256)) < 0.5
    hashes[1], hashes[2] = hashes[0], hashes[0]
    hashes[1, :40] ^= True
    hashes[2, :80] ^= True  # 40 bits from the second, 80 from the first
    hashes[4] = hashes[5]
    table = pd.DataFrame({"split": ["train", "train", "test", "val", "train", "test"], "label": 0})
    one_colour = np.array([0, 0, 0, 0, 1, 1.0])
    assert twins.near(table, hashes, one_colour, [""] * 6) == [twins.Twins((0, 1, 2), 2, 1, 40)]
    assert twins.near(table, hashes, one_colour * 0, ["a", "b", "c", "d", "e", "e"])[0].rows == (0, 1, 2)
    assert len(twins.near(table, hashes, one_colour * 0, [""] * 6)) == 2


def test_bars_are_one_outline_as_high_as_the_largest() -> None:
    assert page.bars(np.array([4.0, 1.0])) == "M0 100V0.00H50.00V75.00H100.00V100z"
    assert page.histogram(np.full(3, 7.0))["path"].count("V0.00") == 1


class Pictures:
    """Stands in for a store of as many pictures as one likes: a few, again and again."""

    def __init__(self, count: int) -> None:
        self._few, self._count = [noise(number, 64, 64) for number in range(50)], count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> np.ndarray:
        return self._few[row % 50]


@pytest.mark.slow
def test_a_page_of_5000_classes_is_small() -> None:
    n = 10_000
    ids = np.arange(n)
    samples = pd.DataFrame(
        {
            "id": ids, "path": [f"genus {row % 5000}/picture number {row}.jpg" for row in ids], "label": ids % 5000,
            "class_name": [f"Species of some genus {row % 5000}" for row in ids],
            "split": np.where(ids < 5000, "train", "test"), "width": 640, "height": 480,
            "box_x": 0.0, "box_y": 0.0, "box_w": 200.0, "box_h": 300.0,
        }
    )  # fmt: skip
    config = load_config(None, ["train.device=cpu", "data.resize_px=64", "data.image_px=56"])
    values = np.linspace(0, 0.9, n)
    measured = measures.Measures(values, values, values, np.zeros((n, 256), np.bool_))
    exact = twins.exact(samples, [str(row // 2) for row in ids])
    found = findings.Findings(
        config=config,
        data=Prepared(samples, Pictures(n)),  # type: ignore[arg-type]  # a store by its behaviour
        measures=measured,
        files=None,
        exact=exact,
        near=[],
        sizes=findings.size_quantiles(samples),
        cuts=findings.cut_table(samples, config),
        suggested=[],
    )
    text = page.render(found)
    assert text.count('class="whole"') == 5000
    assert len(text.encode()) < 25e6, len(text.encode())


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[] if os.getuid() else ["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_asks_for_nothing_and_a_phone_never_scrolls_sideways(
    result: dict[str, Any], chromium: Any, scheme: str
) -> None:
    context = chromium.new_context(viewport=PHONE, color_scheme=scheme)
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("request", lambda made: asked.append(made.url) if not made.url.startswith("data:") else None)
    address = Path(result["page"]).as_uri()
    opened.goto(address)
    assert (said, asked) == ([], [address])
    assert opened.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    paper = {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 22, 20)"}[scheme]
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    across = opened.locator("#twins h4 .lost", has_text="across splits")
    assert across.count() == 2
    assert opened.locator("#twins img").count() == 6
    assert opened.locator("#files figcaption").inner_text().startswith("owl (test)\nflag 6")
    context.close()
