"""The page's script makes the crops of predict.py, to the bit; what it cannot decode it refuses. By node."""

import base64
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from pipeline.export.description import preprocessing
from pipeline.export.standalone import crop_of
from tests.helpers import tiny, web_pixels

pytestmark = pytest.mark.skipif(web_pixels.NODE is None, reason="no node here: apt-get install nodejs")
Pixels = npt.NDArray[np.uint8]


def scene(width: int, height: int) -> Pixels:
    """Soft colours with noise: no two pixels are likely to be equal."""
    random = np.random.default_rng(width * 1000 + height)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    soft = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(soft + random.integers(-12, 12, soft.shape), 0, 255).astype(np.uint8)


def differing(paths: list[Path], given: dict[str, Any]) -> dict[str, str]:
    """The files whose crops are others than those of predict.py, and how."""
    said = {}
    for path, found in zip(paths, web_pixels.crops(paths, given), strict=True):
        wanted = crop_of(path, given)
        if "error" in found:
            said[path.name] = found["error"]
        elif base64.b64decode(found["crop"]) != wanted.tobytes():
            shown = np.frombuffer(base64.b64decode(found["crop"]), np.uint8).reshape(wanted.shape)
            said[path.name] = f"differs by up to {np.abs(shown.astype(int) - wanted).max()}"
    return said


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    config = tiny.config(tmp_path, "data.resize=short_side", "data.background=[10, 200, 30]", "data.pad_px=3")
    return preprocessing(config)


def test_a_jpeg_of_any_kind_has_the_same_bits(given: dict[str, Any], tmp_path: Path) -> None:
    """Chroma subsampling, progressive scans, restarts, and sizes that libjpeg scales by 1, 2, 4 and 8."""
    paths = []
    for width, height in ((61, 47), (97, 163), (176, 211), (403, 370)):
        image = Image.fromarray(scene(width, height))
        for name, how in {
            "444": {"subsampling": 0},
            "422": {"subsampling": 1},
            "420": {"subsampling": 2},
            "progressive": {"progressive": True, "quality": 40},
            "restarts": {"restart_marker_blocks": 3},
            "rgb": {"keep_rgb": True},
        }.items():
            paths.append(tmp_path / f"{width}-{name}.jpg")
            image.save(paths[-1], **{"quality": 92} | how)
        paths.append(tmp_path / f"{width}-440.jpg")
        factor = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
        assert cv2.imwrite(str(paths[-1]), np.asarray(image), factor)
        paths.append(tmp_path / f"{width}-grey.jpg")
        image.convert("L").save(paths[-1])
    assert differing(paths, given) == {}


def test_a_png_of_any_kind_has_the_same_bits(given: dict[str, Any], tmp_path: Path) -> None:
    rgb = Image.fromarray(scene(83, 51))
    grey = rgb.convert("L")
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 83).astype(np.uint8), (51, 1)))
    clear, clear_grey = rgb.copy(), grey.copy()
    clear.putalpha(alpha)
    clear_grey.putalpha(alpha)
    pictures = {
        "rgb": (rgb, {}),
        "rgba": (clear, {}),
        "grey": (grey, {}),
        "la": (clear_grey, {}),
        "one bit": (grey.convert("1"), {}),
        "palette of 4": (rgb.quantize(4), {}),
        "palette": (rgb.quantize(200), {}),
        "palette, one clear": (rgb.quantize(20), {"transparency": 3}),
        "a clear colour": (rgb, {"transparency": rgb.getpixel((5, 5))}),
        "16 bits": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 251 + 7), {}),
    }
    paths = []
    for name, (picture, how) in pictures.items():
        paths.append(tmp_path / f"{name}.png")
        picture.save(paths[-1], **how)
    assert differing(paths, given) == {}


def test_a_turned_picture_has_the_same_bits(given: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for orientation, size in product(range(1, 9), [(61, 47), (300, 400)]):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for suffix in ("jpg", "png"):
            paths.append(tmp_path / f"{orientation}-{size[0]}.{suffix}")
            Image.fromarray(scene(*size)).save(paths[-1], exif=exif.tobytes())
    assert differing(paths, given) == {}


@pytest.mark.parametrize("resize", ["squash", "short_side"])
def test_a_small_picture_grows_to_within_one_level(resize: str, tmp_path: Path) -> None:
    """OpenCV takes another library for that, whose sums may round otherwise at a half."""
    given = preprocessing(tiny.config(tmp_path, f"data.resize={resize}"))
    paths = []
    for size in ((36, 28), (20, 90), (39, 39), (31, 24)):
        paths.append(tmp_path / f"{size[0]}.png")
        Image.fromarray(scene(*size)).save(paths[-1])
    shown = [
        np.frombuffer(base64.b64decode(found["crop"]), np.uint8) for found in web_pixels.crops(paths, given)
    ]
    wanted = [crop_of(path, given).reshape(-1) for path in paths]
    differences = np.concatenate([np.abs(a.astype(int) - b) for a, b in zip(shown, wanted, strict=True)])
    assert differences.max() <= 1
    assert (differences > 0).mean() < 0.06  # of OpenCV's own code, where the other library is missing: 5 %


def damaged(content: bytes) -> dict[str, bytes]:
    size = content.index(b"\xff\xc0") + 5
    scan = content.index(b"\xff\xda")
    return {
        "many.jpg": content[:-2] + content[scan:-2] * 200 + content[-2:],
        "vast.jpg": content[:size] + b"\xff\xff\xff\xff" + content[size + 4 :],
        "cut off.jpg": content[: len(content) // 2],
        "no picture.jpg": content[:20],
        "nothing.jpg": b"",
        "text.jpg": b"<svg xmlns='x'/>",
        "cut off.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    }


def test_a_damaged_file_is_refused_in_words(given: dict[str, Any], tmp_path: Path) -> None:
    whole, long = tmp_path / "whole.jpg", tmp_path / "long.png"
    Image.fromarray(scene(120, 90)).save(whole)
    Image.fromarray(scene(210, 10)).save(long)
    paths = [long]
    for name, content in damaged(whole.read_bytes()).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    said = {
        path.name: found.get("error")
        for path, found in zip(paths, web_pixels.crops(paths, given), strict=True)
    }
    assert said == {
        "long.png": "is too elongated with 210 × 10 pixels; crop it",
        "many.jpg": "has too many scans; save it again",
        "vast.jpg": "has 65535 × 65535 pixels; make it smaller",
        "cut off.jpg": "is cut off",
        "no picture.jpg": "is cut off",
        "nothing.jpg": "is not a picture that this page reads; save it as JPEG, PNG or WebP",
        "text.jpg": "is not a picture that this page reads; save it as JPEG, PNG or WebP",
        "cut off.png": "its header is damaged",
    }


def test_a_picture_of_a_phone_is_refused_by_name(given: dict[str, Any], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("heic", "mif1", "avif")]
    for path in paths:
        path.write_bytes(
            b"\0\0\0\x18ftyp" + path.name.encode() + b"\0\0\0\0mif1" + path.name.encode() + bytes(40)
        )
    heic = "is HEIC, which this page does not read; save it as JPEG"
    other = "is not a picture that this page reads; save it as JPEG, PNG or WebP"
    assert [found.get("error") for found in web_pixels.crops(paths, given)] == [heic, heic, other]
