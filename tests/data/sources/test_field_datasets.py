"""Aircraft, pets, flowers and food from small files in their formats, through torchvision's own loaders."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision.datasets
from scipy.io import savemat

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import sample_table
from pipeline.data.sources.field_datasets import SOURCES, FieldDataset
from tests.helpers.own_pictures import draw, published
from tests.helpers.servers import Server, serving

COUNT = {"train": 4, "val": 2, "test": 2}  # of each class


def numbers(split: str, label: int) -> range:
    first = 1 + 100 * label + {"train": 0, "val": 10, "test": 20}[split]
    return range(first, first + COUNT[split])


def fgvc_aircraft(root: Path) -> list[str]:
    data = root / "fgvc-aircraft-2013b" / "data"
    names = ["707-320", "F/A-18"]
    for split in COUNT:
        lines = [f"{number:07} {names[label]}" for label in (0, 1) for number in numbers(split, label)]
        for line in lines:
            draw(data / "images" / f"{line[:7]}.jpg")
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    both = [(data / f"images_variant_{split}.txt").read_text() for split in ("train", "val")]
    (data / "images_variant_trainval.txt").write_text("".join(both))
    (data / "variants.txt").write_text("\n".join(names) + "\n")
    for rank, listed, of_variant in (
        ("family", "families", {"707-320": "Boeing 707", "F/A-18": "F/A-18"}),
        ("manufacturer", "manufacturers", {"707-320": "Boeing", "F/A-18": "McDonnell Douglas"}),
    ):
        (data / f"{listed}.txt").write_text("\n".join(of_variant.values()) + "\n")
        for split in ("trainval", "test"):
            text = (data / f"images_variant_{split}.txt").read_text()
            for variant, name in of_variant.items():
                text = text.replace(f" {variant}\n", f" {name}\n")
            (data / f"images_{rank}_{split}.txt").write_text(text)
    return names


def oxford_pets(root: Path) -> list[str]:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for name, splits in (("trainval", ("train", "val")), ("test", ("test",))):
        lines = [
            f"{breed}_{number} {label + 1} {label + 1} 1"
            for label, breed in enumerate(["Abyssinian", "yorkshire_terrier"])
            for split in splits
            for number in numbers(split, label)
        ]
        (folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            draw(folder / "images" / f"{line.split()[0]}.jpg")
    return ["Abyssinian", "Yorkshire Terrier"]


def flowers102(root: Path) -> list[str]:
    folder = root / "flowers-102"
    ids = {split: [number for label in (0, 1) for number in numbers(split, label)] for split in COUNT}
    for number in sum(ids.values(), start=[]):  # noqa: RUF017  # few
        draw(folder / "jpg" / f"image_{number:05}.jpg")
    savemat(folder / "setid.mat", {"trnid": ids["train"], "valid": ids["val"], "tstid": ids["test"]})
    savemat(folder / "imagelabels.mat", {"labels": [1 + (number > 100) for number in range(1, 201)]})
    return ["hard-leaved pocket orchid", "pink primrose"]


def food101(root: Path) -> list[str]:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    names = ["apple_pie", "waffles"]
    for name, splits in (("train", ("train", "val")), ("test", ("test",))):
        listed = {
            dish: [f"{dish}/{number}" for split in splits for number in numbers(split, label)]
            for label, dish in enumerate(names)
        }
        (folder / "meta" / f"{name}.json").write_text(json.dumps(listed))
        for path in sum(listed.values(), start=[]):  # noqa: RUF017  # few
            draw(folder / "images" / f"{path}.jpg")
    return names


WRITERS: dict[str, Callable[[Path], list[str]]] = {
    "fgvc_aircraft": fgvc_aircraft,
    "oxford_pets": oxford_pets,
    "flowers102": flowers102,
    "food101": food101,
}


@pytest.fixture(autouse=True)
def _flowers_without_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the digests of the true lists: there is no other way to a small one than through its table."""
    files = {key: (name, None) for key, (name, _) in torchvision.datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)


def source(name: str, root: Path) -> FieldDataset:
    config = DataConfig.model_validate({"source": name, "archive": root, "root": root / "data"})
    made = SOURCES[name](config)
    assert isinstance(made, FieldDataset)
    return made


@pytest.mark.parametrize("name", WRITERS)
def test_every_image_has_the_class_and_the_split_of_its_lists(name: str, tmp_path: Path) -> None:
    names = WRITERS[name](tmp_path)
    made = source(name, tmp_path)
    root = made.find_root(tmp_path)
    table = made.read(root)
    assert table.groupby(["class_name", "official"]).size().to_dict() == {
        (each, split): count for each in names for split, count in (("test", 2), ("train", 6))
    }
    assert all((made.images(root) / path).is_file() for path in table["path"])
    assert made.digest(root) == made.digest(root)


