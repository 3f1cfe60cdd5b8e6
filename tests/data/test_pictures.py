"""A picture's pixels are those that people see; what has no stated rule is refused by name."""

import io
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.common.errors import DataError
from pipeline.data import image_store, pictures, prepare
from pipeline.data.pictures import Layout, PictureError, Pixels, decode, picture, stored_pixels
from tests.helpers import tiny
from tests.helpers.orientations import AS_STORED, SUFFIXES, THERE, save

SMALL = Layout("short_side", 16, "packed")
FULL = Layout("short_side", 2000, "packed")  # no picture is decoded at a fraction
SQUASH = Layout("squash", 32, "packed")
LAYOUTS = [SMALL, SQUASH, Layout("short_side", 16, "jpeg"), Layout("squash", 32, "jpeg")]
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
COLOURS = np.random.default_rng(7).integers(0, 256, (20, 30, 4)).astype(np.uint8)


def seen(path: Path, layout: Layout = FULL) -> Pixels:
    """The pixels of a picture at its full size."""
    return decode(path, layout)[0]


def refused(path: Path, layout: Layout = SMALL) -> str:
    """What is said about a picture, without its path."""
    with pytest.raises(PictureError) as caught:
        picture(path, layout)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


# Orientation

CORNERS = np.kron(
    np.array([[[250, 20, 20], [20, 250, 20], [20, 20, 250]], [[250, 250, 20], [20, 250, 250], [90, 90, 90]]]),
    np.ones((64, 64, 1)),
).astype(np.uint8)
"""upright, 192 x 128: each block of 64 x 64 has a colour of its own"""
FORMAT_OF = {suffix: format_ for format_, suffix in SUFFIXES.items()}


def save_turned(path: Path, orientation: int, upright: Pixels = CORNERS) -> Path:
    save(path, AS_STORED[orientation](upright), orientation, FORMAT_OF[path.suffix[1:]])
    return path


@pytest.mark.parametrize("suffix", [SUFFIXES[format_] for format_ in THERE])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = save_turned(tmp_path / f"turned.{suffix}", orientation)
    pixels, facts = decode(path, FULL)
    assert pixels.shape == CORNERS.shape
    assert np.abs(pixels.astype(int) - CORNERS).max() <= 12
    assert (facts["width"], facts["height"]) == (192, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_grey_uncompressed_tiff_is_turned_too(tmp_path: Path, orientation: int) -> None:
    """Pillow 13 would map its rows into memory, and in a wrong shape."""
    upright = np.asarray(Image.fromarray(CORNERS).convert("L"))
    pixels, _ = decode(save_turned(tmp_path / "turned.tif", orientation, upright), FULL)
    assert np.array_equal(pixels, np.repeat(upright[..., None], 3, -1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_store_holds_the_upright_picture_at_its_upright_size(
    tmp_path: Path, layout: Layout, orientation: int
) -> None:
    path = save_turned(tmp_path / "turned.jpg", orientation)
    upright = save_turned(tmp_path / "upright.jpg", 1)
    (folder := tmp_path / layout.name).mkdir()
    index = image_store.build(pd.DataFrame({"id": [1], "path": [path.name]}), tmp_path, folder, layout).index
    stored = image_store.Store(folder)[0]
    assert (index.loc[0, "store_width"], index.loc[0, "store_height"]) == layout.size(192, 128)
    assert (index.loc[0, "width"], index.loc[0, "height"]) == (192, 128)
    assert np.abs(stored.astype(int) - picture(upright, layout)).mean() < 6
    assert stored_pixels([path], layout) == index.loc[0, "store_width"] * index.loc[0, "store_height"]
    assert np.array_equal(stored, picture(path, layout))


def test_a_large_turned_jpeg_is_decoded_at_a_fraction_that_is_never_too_small(tmp_path: Path) -> None:
    upright = np.broadcast_to(np.arange(600, dtype=np.uint8)[:, None, None], (600, 800, 3))
    for orientation in (1, 6):
        path = save_turned(tmp_path / "large.jpg", orientation, upright)
        shapes = {
            px: decode(path, Layout("squash", px, "packed"))[0].shape for px in (601, 512, 300, 100, 10)
        }
        assert shapes == {
            601: (600, 800, 3),
            512: (600, 800, 3),
            300: (300, 400, 3),
            100: (150, 200, 3),
            10: (75, 100, 3),
        }


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jpg"
    Image.fromarray(CORNERS).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense", quality=100)
    assert np.abs(seen(path).astype(int) - CORNERS).mean() < 3


# Grey values of more than 8 bits


def tiff(values: Pixels, bits: int) -> bytes:
    """An uncompressed TIFF of one channel, in little-endian order; Pillow writes none of 12 bits."""
    height, width = values.shape
    if bits == 12:  # two values take three bytes
        a, b = values[:, ::2].astype(int), values[:, 1::2].astype(int)
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=2).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + b"\0" * 4
    )


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "int32.tif"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path, name: str) -> None:
    values = RAMP.astype(np.int32) if name.startswith("int32") else RAMP
    Image.fromarray(values).save(tmp_path / name)
    pixels, facts = decode(tmp_path / name, SQUASH)
    assert (pixels == (RAMP >> 8)[..., None]).all()
    assert facts["grey"]


