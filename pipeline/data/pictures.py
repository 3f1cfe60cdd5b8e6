"""A picture's file becomes uint8 RGB pixels as people see them, for `data`, `eval`, `predict` and heat maps alike.

A picture is turned as its EXIF orientation says, transparency shows a stated background, and grey values of more
than 8 bits keep their order: nothing is clipped. What has no stated rule is refused by name.
"""

import importlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError, features

from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig

Pixels = npt.NDArray[np.uint8]
JPEG_QUALITY = 95
MOST_ELONGATED = 20
"""longest side over the shortest: a store with the aspect ratio kept has to stay of a known size"""
DARKEST_16_BIT = 4096
"""largest 16-bit value below which a picture would be black to the eye: 8, 10 or 12 bits in a 16-bit file"""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how the pixels are turned; 5 to 8 exchange width and height"""
GREY_OF_8_BITS = ("1", "L", "LA", "La")
GREY_OF_MORE_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
DAMAGE = (  # what Pillow raises for bad pictures
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

cv2.setNumThreads(0)  # one picture is one thread's work, here and in loader processes
warnings.filterwarnings("ignore", module="PIL")  # of metadata; what concerns the pixels is an error
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"]
if "avif" in features.modules and features.check("avif"):  # Pillow 11.3, and not every build of it
    FORMATS.append("AVIF")
with suppress(ImportError):  # the extra `heic`
    importlib.import_module("pillow_heif").register_heif_opener(decode_threads=1)
    FORMATS.append("HEIF")
NEEDS_HEIF = "HEIC, which needs the package pillow-heif: .venv/bin/pip install --editable '.[heic]' in Plumage's folder"
HEIF_BRANDS = tuple(b"heic heix heim heis hevc hevx hevm hevs".split())
WHAT_TO_GIVE = f"the formats are {', '.join(FORMATS)}"


class PictureError(DataError):
    """A file is no picture, is damaged, or is one whose pixels have no stated rule."""


@dataclass(frozen=True)
class Layout:
    """How a store holds its pictures."""

    resize: Literal["squash", "short_side"]
    resize_px: int
    format: Literal["packed", "jpeg"]
    background: tuple[int, int, int] = (255, 255, 255)
    """colour behind transparent pixels, RGB 0..255"""

    @classmethod
    def of(cls, config: DataConfig) -> "Layout":
        """The layout that a configuration asks for."""
        return cls(config.resize, config.resize_px, config.store, config.background)

    @property
    def name(self) -> str:
        """The folder's name: "store-squash512-packed", or "store-squash512-on000000-packed" on a black background."""
        white = self.background == (255, 255, 255)
        background = "" if white else f"-on{bytes(self.background).hex()}"
        return f"store-{self.resize}{self.resize_px}{background}-{self.format}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in the store, in pixels, of a picture of this width and height."""
        if self.resize == "squash":
            return self.resize_px, self.resize_px
        scale = self.resize_px / min(width, height)
        return max(self.resize_px, round(width * scale)), max(self.resize_px, round(height * scale))


def picture(path: Path, layout: Layout) -> Pixels:
    """A picture as a store of this layout gives it back: uint8 [H, W, 3], RGB.

    Raises:
        PictureError: it does not decode in full.
    """
    content, _ = make_entry(path, layout)
    return _given_back(content, layout)


def picture_in_memory(given: Image.Image | Pixels, layout: Layout, name: str) -> Pixels:
    """As `picture`, of one that is decoded already.

    A JPEG that is far larger than the layout's size differs a little from its file, which is scaled while it decodes.

    Args:
        given: an image of Pillow, which is turned as its EXIF orientation says, or uint8 [H, W, 3], RGB, as it is seen.
        name: what stands for it in an error.

    Raises:
        PictureError: it is too elongated, or its values have no stated rule.
    """
    with _faults(name):
        if isinstance(given, Image.Image):
            given.load()
            given = _upright(given, layout.background, _turn(given))
        height, width = given.shape[:2]
        _check_ratio(width, height)
        return _given_back(_as_stored(given, *layout.size(width, height), layout), layout)


def make_entry(path: Path, layout: Layout) -> tuple[Pixels, dict[str, int | bool]]:
    """A picture as it goes into the store, and its row of the index.

    Returns:
        uint8: pixels [H, W, 3], or JPEG's bytes [n]; and store_width, store_height, `sample_table.PICTURE_COLUMNS`.

    Raises:
        PictureError: it does not decode in full.
    """
    pixels, facts = decode(path, layout)
    width, height = layout.size(int(facts["width"]), int(facts["height"]))
    return _as_stored(pixels, width, height, layout), {"store_width": width, "store_height": height, **facts}


def _as_stored(pixels: Pixels, width: int, height: int, layout: Layout) -> Pixels:
    """Pixels at the size of the store: [height, width, 3], or JPEG's bytes [n]."""
    pixels = np.ascontiguousarray(resized(pixels, width, height))
    if layout.format == "packed":
        return pixels
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1], np.uint8)


def _given_back(content: Pixels, layout: Layout) -> Pixels:
    """The pixels of a picture of the store."""
    if layout.format == "packed":
        return content
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB), np.uint8)


