"""The report in a real browser: Debian's chromium or Chrome, driven by playwright; skipped where there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.report import content
from pipeline.report.content import readable
from tests.helpers import tiny

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def folder(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the tiny birds with its report; a network that is not trained confuses enough of them."""
    tmp = tmp_path_factory.mktemp("browser")
    assert tiny.do("train", tmp) == 0
    assert tiny.do("eval", tmp, "report.write=true", "report.pairs=4") == 0
    return tmp / "runs/tiny/eval/test"


@pytest.fixture
def page(folder: Path, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened; at the end nothing may have been complained of or asked for."""
    context = chromium.new_context(**getattr(request, "param", {}))
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda made: asked.append(made.url) if not made.url.startswith("data:") else None)
    page.goto((folder / "report.html").as_uri())
    yield page
    assert said == []
    assert asked == [(folder / "report.html").as_uri()]
    context.close()


def names(page: Any) -> list[str]:
    return page.locator("#class-table tbody tr:visible th").all_inner_texts()


def test_columns_sort_both_ways_and_say_so(page: Any, folder: Path) -> None:
    classes = pd.read_csv(folder / "per_class.csv")
    accuracy = dict(zip(map(readable, classes["class_name"]), classes["accuracy"], strict=True))
    head = page.locator("#class-table th", has_text="Accuracy")
    assert head.get_attribute("aria-sort") == "none"
    for direction, reverse in (("descending", True), ("ascending", False)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = [accuracy[name] for name in names(page)]
        assert values == sorted(accuracy.values(), reverse=reverse)
        assert len(set(values)) > 1
    button = page.locator("#class-table th", has_text="Class").first.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted(accuracy)
    assert page.locator("#class-table th[aria-sort=ascending]").count() == 1


def test_search_shows_the_classes_that_hold_every_word(page: Any) -> None:
    every = names(page)
    word = every[0].split()[-1].lower()
    page.get_by_label("Find a class").fill(f"  {word} {every[0][:4]}")
    shown = names(page)
    assert shown == [name for name in every if word in name.lower() and every[0][:4].lower() in name.lower()]
    assert 0 < len(shown) < len(every)
    assert page.locator("#class-count").inner_text() == f"{len(shown)} of {len(every)} classes"
    page.get_by_label("Find a class").fill("no such bird")
    assert names(page) == []
    page.get_by_label("Find a class").fill("")
    assert names(page) == every


def test_a_pair_opens_by_its_link_and_by_the_keyboard(page: Any, folder: Path) -> None:
    first = pd.read_csv(folder / "confused_pairs.csv").iloc[0]
    pair = page.locator("#pair-0")
    heading = pair.get_by_role("heading", name=readable(first["class_a"]), exact=True)
    assert not heading.first.is_visible()
    pair.locator("summary").focus()
    page.keyboard.press("Enter")
    assert heading.first.is_visible()
    assert pair.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.evaluate("location.hash = '#pair-1'")
    page.locator("#pair-1[open]").wait_for()


def test_a_cell_is_named_by_click_and_by_arrow_and_leads_to_its_pair(page: Any, folder: Path) -> None:
    counts = pd.read_csv(folder / "confusion.csv", index_col="class_name")
    order = pd.read_csv(folder / "class_order.csv").sort_values("position")["label"].tolist()
    first = pd.read_csv(folder / "confused_pairs.csv").iloc[0]
    a, b = (first["class_a"], first["class_b"]) if first["a_as_b"] else (first["class_b"], first["class_a"])
    labels = counts.index.tolist()
    row, column = order.index(labels.index(a)), order.index(labels.index(b))
    canvas, said = page.locator("#matrix"), page.locator("#matrix-cell")
    canvas.scroll_into_view_if_needed()
    side = canvas.bounding_box()["width"] / len(labels)
    canvas.click(position={"x": (column + 0.5) * side, "y": (row + 0.5) * side})
    sentence = f"{readable(a)} taken for {readable(b)}: {counts.loc[a, b]} of {counts.loc[a].sum()} images"
    assert said.inner_text().startswith(sentence)
    canvas.press("ArrowRight" if column < len(labels) - 1 else "ArrowLeft")
    beside = labels[order[column + 1 if column < len(labels) - 1 else column - 1]]
    assert (f"taken for {readable(beside)}:" in said.inner_text()) != (beside == a)
    canvas.press("ArrowLeft" if column < len(labels) - 1 else "ArrowRight")
    canvas.press("Enter")
    page.locator("#pair-0[open]").wait_for()


def test_the_matrix_zooms_about_the_chosen_cell_and_changes_its_order(page: Any) -> None:
    canvas, said = page.locator("#matrix"), page.locator("#matrix-cell")
    canvas.scroll_into_view_if_needed()
    side = canvas.bounding_box()["width"] / tiny.SPECIES
    place = {"x": 4.5 * side, "y": 3.5 * side}
    pixels = "canvas => canvas.toDataURL()"
    canvas.click(position=place)
    named, before = said.inner_text(), canvas.evaluate(pixels)
    page.get_by_role("button", name="Zoom in").click()
    assert canvas.evaluate(pixels) != before
    canvas.click(position=place)
    assert said.inner_text() == named
    canvas.click(position={"x": place["x"] + 1.1 * side, "y": place["y"]})  # a cell is 1.5 times as wide now
    assert said.inner_text() != named
    page.get_by_role("button", name="all", exact=True).click()
    canvas.click(position=place)
    assert (said.inner_text(), canvas.evaluate(pixels)) == (named, before)
    page.locator("#matrix-order").select_option("label")
    assert said.inner_text() == "No cell is chosen."
    assert canvas.evaluate(pixels) != before


def test_a_class_stands_out_on_the_map(page: Any, folder: Path) -> None:
    predicted = pd.read_csv(folder / "predictions.csv")
    own = predicted[predicted["label"] == 2]
    page.locator("#map").scroll_into_view_if_needed()
    before = page.locator("#map").evaluate("canvas => canvas.toDataURL()")
    page.locator("#map-class").select_option("2")
    right = (own["predicted"] == 2).sum()
    said = f"{readable(own['class_name'].iloc[0])}: {len(own)} images, {right} right."
    assert page.locator("#map-point").inner_text() == said
    assert page.locator("#map").evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.parametrize("page", [{"viewport": PHONE}], indirect=True)
def test_a_phone_scrolls_down_and_never_sideways(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("h1").bounding_box()["width"] <= PHONE["width"]


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True, ids=["light", "dark"]
)
def test_every_text_has_the_contrast_that_wcag_asks_for(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    worst = page.evaluate(CONTRAST)
    assert worst["seen"] > 50
    assert worst["ratio"] >= 4.5, worst


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_print_is_dark_on_light_and_shows_every_pair(page: Any, folder: Path, tmp_path: Path) -> None:
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 20)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    assert not page.locator("nav.sections").is_visible()
    page.pdf(path=tmp_path / "report.pdf")
    assert page.locator("#pairs details:not([open])").count() == 0
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_the_page_can_still_be_read(page: Any) -> None:
    assert page.locator("#class-table tbody tr").count() == tiny.SPECIES
    page.locator("#pair-0 summary").click()
    assert page.locator("#pair-0 h3").first.is_visible()


# The smallest contrast of any text with the nearest background behind it (WCAG 2, success criterion 1.4.3).
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let worst = { ratio: 21, seen: 0 };
  for (const element of document.querySelectorAll("body *:not(script):not(style):not(svg *)")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!text || !element.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), seen = worst.seen + 1;
    worst = ratio < worst.ratio ? { ratio, text: text.slice(0, 40), seen } : { ...worst, seen };
  }
  return worst;
}"""


def test_of_many_classes_search_and_heads_go_through_those_that_the_page_does_not_have(
    folder: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(content, "MANY_CLASSES", 5)
    monkeypatch.setattr(content, "ENDS_SHOWN", 1)
    shutil.copytree(folder.parents[3] / "runs", tmp_path / "runs")
    assert tiny.do("report", tmp_path) == 0
    own = tmp_path / "runs/tiny/eval/test"
    classes = pd.read_csv(own / "per_class.csv")
    classes["name"] = classes["class_name"].map(readable)
    page = chromium.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((own / "report.html").as_uri())
    assert len(names(page)) == 2
    page.locator("#class-table th", has_text="Accuracy").get_by_role("button").click()
    assert names(page)[0] == classes.loc[classes["accuracy"].argmax(), "name"]
    assert page.locator("#class-count").inner_text() == "6 classes"
    hidden = next(name for name in classes["name"] if name not in names(page)[:1])
    page.get_by_label("Find a class").fill(hidden)
    assert names(page) == [hidden]
    one = classes[classes["name"] == hidden].iloc[0]
    cells = page.locator("#class-table tbody tr td.n").all_inner_texts()
    percents = [f"{100 * one[name]:.0f}\N{NO-BREAK SPACE}%" for name in ("accuracy", "precision", "f1")]
    assert cells == [str(one["n"]), *percents, str(one["train_images"])]
    assert said == []
    page.close()
