"""Drawn birds: CUB's layout, the same bytes for the same seed, neighbours that differ in one trait."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.common import seeding
from pipeline.common.errors import DataError
from pipeline.data.sources.drawn_birds import bird, dataset
from pipeline.data.sources.drawn_birds.species import Species, species_list
from tests.helpers.folders import digests, read_rows

SPECIES, IMAGES, TRAIN, SIDE_PX = 5, 4, 3, 96


def written(folder: Path, seed: int = 3, workers: int | None = None) -> Path:
    folder.mkdir()
    dataset.write(
        folder,
        species=SPECIES,
        images_per_species=IMAGES,
        train_per_species=TRAIN,
        long_side_px=SIDE_PX,
        seed=seed,
        workers=workers,
    )
    return folder


def differing(one: Species, other: Species) -> list[str]:
    return [name for name, value in one.traits.items() if other.traits[name] != value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("drawn") / "set", workers=1)


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    return folder / "CUB_200_2011"


def test_the_number_of_workers_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    assert digests(written(tmp_path / "again", workers=2)) == digests(folder)


def drawing(tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that draws many birds with two others, and the ids of these two."""
    code = (
        "from pathlib import Path; from pipeline.data.sources.drawn_birds import dataset\n"
        "if __name__ == '__main__':\n"
        f"    dataset.write(Path({str(tmp_path)!r}), species=100, images_per_species=20, train_per_species=10,\n"
        "        long_side_px=96, seed=0, workers=2)\n"
    )
    (tmp_path / "draw.py").write_text(code)
    command = [sys.executable, str(tmp_path / "draw.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "CUB_200_2011").glob("images/*/*.jpg")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ids = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(ids) == 2
    return process, ids


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_processes_that_draw_end_with_the_one_that_is_killed(tmp_path: Path) -> None:
    process, children = drawing(tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not all(map(has_ended, children)):
        assert time.monotonic() < deadline, "the processes that draw are still there"
        time.sleep(0.05)
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.slow
def test_a_killed_process_that_draws_is_one_sentence(tmp_path: Path) -> None:
    process, children = drawing(tmp_path)
    os.kill(children[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert (
        "DataError: drawn birds: a process that draws was killed, most often because the memory is full"
        in said
    )


def test_another_seed_draws_other_pictures_of_other_species(folder: Path, tmp_path: Path) -> None:
    ours, theirs = digests(folder), digests(written(tmp_path / "other", seed=4, workers=1))
    pictures = [{v for k, v in both.items() if k.endswith(".jpg")} for both in (ours, theirs)]
    assert not pictures[0] & pictures[1]
    assert ours["CUB_200_2011/classes.txt"] != theirs["CUB_200_2011/classes.txt"]


def test_an_image_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    dataset.write(
        tmp_path, species=2, images_per_species=2, train_per_species=1, long_side_px=SIDE_PX, seed=3
    )
    small, large = digests(tmp_path), digests(folder)
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 4
    assert all(small[name] == large[name] for name in pictures)


def test_the_layout_is_that_of_the_archive(folder: Path, root: Path) -> None:
    total = SPECIES * IMAGES
    counts = {
        path.relative_to(folder).as_posix(): len(read_rows(path))
        for path in folder.rglob("*")
        if path.suffix == ".txt"
    }
    assert counts == {
        "attributes.txt": 312,
        "CUB_200_2011/images.txt": total,
        "CUB_200_2011/image_class_labels.txt": total,
        "CUB_200_2011/classes.txt": SPECIES,
        "CUB_200_2011/train_test_split.txt": total,
        "CUB_200_2011/bounding_boxes.txt": total,
        "CUB_200_2011/parts/parts.txt": 15,
        "CUB_200_2011/parts/part_locs.txt": total * 15,
        "CUB_200_2011/attributes/class_attribute_labels_continuous.txt": SPECIES,
    }
    images = read_rows(root / "images.txt")
    assert [row[0] for row in images] == [str(number) for number in range(1, total + 1)]
    on_disk = {path.relative_to(root / "images").as_posix() for path in root.rglob("*.jpg")}
    assert {row[1] for row in images} == on_disk
    classes = dict(read_rows(root / "classes.txt"))
    for (number, path), (again, label) in zip(
        images, read_rows(root / "image_class_labels.txt"), strict=True
    ):
        assert number == again
        assert path.split("/")[0] == classes[label]


def test_each_class_has_its_share_of_training_images(root: Path) -> None:
    flags = [int(flag) for _, flag in read_rows(root / "train_test_split.txt")]
    per_class = np.array(flags).reshape(SPECIES, IMAGES)
    assert (per_class.sum(axis=1) == TRAIN).all()
    assert len({tuple(row) for row in per_class.tolist()}) > 1, "every class has the same split"


def test_attributes_are_percentages_and_match_the_species(folder: Path, root: Path) -> None:
    table = np.loadtxt(root / "attributes" / "class_attribute_labels_continuous.txt")
    assert table.shape == (SPECIES, 312)
    assert set(np.unique(table)) == {0.0, 100.0}
    names = [name for _, name in read_rows(folder / "attributes.txt")]
    for species, row in zip(species_list(SPECIES, 3), table, strict=True):
        assert row[names.index(f"has_belly_color::{species.belly_color}")] == 100
        groups = {name.split("::")[0] for name, value in zip(names, row, strict=True) if value}
        assert len(groups) == 28, "a group without any attribute"


def test_sizes_boxes_and_parts_lie_in_the_picture(root: Path) -> None:
    boxes = np.loadtxt(root / "bounding_boxes.txt")[:, 1:]
    parts = np.loadtxt(root / "parts" / "part_locs.txt").reshape(-1, 15, 5)[:, :, 2:]
    names = [" ".join(row[1:]) for row in read_rows(root / "parts" / "parts.txt")]
    within = [names.index(name) for name in names if "leg" not in name]
    for (_, path), (x, y, w, h), places in zip(read_rows(root / "images.txt"), boxes, parts, strict=True):
        image = cv2.imread(str(root / "images" / path))
        assert image is not None
        height, width = image.shape[:2]
        assert max(height, width) == SIDE_PX
        assert min(x, y) >= 0
        assert w > 20 and h > 20
        assert x + w <= width and y + h <= height
        assert (places[places[:, 2] == 0] == 0).all()
        visible = places[within][places[within, 2] == 1]
        assert len(visible) >= 5
        assert (visible[:, 0] >= x).all() and (visible[:, 0] <= x + w).all()
        assert (visible[:, 1] >= y).all() and (visible[:, 1] <= y + h).all()


def test_a_bird_shows_one_side_and_fills_its_box() -> None:
    where = {name: place for place, name in enumerate(bird.PARTS)}
    for number, species in enumerate(species_list(12, 1)):
        drawing = bird.draw(species, seeding.generator("test", number), 160)
        w, h = drawing.box[2:]
        parts = {name: drawing.parts[place] for name, place in where.items()}
        assert not (parts["left eye"][2] and parts["right eye"][2])
        assert not (parts["left wing"][2] and parts["right wing"][2])
        beak, tail = parts["beak"], parts["tail"]
        if beak[2] and tail[2]:
            assert abs(beak[0] - tail[0]) > 0.4 * w
            facing_right = beak[0] > tail[0]
            assert parts["left eye" if facing_right else "right eye"][2] == 0
        assert drawing.image.dtype == np.uint8
        assert 0.2 < w * h / drawing.image[..., 0].size < 1


def test_the_pictures_of_a_species_differ_in_more_than_noise() -> None:
    species = species_list(2, 0)[0]
    drawings = [bird.draw(species, seeding.generator("test", number), 64) for number in range(20)]
    assert len({drawing.image.shape for drawing in drawings}) > 3
    assert len({drawing.box for drawing in drawings}) == 20
    assert {drawing.parts[bird.PARTS.index("tail")][0] > 32 for drawing in drawings} == {True, False}


def test_every_trait_is_visible() -> None:
    """The same pose in the same light: a trait of difference has to change the picture."""
    for one, other in itertools.pairwise(species_list(32, 5)):
        if len(differing(one, other)) != 1:
            continue
        for number in range(2):
            images = [bird.draw(s, seeding.generator("test", number), 112).image for s in (one, other)]
            if images[0].shape == images[1].shape:
                changed = (np.abs(images[0].astype(int) - images[1]).max(axis=2) > 24).sum()
                assert changed >= 20, (one.name, other.name, differing(one, other))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_neighbours_differ_in_exactly_one_trait(seed: int) -> None:
    species = species_list(200, seed)
    for first in range(0, 200, 4):
        genus = species[first : first + 4]
        around = [len(differing(genus[i], genus[(i + 1) % 4])) for i in range(4)]
        assert around == [1, 1, 1, 1]
        assert len({one.name.rsplit("_", 2)[1:] == genus[0].name.rsplit("_", 2)[1:] for one in genus}) == 1


def test_two_hundred_species_have_names_and_traits_of_their_own() -> None:
    species = species_list(200, 0)
    assert len({tuple(one.traits.values()) for one in species}) == 200
    assert len({one.name[4:] for one in species}) == 200
    assert [one.name[:4] for one in species] == [f"{number:03d}." for number in range(1, 201)]
    assert all(one.name[4:].replace("_", "").isalpha() for one in species)
    assert species_list(7, 0) == species[:7]


def test_no_genus_looks_like_another() -> None:
    vectors = [tuple(one.traits.values()) for one in species_list(200, 0)]
    for one, other in itertools.combinations(range(200), 2):
        if one // 4 != other // 4:
            assert sum(a != b for a, b in zip(vectors[one], vectors[other], strict=True)) >= 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"species": 1}, "species"),
        ({"species": 201}, "species"),
        ({"images_per_species": 1}, "images"),
        ({"train_per_species": 4}, "training"),
        ({"train_per_species": 0}, "training"),
        ({"long_side_px": 8}, "px"),
    ],
)
def test_bad_arguments_are_said_in_words(tmp_path: Path, change: dict[str, int], word: str) -> None:
    arguments = {
        "species": 2,
        "images_per_species": 4,
        "train_per_species": 2,
        "long_side_px": 64,
        "seed": 0,
    }
    with pytest.raises(DataError, match=word):
        dataset.write(tmp_path, **(arguments | change))
    assert not list(tmp_path.iterdir())