def test_aircraft_have_families_and_manufacturers_and_pets_a_species(tmp_path: Path) -> None:
    fgvc_aircraft(tmp_path)
    oxford_pets(tmp_path)
    aircraft = source("fgvc_aircraft", tmp_path).taxonomy(tmp_path)
    pets = source("oxford_pets", tmp_path).taxonomy(tmp_path)
    assert aircraft is not None and pets is not None
    assert list(aircraft.columns) == ["class", "family", "manufacturer"]
    assert sorted(map(tuple, aircraft.to_numpy())) == [
        ("707-320", "Boeing 707", "Boeing"),
        ("F/A-18", "F/A-18", "McDonnell Douglas"),
    ]
    assert list(pets.columns) == ["class", "species"]
    assert sorted(map(tuple, pets.to_numpy())) == [("Abyssinian", "Cat"), ("Yorkshire Terrier", "Dog")]
    (tmp_path / "fgvc-aircraft-2013b" / "data" / "families.txt").unlink()
    assert source("fgvc_aircraft", tmp_path).taxonomy(tmp_path) is None
    assert source("food101", tmp_path).taxonomy(tmp_path) is None


def test_a_species_that_is_neither_cat_nor_dog_is_one_sentence(tmp_path: Path) -> None:
    oxford_pets(tmp_path)
    list_ = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    list_.write_text(list_.read_text().replace(" 1 1 1", " 1 3 1"))
    with pytest.raises(DataError, match=r"layout \(species 3 of Abyssinian, and there are 2\); bring"):
        source("oxford_pets", tmp_path).taxonomy(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_from_torchvisions_folder_to_predictions(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS[name](tmp_path / "given")
    evaluated, predicted = published(name, tmp_path / "given", tmp_path, capsys)
    assert evaluated["n"] == 4
    assert len(predicted) == 2
    kept = list((tmp_path / "data").glob("*/hierarchy.csv"))
    assert len(kept) == (name in ("fgvc_aircraft", "oxford_pets"))


def test_other_pictures_of_the_same_lists_do_not_take_the_data_of_a_folder_that_is_gone(
    tmp_path: Path,
) -> None:
    food101(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    draw(next((tmp_path / "two").rglob("*.jpg")), shade=100)

    def name(folder: str) -> str:
        config = {"source": "food101", "archive": tmp_path / folder, "root": tmp_path / "data"}
        return SOURCES["food101"](DataConfig.model_validate(config)).folder_name

    first = name("one")
    source("food101", tmp_path / "one").remember(tmp_path / "data" / first, "a state")
    shutil.rmtree(tmp_path / "one")
    assert name("three") == name("one") == first
    assert name("two") != first


def test_a_server_that_is_silent_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.data.sources.download.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/birds.tar.gz"
        monkeypatch.setattr(torchvision.datasets.FGVCAircraft, "_URL", url)
        assert run(["data", "data.source=fgvc_aircraft", f"data.root={tmp_path}"]) == 2
    assert "no whole fgvc_aircraft in torchvision's layout (timed out)" in capsys.readouterr().err
    assert socket.getdefaulttimeout() is None


def test_a_set_is_downloaded_once_into_the_root_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = fgvc_aircraft(tmp_path / "server")
    packed = shutil.make_archive(str(tmp_path / "fgvc-aircraft-2013b"), "gztar", tmp_path / "server")
    keys = ["data.source=fgvc_aircraft", "data.resize_px=20", "data.image_px=16"]
    with serving(Server(Path(packed).read_bytes())) as server:
        url = f"{server.url}/{Path(packed).name}"
        monkeypatch.setattr(torchvision.datasets.FGVCAircraft, "_URL", url)
        assert run(["data", *keys, f"data.root={tmp_path / 'data'}"]) == 0
        server.requested.clear()
        assert run(["data", *keys, f"data.root={tmp_path / 'data'}"]) == 0
        assert not server.requested
    samples = sample_table.read(tmp_path / "data" / "fgvc_aircraft" / "samples-val0.1-seed0.csv")
    assert sample_table.class_names(samples) == names
    assert run(["data", *keys, f"data.root={tmp_path / 'other'}"]) == 2  # the server is gone
    assert "no whole fgvc_aircraft" in capsys.readouterr().err


def damaged_aircraft(root: Path) -> None:
    (root / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt").write_text("0000001 unheard of\n")


def damaged_pets(root: Path) -> None:
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Abyssinian_1 9 1 1\n")


def damaged_flowers(root: Path) -> None:
    (root / "flowers-102" / "setid.mat").write_text("x")


def damaged_food(root: Path) -> None:
    (root / "food-101" / "meta" / "train.json").write_text("{")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("fgvc_aircraft", damaged_aircraft),
        ("oxford_pets", damaged_pets),
        ("flowers102", damaged_flowers),
        ("food101", damaged_food),
    ],
)
def test_what_is_damaged_or_missing_is_one_sentence(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    damage(tmp_path)
    made = source(name, tmp_path)
    with pytest.raises(
        DataError, match=rf"{tmp_path}: no whole {name} in torchvision's layout \(.+\); bring the folder"
    ):
        made.read(made.find_root(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=rf"empty: no folder {made.folder} in it; set data.archive to the folder"
    ):
        source(name, tmp_path / "empty").find_root(tmp_path)
