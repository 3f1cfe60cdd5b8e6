"""The store: every picture decoded, resized once, and served as it went in."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data import image_store
from pipeline.data.image_store import Store, build
from pipeline.data.pictures import Layout, Pixels, decode, resized

SQUASH, SHORT_SIDE = Layout("squash", 64, "packed"), Layout("short_side", 64, "packed")
LAYOUTS = [SQUASH, SHORT_SIDE, Layout("squash", 64, "jpeg"), Layout("short_side", 64, "jpeg")]
SIZES = {"wide.jpg": (150, 100), "tall.png": (90, 181), "small.png": (40, 30), "grey.jpg": (100, 100)}
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def smooth(width: int, height: int) -> Pixels:
    """A picture without sharp edges, different in each channel and along each axis."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]  # fmt: skip
    waves = [np.sin(3 * x + y), np.cos(5 * y - x), np.sin(4 * x * y)]
    return (127.5 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in SIZES.items():
        picture = Image.fromarray(smooth(*size))
        picture = picture.convert("L") if name == "grey.jpg" else picture
        picture.save(folder / name, quality=95)
    return folder


def listed(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"id": [10 * n + 7 for n in range(len(names))], "path": names})


def built(images: Path, layout: Layout, *names: str) -> tuple[pd.DataFrame, Store]:
    folder = images.parent / layout.name
    with files.replacing_folder(folder) as part:
        index = build(listed(*(names or SIZES)), images, part, layout).index
    return index, Store(folder)


def digest(store: Store) -> str:
    return hashlib.sha256(b"".join(store[n].tobytes() for n in range(len(store)))).hexdigest()


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [(SQUASH, [(64, 64)] * 4), (SHORT_SIDE, [(96, 64), (64, 129), (85, 64), (64, 64)])],
)
def test_squash_makes_squares_and_short_side_keeps_the_ratio(
    images: Path, layout: Layout, sizes: list[tuple[int, int]]
) -> None:
    index, store = built(images, layout)
    assert list(zip(index["store_width"], index["store_height"], strict=True)) == sizes
    assert [store[n].shape for n in range(4)] == [(height, width, 3) for width, height in sizes]


@pytest.mark.parametrize("px", [64, 512])
def test_no_side_is_shorter_than_asked_for(px: int) -> None:
    layout = Layout("short_side", px, "packed")
    sizes = [layout.size(width, height) for width in range(90, 140) for height in range(90, 140)]
    assert {min(size) for size in sizes} == {px}


@each_layout
def test_the_index_says_what_the_files_are(images: Path, layout: Layout) -> None:
    index, store = built(images, layout)
    assert store.ids.tolist() == index["id"].tolist() == [7, 17, 27, 37]
    assert len(store) == 4
    assert list(zip(index["width"], index["height"], strict=True)) == list(SIZES.values())
    assert index["grey"].tolist() == [False, False, False, True]
    assert index["file_bytes"].tolist() == [(images / name).stat().st_size for name in SIZES]
    pd.testing.assert_frame_equal(pd.read_csv(store.folder / "index.csv"), index)
    assert (store.folder / "pixels.bin").stat().st_size == index["length"].sum()


@each_layout
def test_every_picture_is_the_decoded_and_resized_one(images: Path, layout: Layout) -> None:
    _, store = built(images, layout)
    for position, name in enumerate(SIZES):
        size = layout.size(*SIZES[name])
        expected = resized(decode(images / name, layout)[0], *size)
        assert store[position].dtype == np.uint8
        change = np.abs(store[position].astype(int) - expected)
        assert change.max() <= (0 if layout.format == "packed" else 12)
        assert change.mean() <= 1.5


@each_layout
def test_a_picture_is_close_to_pillows_own_decoding_and_resizing(images: Path, layout: Layout) -> None:
    _, store = built(images, layout)
    for position, name in enumerate(SIZES):
        with Image.open(images / name) as picture:
            box = picture.convert("RGB").resize(layout.size(*picture.size), Image.Resampling.BICUBIC)
        assert np.abs(store[position].astype(int) - np.asarray(box)).mean() < 3


@each_layout
def test_channels_are_red_green_blue(images: Path, layout: Layout) -> None:
    Image.new("RGB", (80, 80), (250, 130, 10)).save(images / "orange.jpg", quality=95)
    _, store = built(images, layout, "orange.jpg")
    assert np.abs(store[0].astype(int) - (250, 130, 10)).max() <= 4


@each_layout
def test_a_grey_picture_has_three_equal_channels(images: Path, layout: Layout) -> None:
    _, store = built(images, layout, "grey.jpg")
    assert (store[0] == store[0][:, :, :1]).all()
    assert store[0].std() > 5


def test_packed_pixels_are_a_view_that_cannot_be_written(images: Path) -> None:
    _, store = built(images, SQUASH)
    assert np.shares_memory(store[1], store[1])
    with pytest.raises(ValueError, match="read-only"):
        store[1][0, 0, 0] = 1


