"""What augmentation draws for an image: independent numbers, a function of (seed, epoch, index) alone."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chi2_contingency

from pipeline.config.data import DataConfig
from pipeline.data import prepare
from pipeline.data.transforms import Augmentation, CentreCrop
from tests.helpers import tiny

DRAWS = 1500
STORED_PX, IMAGE_PX = 96, 48
Outcome = dict[str, float]
Pixels = npt.NDArray[np.uint8]


def coordinates() -> Pixels:
    """A picture whose red is the row and whose green is the column."""
    picture = np.zeros((STORED_PX, STORED_PX, 3), np.uint8)
    picture[..., 0] = np.arange(STORED_PX)[:, None]
    picture[..., 1] = np.arange(STORED_PX)[None, :]
    return picture


def flat(*colour: int) -> Pixels:
    return np.full((STORED_PX, STORED_PX, 3), colour, np.uint8)


def augmentation(**settings: Any) -> Augmentation:
    return Augmentation(DataConfig(resize_px=STORED_PX, image_px=IMAGE_PX, **settings), seed=0)


def seen_crop(crop: Pixels) -> Outcome:
    """Where a crop lay in the picture of `coordinates`, as a share of the way it could go; its area, if that varies."""
    rows, columns = crop[..., 0].astype(int), crop[..., 1].astype(int)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return {
        "top": rows.min() / max(1, STORED_PX - height),
        "left": columns.min() / max(1, STORED_PX - width),
        "area": height * width,
    }


def seen_mirror(crop: Pixels) -> Outcome:
    return {"mirrored": crop[0, 0, 1] > crop[0, -1, 1]}


def seen_colour(crop: Pixels) -> Outcome:
    """Brightness, and the distance of red and blue, of what was a flat and nearly grey picture."""
    red, green, blue = crop.reshape(-1, 3).mean(0)
    grey = (red + green + blue) / 3
    return {"brightness": grey, "chroma": (red - blue) / max(1, grey)}


def seen_rectangle(crop: Pixels) -> Outcome:
    """Whether what was a flat picture has a rectangle of noise in it, and the number of its pixels."""
    colours = len(np.unique(crop.reshape(-1, 3), axis=0))
    erased = colours > 20
    return {"erased": erased, "erased_area": colours if erased else np.nan}


Observed = tuple[Augmentation, Pixels, Callable[[Pixels], Outcome]]


def outcomes(*observed: Observed) -> list[dict[str, npt.NDArray[np.float64]]]:
    """What each transform did to the same draws: float64 [DRAWS] by name, transform by transform."""
    tables = []
    for view, picture, look in observed:
        rows = [look(view(picture, draw % 3, draw)) for draw in range(DRAWS)]
        tables.append({name: np.array([row[name] for row in rows], np.float64) for name in rows[0]})
    return tables


def p_of_independence(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """p of the chi-square test over quarters of both, or the two values of a choice, where both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    codes = [np.digitize(v, np.unique(np.quantile(v, [0.25, 0.5, 0.75]))) for v in (a[known], b[known])]
    table = np.histogram2d(*codes, bins=4)[0]
    return float(chi2_contingency(table[table.any(1)][:, table.any(0)]).pvalue)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": "random", "color_jitter": 0.4},
        {"crop": "random_resized", "crop_area_min": 0.3, "color_jitter": 0.4},
        {"auto_augment": "trivial"},
        {"auto_augment": "rand"},
    ],
)
def test_all_pairs_of_draws_of_an_image_are_independent(settings: dict[str, Any]) -> None:
    """Each transform is looked at on a picture that shows it, after the same transforms before it."""
    places = {name: value for name, value in settings.items() if name.startswith("crop")}
    tables = outcomes(
        (augmentation(**places, flip=False), coordinates(), seen_crop),
        (augmentation(**places), coordinates(), seen_mirror),
        (augmentation(**settings), flat(110, 99, 90), seen_colour),
        (augmentation(**settings, random_erasing=0.5), flat(100, 100, 100), seen_rectangle),
    )
    p = {
        (name, other): p_of_independence(values, others)
        for first, second in itertools.combinations(tables, 2)
        for name, values in first.items()
        for other, others in second.items()
        if len(np.unique(values)) > 1
    }
    assert len(p) >= 2 + 4 + 4 + 2 + 2 + 4
    assert min(p.values()) > 0.001 / len(p), sorted(p.items(), key=lambda item: item[1])[:5]


@pytest.mark.parametrize("crop", ["random", "random_resized"])
def test_half_of_the_crops_of_every_place_are_mirrored(crop: str) -> None:
    places, mirrors = outcomes(
        (augmentation(crop=crop, flip=False), coordinates(), seen_crop),
        (augmentation(crop=crop), coordinates(), seen_mirror),
    )
    quarters = np.digitize(places["top"], np.quantile(places["top"], [0.25, 0.5, 0.75]))
    assert [mirrors["mirrored"][quarters == q].mean() for q in range(4)] == pytest.approx([0.5] * 4, abs=0.08)