def test_of_12_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    values = (RAMP >> 4)[:, :16]
    (tmp_path / "grey.tif").write_bytes(tiff(values, 12))
    assert (seen(tmp_path / "grey.tif") == (values >> 4)[..., None]).all()


def test_floats_of_0_to_1_become_0_to_255(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "float.tif")
    assert (seen(tmp_path / "float.tif")[..., 0].ravel() == np.arange(256)).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (RAMP.astype(np.float32), "its floating-point values are 0..65535; scale them to 0..1"),
        (np.float32([[0.5, np.nan]]), "its floating-point values are nan..nan; scale them to 0..1"),
        (np.float32([[-1, 1]]), "its floating-point values are -1..1; scale them to 0..1"),
        (RAMP.astype(np.int32) - 5, "its values are -5..65530; scale them to 0..65535"),
        (RAMP.astype(np.int32) * 2, "its values are 0..131070; scale them to 0..65535"),
        (RAMP >> 4, "its 16-bit values are 0..4095, all but black; scale them to 0..65535, or save it with"),
    ],
)
def test_values_that_would_be_clipped_or_black_are_refused_with_their_range(
    tmp_path: Path, values: Pixels, sentence: str
) -> None:
    Image.fromarray(values).save(tmp_path / "values.tif")
    assert sentence in refused(tmp_path / "values.tif")


def test_a_black_picture_of_16_bits_is_black(tmp_path: Path) -> None:
    Image.fromarray(RAMP * 0).save(tmp_path / "black.png")
    assert not seen(tmp_path / "black.png").any()