def test_shrinking_by_a_whole_factor_is_the_average_of_each_block() -> None:
    picture = noise(96, 64)
    average = picture.reshape(16, 4, 32, 3, 3).mean(axis=(1, 3))
    assert np.abs(resized(picture, 32, 16) - average).max() <= 0.51


def test_a_fine_checkerboard_becomes_grey_whatever_the_factor() -> None:
    board = np.repeat((np.indices((240, 240)).sum(axis=0) % 2 * 255)[:, :, None], 3, axis=2).astype(np.uint8)
    for width, height in [(60, 60), (100, 37), (47, 240)]:
        small = resized(board, width, height)
        assert small.shape == (height, width, 3)
        assert np.abs(small.astype(int) - 127).mean() < 20  # without anti-aliasing it is 127


def test_growing_keeps_a_smooth_picture_smooth() -> None:
    assert np.abs(resized(smooth(50, 40), 100, 80).astype(int) - smooth(100, 80)).mean() < 2
    assert np.abs(resized(smooth(50, 80), 100, 40).astype(int) - smooth(100, 40)).mean() < 2


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    picture = noise(30, 20)
    assert resized(picture, 30, 20) is picture


def spoil(images: Path) -> dict[str, str]:
    """Four bad files, with what has to be said about each."""
    whole = io.BytesIO()
    Image.fromarray(noise(200, 150)).save(whole, "jpeg")
    (images / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("no bird")
    return {
        "half.jpg": "image file is truncated",
        "empty.jpg": "not a picture",
        "text.jpg": "not a picture",
        "gone.jpg": "missing",
    }


@each_layout
def test_every_bad_picture_is_named_and_the_earlier_store_survives(images: Path, layout: Layout) -> None:
    _, earlier = built(images, layout)
    before, reasons = digest(earlier), spoil(images)
    with pytest.raises(DataError) as caught:
        built(images, layout, *reasons, *SIZES)
    message = str(caught.value)
    assert message.startswith("4 of 8 pictures do not decode in full: ")
    for name, reason in reasons.items():
        assert f"{images / name}: {reason}" in message
    assert not any(str(images / name) in message for name in SIZES)
    assert "\n" not in message
    assert digest(Store(earlier.folder)) == before
    assert sorted(path.name for path in images.parent.iterdir()) == ["images", layout.name]


@each_layout
def test_a_jpeg_cut_by_its_last_bytes_is_bad(images: Path, layout: Layout) -> None:
    content = (images / "wide.jpg").read_bytes()
    (images / "wide.jpg").write_bytes(content[:-200])
    with pytest.raises(DataError, match=r"wide\.jpg: image file is truncated"):
        built(images, layout)


def test_a_folder_without_a_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="store-squash64-packed: missing; run `plumage data` with the same --config and keys"
    ):
        Store(tmp_path / "store-squash64-packed")


