"""Sources: a new one is one object; the folders, stages and stamps of those there are stay as they were."""

from pathlib import Path
from typing import Any, ClassVar, get_args

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.common import files, tables
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.sources.base import Source
from pipeline.data.sources.source import SOURCES, check_archive, source_of
from pipeline.training.trainer import train
from tests.helpers import tiny

KINDS = ["bright", "dark"]


class Toy(Source):
    """Twenty-four grey pictures of two kinds."""

    verb = "invent"
    folder_name = "toy"
    inputs: ClassVar = {"edition": 1}
    expected = 2, 15, 9

    def fetch(self, output: Path) -> None:
        rows = []
        (output / "images").mkdir()
        for number in range(24):
            shade = np.random.default_rng(number).integers(0, 100, (40, 40)) + 120 * (number % 2 == 0)
            cv2.imwrite(str(output / "images" / f"{number}.png"), shade.astype(np.uint8))
            official = "test" if number % 4 == 3 or number % 8 == 2 else "train"
            rows.append([number, f"{number}.png", number % 2, KINDS[number % 2], official, *[np.nan] * 4])
        tables.write_csv(pd.DataFrame(rows, columns=sample_table.SOURCE_COLUMNS), output / "list.csv")

    def find_root(self, raw: Path) -> Path:
        return raw

    def images(self, root: Path) -> Path:
        return root / "images"

    def read(self, root: Path) -> pd.DataFrame:
        return sample_table.read(root / "list.csv", sample_table.SOURCE_COLUMNS)

    def digest(self, root: Path) -> str:
        return files.digest_of_file(root / "list.csv")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration of the toy source.

    `model_copy` does not validate: a source of the project also enters the names that `data.source` allows.
    """
    monkeypatch.setitem(SOURCES, "toy", Toy)
    config = tiny.config(tmp_path, f"data.root={tmp_path / 'data'}", "train.epochs=2")
    return config.model_copy(update={"data": config.data.model_copy(update={"source": "toy"})})


def test_a_source_is_one_object_from_its_pictures_to_a_trained_model(
    toy: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare(toy)
    data = prepare.load(toy)
    assert sample_table.class_names(data.samples) == KINDS
    assert [len(data.rows(split)) for split in sample_table.SPLITS] == [13, 2, 9]
    assert [picture.mean() > 120 for picture in map(data.store.__getitem__, range(2))] == [True, False]
    train(toy)
    assert tiny.checkpoints(toy.run.root.parent).joinpath("best.pt").is_file()
    capsys.readouterr()
    prepare.prepare(toy)
    lines = capsys.readouterr().err.splitlines()
    stages = [line.split()[0] for line in lines if line.endswith("is up to date")]
    assert stages == ["invent", "store", "splits"]


def test_the_configuration_allows_the_names_of_the_sources() -> None:
    assert get_args(DataConfig.model_fields["source"].annotation) == tuple(SOURCES)


PLANTED = "data.synthetic={species: 4, flipped_labels: 0.1, duplicates: 0.25, seed: 7}"
MD5 = 'data.archive_md5="' + "0" * 31 + '1"'


@pytest.mark.parametrize(
    ("overrides", "folder", "verb", "inputs"),
    [
        ([], "cub200", "unpack", {"md5": "97eceeb196236b17998738112f37df78"}),
        ([MD5], "cub200-00000000", "unpack", {"md5": "0" * 31 + "1"}),
        (["data.archive=birds.tgz", MD5], "cub200-00000000", "unpack", {"md5": "0" * 31 + "1"}),
        (["data.archive=/"], "cub200-df7e940f", "unpack", None),
        (
            ["data.source=synthetic", PLANTED],
            "synthetic-4x50-35-256px-seed7-flipped0.1-doubled0.25",
            "draw",
            {
                "species": 4,
                "images_per_species": 50,
                "train_per_species": 35,
                "long_side_px": 256,
                "seed": 7,
                "flipped_labels": 0.1,
                "duplicates": 0.25,
            },
        ),
        (["data.source=digits"], "digits", "write", {"source": "digits"}),
        (["data.source=mnist"], "mnist", "write", {"source": "mnist"}),
        (["data.source=cifar10", "data.archive=/"], "cifar10-df7e940f", "write", {"source": "cifar10"}),
    ],
)
def test_folders_and_what_a_stamp_holds_stay_as_they_were(
    overrides: list[str], folder: str, verb: str, inputs: dict[str, Any] | None
) -> None:
    config = load_config(None, overrides).data
    source = source_of(config)
    assert (source.folder_name, source.verb, source.inputs) == (folder, verb, inputs)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("folder", "birds"),
        ("csv", "birds"),
        ("hugging_face", "birds"),
        ("digits", "no file"),
        ("synthetic", "no file"),
    ],
)
def test_an_archive_that_a_source_would_not_read_is_refused(source: str, reads: str) -> None:
    path = [] if reads == "no file" else ["data.path=birds"]
    config = load_config(None, [f"data.source={source}", "data.archive=/data/birds.tgz", *path]).data
    sentence = (
        f"^data.archive=/data/birds.tgz: source {source} reads {reads}, and no archive; leave data.archive"
    )
    with pytest.raises(DataError, match=sentence):
        check_archive(config)