# Modes and transparency


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("1", "png"), ("1", "tif"), ("L", "png"), ("P", "png"), ("P", "gif"), ("P", "bmp"), ("RGB", "ppm")],
        *[
            ("RGB", "webp"),
            ("CMYK", "tif"),
            ("CMYK", "jpg"),
            ("RGBX", "tif"),
            ("RGB", "mpo"),
        ],
    ],
)
def test_a_picture_of_any_mode_has_the_colours_that_pillow_shows(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(COLOURS).convert("RGB").convert(mode).save(path)
    with Image.open(path) as image:
        assert np.array_equal(seen(path), np.asarray(image.convert("RGB")))


def png(bits: int, values: Pixels, transparent: tuple[int, ...]) -> bytes:
    """A PNG, grey or RGB, in which pixels of one colour are transparent; Pillow writes none of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, 2 if values.ndim == 3 else 0, 0, 0, 0)
    colour = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = [(b"IHDR", header), (b"tRNS", colour), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def save_half_transparent(path: Path, mode: str) -> None:
    """Magenta, hidden in the left half by alpha 0, and grey in the right half."""
    pixels = np.full((20, 40, 4), (255, 0, 255, 0), np.uint8)
    pixels[:, 20:] = (120, 120, 120, 255)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        hidden = np.asarray(image)[0, 0]
        image.save(path, transparency=int(hidden))
    else:
        image.convert(mode).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 40, 200)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("LA", "png"), ("P", "png"), ("P", "gif")],
)
def test_transparent_pixels_show_the_background(
    tmp_path: Path, mode: str, suffix: str, background: tuple[int, int, int]
) -> None:
    path = tmp_path / f"half.{suffix}"
    save_half_transparent(path, mode)
    pixels = seen(path, replace(FULL, background=background))
    assert (pixels[:, :20] == background).all()
    assert (pixels[:, 20:] == 120).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_colour_that_stands_for_transparent_shows_the_background(
    tmp_path: Path, bits: int, colours: int
) -> None:
    hidden = (10, 20, 30) if bits == 8 else (1000, 20000, 60000)
    values = np.full((4, 6, 3), 200 if bits == 8 else 200 * 257)
    values[:, :3] = hidden
    path = tmp_path / "keyed.png"
    path.write_bytes(png(bits, values if colours == 3 else values[..., 2], hidden[-colours:]))
    pixels = seen(path, replace(FULL, background=(0, 255, 0)))
    assert (pixels[:, :3] == (0, 255, 0)).all()
    assert (pixels[:, 3:] == 200).all()


def test_half_a_transparency_is_half_the_background_and_none_leaves_the_pixels_as_they_are(
    tmp_path: Path,
) -> None:
    pixels = COLOURS.copy()
    pixels[..., 3] = 255
    pixels[0, 0] = (100, 0, 0, 51)  # a fifth
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = seen(tmp_path / "a.png", replace(FULL, background=(0, 200, 0)))
    assert np.abs(found[0, 0].astype(int) - (20, 160, 0)).max() <= 1
    assert np.array_equal(found[1:], pixels[1:, :, :3])


def test_another_background_is_another_store(tmp_path: Path) -> None:
    white, black = tiny.config(tmp_path), tiny.config(tmp_path, "data.background=[0,0,0]")
    assert prepare.layout(white.data).name == "store-squash40-packed"
    assert prepare.layout(black.data).name == "store-squash40-on000000-packed"
    assert prepare.output_paths(white)[1] != prepare.output_paths(black)[1]


# What is refused


@pytest.mark.parametrize("format_", ["EPS", "TGA", "ICO", "JPEG2000", "PCX"])
def test_formats_that_are_not_listed_are_not_opened(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "bird.jpg"
    Image.fromarray(COLOURS).convert("RGB").save(path, format_)
    assert refused(path) == "not a picture, or of an unknown format"


def test_heic_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FORMATS", [name for name in pictures.FORMATS if name != "HEIF"])
    path = tmp_path / "phone.jpg"
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix"):
        path.write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
        assert refused(path) == pictures.NEEDS_HEIF
    assert "pip install --editable '.[heic]'" in pictures.NEEDS_HEIF
    path.write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(100))
    assert refused(path) == "not a picture, or of an unknown format"


def test_a_damaged_heic_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    path = tmp_path / "phone.heic"
    Image.fromarray(COLOURS).convert("RGB").save(path)
    assert seen(path).shape == (20, 30, 3)
    content = path.read_bytes()
    for size, reason in ((30, "not a picture, or of an unknown format"), (len(content) - 9, "end of file")):
        path.write_bytes(content[:size])
        assert reason in refused(path)


def test_a_mode_without_a_rule_is_named(tmp_path: Path) -> None:
    Image.frombytes("LAB", (30, 20), COLOURS[..., :3].tobytes()).save(tmp_path / "lab.tif")
    assert refused(tmp_path / "lab.tif") == "its pixels are of Pillow's mode LAB; save it as RGB"


def test_what_is_not_a_plain_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert refused(tmp_path / "pipe.jpg") == refused(tmp_path / "folder.jpg") == "not a file"
    assert refused(tmp_path / "gone.jpg") == refused(tmp_path / "gone.jpg" / "x") == "missing"
    assert refused(tmp_path / ("n" * 300 + ".jpg")) == "File name too long"


def declared(width: int, height: int) -> bytes:
    """A PNG whose header declares a size."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "png")
    content = bytearray(stream.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("layout", [SMALL, SQUASH], ids=lambda layout: layout.name)
def test_sizes_are_bounded_and_all_bad_pictures_are_named_at_once(tmp_path: Path, layout: Layout) -> None:
    Image.new("RGB", (400, 20)).save(tmp_path / "long.png")  # 20 : 1, and no more
    Image.new("RGB", (401, 20)).save(tmp_path / "too_long.png")
    Image.new("RGB", (1, 20000)).save(tmp_path / "tall.png")
    (tmp_path / "bomb.png").write_bytes(declared(60_000, 60_000))
    (tmp_path / "flat.png").write_bytes(declared(0, 100))
    names = ["long.png", "too_long.png", "tall.png", "bomb.png", "flat.png"]
    (tmp_path / "store").mkdir()
    table = pd.DataFrame({"id": range(len(names)), "path": names})
    with pytest.raises(DataError) as caught:
        image_store.build(table, tmp_path, tmp_path / "store", layout)
    message = str(caught.value)
    assert message.startswith("4 of 5 pictures do not decode in full: ")
    assert "too_long.png: 401 x 20 pixels, and a side may be 20 times as long as the other; " in message
    assert "tall.png: 1 x 20000 pixels, and" in message
    assert "bomb.png: more than 178,956,970 pixels; " in message
    assert f"{tmp_path / 'flat.png'}: " in message and f"{tmp_path / 'long.png'}" not in message
    assert "delete" not in message


def test_pillows_warnings_are_not_printed(tmp_path: Path) -> None:
    """In a process of its own: pytest catches warnings."""
    content = tiff(RAMP >> 8, 16)
    (tmp_path / "bad_tag.tif").write_bytes(
        content.replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 2, 8))
    )
    Image.fromarray(COLOURS[..., 0]).convert("P").save(
        tmp_path / "palette.png", transparency=bytes(range(256))
    )
    Image.fromarray(CORNERS).save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01")
    names = ["bad_tag.tif", "palette.png", "exif.jpg"]
    code = (
        "import sys, warnings; from pathlib import Path\n"
        "from pipeline.data.pictures import PictureError, Layout, decode\n"
        "if sys.argv[1] == 'always': warnings.resetwarnings(); warnings.simplefilter('always')\n"
        "for path in sys.argv[2:]:\n"
        "    try: decode(Path(path), Layout('squash', 32, 'packed'))\n"
        "    except PictureError: pass\n"
    )
    words = [str(tmp_path / name) for name in names]
    loud, quiet = (tiny.launch([sys.executable, "-c", code, how, *words]) for how in ("always", "never"))
    assert "Warning: " in loud.stderr  # these pictures do make Pillow warn
    assert (quiet.returncode, quiet.stderr) == (0, "")