def test_a_disk_that_is_too_small_is_refused_beforehand(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(images)._replace(free=3 * 64 * 64 * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the store needs 48\.0 KiB and 48\.0 KiB are free"):
        built(images, SQUASH)
    assert [path.name for path in images.parent.iterdir()] == ["images"]


def test_a_real_disk_that_is_too_small_is_refused_and_stays_empty(images: Path, small_disk: Path) -> None:
    layout = Layout("squash", 512, "packed")
    (small_disk / layout.name).mkdir()
    with pytest.raises(DataError, match=r"the store needs 3\.0 MiB and 1\.0 MiB are free"):
        build(listed(*SIZES), images, small_disk / layout.name, layout)
    assert list(small_disk.rglob("*")) == [small_disk / layout.name]


@pytest.mark.parametrize("format_", ["packed", "jpeg"])
def test_a_disk_that_fills_up_leaves_the_earlier_store(
    images: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, format_: Any
) -> None:
    layout = Layout("squash", 256, format_)
    folder = small_disk / layout.name
    with files.replacing_folder(folder) as part:
        build(listed("grey.jpg"), images, part, layout)
    before = digest(Store(folder))
    names = [f"noise{n}.png" for n in range(24)]
    for name in names:
        Image.fromarray(noise(256, 256)).save(images / name)
    monkeypatch.setattr(files, "require_free", lambda *_: None)
    with pytest.raises(OSError, match="No space left on device"), files.replacing_folder(folder) as part:
        build(listed(*names), images, part, layout)
    assert [path.name for path in small_disk.iterdir()] == [layout.name]
    assert digest(Store(folder)) == before


@each_layout
def test_a_store_goes_to_another_process_without_its_pixels(images: Path, layout: Layout) -> None:
    _, store = built(images, layout)
    assert len(pickle.dumps(store)) < 1000
    assert digest(pickle.loads(pickle.dumps(store))) == digest(store)


def test_another_process_reads_the_same_pictures(images: Path) -> None:
    _, store = built(images, SQUASH)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digest, (store,)) == digest(store)


@each_layout
def test_the_checksum_taken_while_writing_is_that_of_the_file(images: Path, layout: Layout) -> None:
    made = build(listed(*SIZES), images, images.parent, layout)
    assert made.checksums == {"pixels.bin": files.crc32_of_file(images.parent / "pixels.bin")}


def test_a_disk_that_fails_to_take_an_earlier_picture_is_an_error(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(image_store, "BYTES_BETWEEN_SYNCS", 1)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        build(listed(*SIZES), images, images.parent, SQUASH)


def test_the_same_pictures_make_the_same_store(images: Path) -> None:
    contents = [(built(images, SQUASH)[1].folder / "pixels.bin").read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4 * 64 * 64 * 3


def edit_index(folder: Path, **changes: object) -> None:
    """Set columns of the first row."""
    index = pd.read_csv(folder / "index.csv").astype(object)
    for column, value in changes.items():
        index.loc[0, column] = value
    index.to_csv(folder / "index.csv", index=False)


@each_layout
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": 17}, r"index\.csv lists image ids 17 \(1 in all\) more than once"),
        ({"offset": -1}, r"index\.csv has a number that is too small"),
        ({"length": 0}, r"index\.csv has a number that is too small"),
        ({"store_width": -64}, r"index\.csv has a number that is too small"),
        ({"offset": 10**9}, r"the pictures of image ids 7 \(1 in all\) are not whole in pixels\.bin"),
        ({"offset": 2**63 - 1}, r"the pictures of image ids 7 \(1 in all\) are not whole in pixels\.bin"),
        ({"offset": 2**70}, r"index\.csv: damaged"),
        ({"offset": ""}, r"index\.csv: damaged"),
        ({"offset": 0.5}, r"index\.csv: damaged"),
        ({"offset": "x"}, r"index\.csv: damaged"),
    ],
)
def test_an_index_that_does_not_fit_its_pixels_is_refused_at_once(
    images: Path, layout: Layout, changes: dict[str, object], words: str
) -> None:
    _, store = built(images, layout)
    edit_index(store.folder, **changes)
    with pytest.raises(DataError, match=words + ".*run `plumage data` with the same --config and keys"):
        Store(store.folder)


def test_a_packed_picture_has_as_many_bytes_as_its_width_and_height_say(images: Path) -> None:
    _, store = built(images, SQUASH)
    edit_index(store.folder, store_width=32)
    with pytest.raises(DataError, match=r"image ids 7 \(1 in all\) are not whole"):
        Store(store.folder)


@pytest.mark.parametrize("content", [b"", b"id\n1\n", b"\xff\xfe\x00", b'"', b"id,id\n1\n"])
def test_what_is_no_index_is_refused(images: Path, content: bytes) -> None:
    _, store = built(images, SQUASH)
    (store.folder / "index.csv").write_bytes(content)
    with pytest.raises(
        DataError, match=r"index\.csv: damaged \(.+\); run `plumage data` with the same --config and keys"
    ):
        Store(store.folder)


def test_pixels_that_are_cut_empty_or_missing_are_refused(images: Path) -> None:
    _, store = built(images, SQUASH)
    path = store.folder / "pixels.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(
        DataError, match=r"image ids 37 \(1 in all\) are not whole in pixels\.bin of 49,142 bytes"
    ):
        Store(store.folder)
    path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"pixels\.bin: empty; run `plumage data` with the same --config and keys"
    ):
        Store(store.folder)
    path.unlink()
    with pytest.raises(
        DataError, match=r"pixels\.bin: missing; run `plumage data` with the same --config and keys"
    ):
        Store(store.folder)


def test_a_stored_jpeg_that_does_not_decode_is_named(images: Path) -> None:
    _, store = built(images, Layout("squash", 64, "jpeg"))
    index = pd.read_csv(store.folder / "index.csv")
    content = bytearray((store.folder / "pixels.bin").read_bytes())
    start, length = index.loc[1, ["offset", "length"]].astype(int)
    content[start : start + length] = bytes(length)
    (store.folder / "pixels.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"the picture of image 17 is damaged; run `plumage data --verify`"):
        Store(store.folder)[1]


def test_a_store_that_is_gone_when_another_process_opens_it_is_named(images: Path) -> None:
    _, store = built(images, SQUASH)
    content = pickle.dumps(store)
    shutil.rmtree(store.folder)
    with pytest.raises(
        DataError, match="store-squash64-packed: missing; run `plumage data` with the same --config and keys"
    ):
        pickle.loads(content)


def test_a_store_that_was_made_anew_is_not_mixed_with_the_one_in_use(images: Path) -> None:
    _, store = built(images, SQUASH, "wide.jpg")
    content = pickle.dumps(store)
    smooth_picture = store[0].copy()
    Image.fromarray(noise(150, 100)).save(images / "wide.jpg")
    built(images, SQUASH, "wide.jpg")
    assert np.array_equal(store[0], smooth_picture)
    with pytest.raises(DataError, match="was made anew while this run used it; start the run again"):
        pickle.loads(content)
