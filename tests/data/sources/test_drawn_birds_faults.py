"""Known faults in drawn birds: the truth says what was planted, and the files show it."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.sources.drawn_birds import dataset
from tests.helpers.folders import digests, read_rows

SPECIES, IMAGES, SIDE_PX = 4, 10, 96


def drawn(folder: Path, **shares: float) -> Path:
    folder.mkdir()
    dataset.write(
        folder,
        species=SPECIES,
        images_per_species=IMAGES,
        train_per_species=6,
        long_side_px=SIDE_PX,
        seed=3,
        workers=1,
        **shares,
    )
    return folder / "CUB_200_2011"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("faulty") / "set", flipped_labels=0.2, duplicates=0.1)


def pairs(path: Path) -> dict[int, int]:
    return {int(a): int(b) for a, b in read_rows(path)}


def test_without_shares_nothing_is_planted(clean: Path) -> None:
    assert not (clean / "duplicates.txt").exists()
    assert not (clean / "flipped_labels.txt").exists()
    assert list(pairs(clean / "image_class_labels.txt").values()) == [
        number for number in range(1, SPECIES + 1) for _ in range(IMAGES)
    ]


def test_the_truth_says_which_labels_were_flipped(clean: Path, faulty: Path) -> None:
    right, listed = (pairs(folder / "image_class_labels.txt") for folder in (clean, faulty))
    truth = pairs(faulty / "flipped_labels.txt")
    assert truth == {image: right[image] for image in right if right[image] != listed[image]}
    assert len(truth) == 0.2 * SPECIES * IMAGES
    assert set(Counter(truth.values()).values()) == {2}
    assert len({(right[image], listed[image]) for image in truth}) > SPECIES


def test_the_truth_says_which_pictures_are_copies(clean: Path, faulty: Path) -> None:
    truth, labels = pairs(faulty / "duplicates.txt"), pairs(clean / "image_class_labels.txt")
    assert len(truth) == 0.1 * SPECIES * IMAGES
    assert not truth.keys() & set(truth.values())
    assert all(labels[copy] == labels[original] for copy, original in truth.items())
    paths = dict(read_rows(faulty / "images.txt"))
    before, after = digests(clean / "images"), digests(faulty / "images")
    assert {path for path in before if before[path] != after[path]} == {paths[str(copy)] for copy in truth}


def test_a_copy_shows_its_original_and_has_its_box_and_parts(faulty: Path) -> None:
    paths = dict(read_rows(faulty / "images.txt"))
    boxes = np.loadtxt(faulty / "bounding_boxes.txt")[:, 1:]
    parts = np.loadtxt(faulty / "parts" / "part_locs.txt").reshape(-1, 15, 5)[:, :, 2:]
    for copy, original in pairs(faulty / "duplicates.txt").items():
        one, other = (cv2.imread(str(faulty / "images" / paths[str(n)])) for n in (copy, original))
        assert one is not None and other is not None
        assert one.shape[0] < other.shape[0] or one.shape[1] < other.shape[1]
        size = np.array([one.shape[1], one.shape[0]])
        x, y, w, h = boxes[copy - 1]
        assert min(x, y) >= 0 and w > 15 and h > 15
        assert x + w <= size[0] + 0.1 and y + h <= size[1] + 0.1
        scale = size / np.array([other.shape[1], other.shape[0]])
        visible = (parts[copy - 1][:, 2] == 1) & (parts[original - 1][:, 2] == 1)
        assert visible.sum() > 5
        expected = parts[original - 1][visible, :2] * scale
        assert np.abs(parts[copy - 1][visible, :2] - expected).max() < 0.05 * SIDE_PX
        grown = cv2.resize(one, (other.shape[1], other.shape[0])).astype(float)
        assert np.corrcoef(cv2.GaussianBlur(grown, (0, 0), 2).ravel(), other.ravel())[0, 1] > 0.8


def test_the_same_seed_plants_the_same_faults(faulty: Path, tmp_path: Path) -> None:
    again = drawn(tmp_path / "again", flipped_labels=0.2, duplicates=0.1)
    assert digests(again) == digests(faulty)
