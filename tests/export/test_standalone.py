"""The crops of predict.py are those of `predict`, to the bit; what it cannot convert it refuses."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.data import pictures
from pipeline.data.transforms import CentreCrop
from pipeline.export.description import preprocessing
from pipeline.export.standalone import crop_of
from tests.helpers import tiny
from tests.helpers.orientations import SUFFIXES, THERE, save

LAYOUTS = {
    "squash": [],
    "short side": ["data.resize=short_side"],
    "of JPEGs, padded, on a colour": [
        "data.resize=short_side",
        "data.store=jpeg",
        "data.pad_px=3",
        "data.background=[10, 200, 30]",
    ],
}
FORMATS = [name for name in THERE if name != "HEIF"]


def scene(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def same(path: Path, tmp: Path, layout: str) -> bool:
    config = tiny.config(tmp, *LAYOUTS[layout])
    stored = pictures.picture(path, pictures.Layout.of(config.data))
    expected = CentreCrop(config.data)(stored, 0, 0)
    assert expected.std() > 5
    return np.array_equal(crop_of(path, preprocessing(config)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_picture_with_any_orientation_has_the_same_bits(format_: str, layout: str, tmp_path: Path) -> None:
    for orientation, size in product(range(1, 9), [(36, 28), (61, 97), (400, 300)]):
        path = tmp_path / f"{orientation}-{size[0]}.{SUFFIXES[format_]}"
        save(path, scene(*size), orientation, format_)
        assert same(path, tmp_path, layout), path.name


def pictures_of_modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(scene(60, 50))
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (50, 1)))
    grey = rgb.convert("L")
    with_alpha, grey_with_alpha = rgb.copy(), grey.copy()
    with_alpha.putalpha(alpha)
    grey_with_alpha.putalpha(alpha)
    return {
        "rgba.png": with_alpha,
        "la.png": grey_with_alpha,
        "grey.png": grey,
        "grey.jpg": grey,
        "two.png": grey.convert("1"),
        "palette.png": rgb.quantize(20),
        "palette.gif": rgb.quantize(20),
        "clear.webp": with_alpha,
        "cmyk.jpg": rgb.convert("CMYK"),
        "grey16.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "grey16.tif": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "plain.bmp": rgb,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", pictures_of_modes())
def test_a_picture_of_any_mode_has_the_same_bits(name: str, layout: str, tmp_path: Path) -> None:
    pictures_of_modes()[name].save(tmp_path / name)
    assert same(tmp_path / name, tmp_path, layout)


@pytest.mark.parametrize("name", ["one colour", "palette"])
def test_a_transparent_colour_shows_the_background(name: str, tmp_path: Path) -> None:
    rgb = Image.fromarray(scene(60, 50))
    rgb.paste((7, 8, 9), (0, 0, 30, 50))
    if name == "palette":
        rgb.quantize(20).save(tmp_path / "a.png", transparency=3)
    else:
        rgb.save(tmp_path / "a.png", transparency=(7, 8, 9))
    assert same(tmp_path / "a.png", tmp_path, "of JPEGs, padded, on a colour")


def test_what_the_script_does_not_convert_is_refused(tmp_path: Path) -> None:
    given = preprocessing(tiny.config(tmp_path))
    dark = Image.fromarray(np.full((50, 60), 300, np.uint16))
    floats = Image.fromarray(np.linspace(0, 1, 3000, dtype=np.float32).reshape(50, 60))
    long = Image.fromarray(scene(300, 10))
    refused = {
        "dark.png": (dark, "grey values 300..300"),
        "floats.tif": (floats, "mode F"),
        "long.png": (long, "too elongated"),
    }
    for name, (image, said) in refused.items():
        image.save(tmp_path / name)
        with pytest.raises(ValueError, match=said):
            crop_of(tmp_path / name, given)


def test_a_picture_of_a_phone_is_refused_by_name_and_avif_is_not_taken_for_one(tmp_path: Path) -> None:
    given, path = preprocessing(tiny.config(tmp_path)), tmp_path / "phone"
    heads = [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix", b"mif1\0\0\0\0mif1miaf"]
    contents = [b"\0\0\0\x18ftyp" + head + bytes(40) for head in heads]
    if "HEIF" in THERE:
        save(path, scene(60, 50), 1, "HEIF")
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="HEIC, which this script does not read; save it as JPEG"):
            crop_of(path, given)
    path.write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40))
    with pytest.raises(UnidentifiedImageError):
        crop_of(path, given)