def decode(path: Path, layout: Layout) -> tuple[Pixels, dict[str, int | bool]]:
    """Decode a picture in full, turned as people see it; of several frames the first.

    Returns:
        uint8 [H, W, 3], RGB, for a JPEG perhaps at 1/2, 1/4 or 1/8 of its size, where that is enough for the layout;
        and `sample_table.PICTURE_COLUMNS`: width and height are those of the whole picture, turned.

    Raises:
        PictureError: it does not decode in full, is too large or too elongated, or its values have no stated rule.
    """
    with _opened(path) as image:
        if image.format not in ("JPEG", "MPO"):
            image.load()  # a PNG's orientation may stand behind its pixels, and a TIFF turns itself
        turn, grey = _turn(image), image.mode in GREY_OF_8_BITS + GREY_OF_MORE_BITS
        swapped = turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
        width, height = image.size[::-1] if swapped else image.size
        target = layout.size(width, height)
        if not grey:  # libjpeg scales by 1/2, 1/4 or 1/8 while decoding, never below the target
            image.draft("RGB", target[::-1] if swapped else target)
        pixels = _upright(image, layout.background, turn)
        return pixels, {"width": width, "height": height, "grey": grey, "file_bytes": path.stat().st_size}


def resized(picture: Pixels, width: int, height: int) -> Pixels:
    """Resize with anti-aliasing: area averages where it shrinks, then bicubic where it grows."""
    rows, columns = picture.shape[:2]
    if columns > width or rows > height:
        shrunk = min(columns, width), min(rows, height)
        picture = np.asarray(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def stored_pixels(paths: Sequence[Path], layout: Layout) -> int:
    """The number of pixels that pictures take in a store; headers are read only where they matter.

    A picture that cannot be read counts 0: `make_entry` names it.
    """
    if layout.resize == "squash":
        return len(paths) * layout.resize_px**2
    total = 0
    for path in paths:
        try:
            with _opened(path) as image:
                width, height = layout.size(*image.size)
        except PictureError:
            continue
        total += width * height
    return total


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read and whose size is bounded; what is wrong with it is a `PictureError`."""
    with _faults(path):
        if not path.is_file():  # a pipe would be waited for without end
            raise ValueError("not a file" if path.exists() else "missing")
        # from a stream: by its path Pillow 13 maps a turned, uncompressed TIFF into memory in a wrong shape
        with path.open("rb") as stream:
            if "HEIF" not in FORMATS and _is_heif(stream.read(64)):
                raise ValueError(NEEDS_HEIF)
            with Image.open(stream, formats=FORMATS) as image:
                _check_ratio(*image.size)
                yield image


@contextmanager
def _faults(name: object) -> Iterator[None]:
    """What is wrong with a picture is a `PictureError` with its name."""
    try:
        yield
    except DAMAGE as error:
        raise PictureError(f"{name}: {reason_of(error)}") from error


def _check_ratio(width: int, height: int) -> None:
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ValueError(
            f"{width} x {height} pixels, and a side may be {MOST_ELONGATED} times as long as the other"
        )


def _is_heif(head: bytes) -> bool:
    """Whether a file begins as one with pictures of HEVC: its major brand, or a compatible one, says so."""
    return head[4:8] == b"ftyp" and any(brand in head[8:] for brand in HEIF_BRANDS)


def reason_of(error: BaseException) -> str:
    """What is wrong with a picture, in words without its name; error: one of `DAMAGE`."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the pixels are turned to be seen upright; None: as they lie."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:  # of metadata alone; viewers show such a picture as it lies, too
        return None


def _upright(image: Image.Image, background: tuple[int, int, int], turn: Image.Transpose | None) -> Pixels:
    """The pixels of a picture, turned: uint8 [H, W, 3], RGB."""
    shown = _as_rgb(image, background)
    return np.asarray(shown if turn is None else shown.transpose(turn))


def _as_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The picture in mode RGB, on the background where it is transparent."""
    if image.mode in GREY_OF_MORE_BITS:
        return _of_more_bits(image, background)
    if image.mode not in GREY_OF_8_BITS + COLOUR:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; save it as RGB")
    image.load()
    if not _has_transparency(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    colour = image.info.get("transparency", ())
    if (
        image.mode == "RGB" and max(colour, default=0) > 255
    ):  # of a PNG with 16 bits a channel, of which Pillow keeps 8
        image = image.copy()  # the caller may keep the other
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _has_transparency(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return "transparency" in image.info or image.mode[-1] in "Aa" or palette.endswith("A")


def _of_more_bits(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Grey values of 12 or 16 bits keep their upper 8, as those of 16-bit colours do; floats of 0..1 become 0..255."""
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 1):  # not a number, too
            raise ValueError(f"its floating-point values are {lowest:g}..{highest:g}; scale them to 0..1")
        grey = np.rint(255 * values).astype(np.uint8)
    else:
        tags = getattr(image, "tag_v2", {})
        bits = 12 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 16
        if lowest < 0 or highest >= 2**bits:
            raise ValueError(f"its values are {lowest}..{highest}; scale them to 0..{2**bits - 1}")
        if bits == 16 and 0 < highest < DARKEST_16_BIT:
            raise ValueError(
                f"its 16-bit values are {lowest}..{highest}, all but black; scale them to 0..65535, "
                "or save it with 8 bits"
            )
        grey = (values >> (bits - 8)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    if (transparent := image.info.get("transparency")) is not None:
        pixels[values == transparent] = background
    return Image.fromarray(pixels)