def test_an_erased_rectangle_holds_a_random_value_for_each_pixel() -> None:
    crop = augmentation(random_erasing=1.0)(flat(100, 100, 100), 0, 0)
    noise = (crop != 100).any(-1)
    assert noise.sum() >= 0.02 * IMAGE_PX**2
    assert len(np.unique(crop[noise], axis=0)) > 0.99 * noise.sum()


DIGESTS = {
    "random": "bf86279cccfce3db",
    "random_resized": "427740e49c5f456f",
    "padded": "6317adc5d28d104b",
    "jitter": "f3c5c58bf20faaee",
    "trivial": "54c1bed307faee6f",
    "rand": "4e58ef5342f0fba6",
    "erasing": "e9cdba0faf6bb9e8",
    "progressive": "958db6cc6a7a6fd9",
}
GOLDEN: dict[str, dict[str, Any]] = {
    "random": {},
    "random_resized": {"crop": "random_resized"},
    "padded": {"pad_px": 4, "image_px": STORED_PX},
    "jitter": {"color_jitter": 0.4},
    "trivial": {"auto_augment": "trivial"},
    "rand": {"auto_augment": "rand"},
    "erasing": {"random_erasing": 1.0},
    "progressive": {"progressive": [{"until_epoch": 1, "image_px": 32}]},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_crops_are_those_of_every_other_machine(name: str) -> None:
    """What (seed, epoch, index) name is part of a run: other bytes would be another training."""
    picture = np.random.default_rng(0).integers(0, 256, (STORED_PX, STORED_PX, 3), np.uint8)
    settings = {"resize_px": STORED_PX, "image_px": IMAGE_PX, **GOLDEN[name]}
    view = Augmentation(DataConfig.model_validate_json(json.dumps(settings)), seed=3)
    crops = b"".join(view(picture, epoch, index).tobytes() for epoch in range(2) for index in range(4))
    assert hashlib.sha256(crops).hexdigest()[:16] == DIGESTS[name]


def test_random_resized_crop_and_colour_keep_size_and_type(birds: Path) -> None:
    config = DataConfig(image_px=32, resize_px=40, crop="random_resized", color_jitter=0.4)
    picture = prepare.load(tiny.config(birds)).store[0]
    view = Augmentation(config, seed=0)
    crops = [view(picture, epoch, 0) for epoch in range(4)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in crops)
    assert len({image.tobytes() for image in crops}) == 4
    assert np.array_equal(view(picture, 1, 0), crops[1])


@pytest.mark.parametrize(
    "operations", [{"auto_augment": "trivial"}, {"auto_augment": "rand"}, {"random_erasing": 1.0}]
)
def test_automatic_augmentation_is_seeded_by_image_and_leaves_torchs_stream_alone(
    birds: Path, operations: dict[str, object]
) -> None:
    picture = prepare.load(tiny.config(birds)).store[0]
    plain = Augmentation(DataConfig(image_px=32, resize_px=40), seed=0)
    view = Augmentation(DataConfig(image_px=32, resize_px=40, **operations), seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    crops = [view(picture, epoch, 0) for epoch in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in crops)
    assert all(np.array_equal(view(picture, epoch, 0), crops[epoch]) for epoch in range(8))
    assert sum(not np.array_equal(plain(picture, epoch, 0), crops[epoch]) for epoch in range(8)) >= 5


@pytest.mark.parametrize(
    "settings", [{}, {"auto_augment": "trivial"}, {"random_erasing": 1.0}, {"color_jitter": 0.4}]
)
@pytest.mark.filterwarnings("error")
def test_a_picture_of_the_store_is_never_written_to(settings: dict[str, Any]) -> None:
    """A crop of the whole picture is a view of it."""
    picture = np.random.default_rng(0).integers(0, 256, (STORED_PX, STORED_PX, 3), np.uint8)
    picture.setflags(write=False)
    view = Augmentation(DataConfig(resize_px=STORED_PX, image_px=STORED_PX, **settings), seed=0)
    before = picture.copy()
    for index in range(8):
        assert view(picture, 0, index).shape == picture.shape
    assert np.array_equal(picture, before)


def test_padding_shifts_the_picture_by_at_most_its_width_and_evaluation_sees_the_middle() -> None:
    picture = np.full((8, 8, 3), 255, np.uint8)
    config = DataConfig(image_px=16, resize_px=16, pad_px=3, flip=False).model_copy(update={"image_px": 8})
    view = Augmentation(config, seed=0)
    places = set()
    for epoch in range(500):
        rows, columns = view(picture, epoch, 0)[..., 0].any(1), view(picture, epoch, 0)[..., 0].any(0)
        places.add((int(rows.sum()), int(columns.sum()), bool(rows[0]), bool(columns[0])))
        assert (view(picture, epoch, 0)[np.ix_(rows, columns)] == 255).all()
    assert {place[0] for place in places} == {place[1] for place in places} == {5, 6, 7, 8}
    assert len(places) == 7 * 7
    assert np.array_equal(CentreCrop(config)(picture, 0, 0), picture)
    whole = CentreCrop(config.model_copy(update={"image_px": 14}))(picture, 0, 0)
    assert np.array_equal(whole[3:-3, 3:-3], picture)
    assert whole.sum() == picture.sum()
