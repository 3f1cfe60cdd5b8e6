"""Pictures of every kind a camera, a scanner or an editor writes, and damaged ones."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from harness import Case, Failed, Outcome, call, damaged, judge
from PIL import Image
from world import World

Pixels = npt.NDArray[np.uint8]
TURN = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: np.rot90}  # fmt: skip
"""what a viewer does with a picture of this EXIF orientation"""
LOSSLESS = ["PNG", "TIFF", "BMP"]
LOSSY = ["JPEG", "WEBP"]
BACKGROUND = 255  # data.background's default: white
TOLERANCE = 12.0  # mean difference of levels that JPEG may make


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    makers = [_good, _good, _damaged, _extreme]
    while True:
        yield draw.choice(makers)(world, draw)


def scene(draw: random.Random, width: int, height: int) -> Pixels:
    """A picture without a symmetry: uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows * 255 // max(1, height - 1), columns * 255 // max(1, width - 1)
    blue = np.full((height, width), draw.randrange(256))
    return np.stack([red, green, blue], -1).astype(np.uint8)


def _good(world: World, draw: random.Random) -> Case:
    """A whole picture of some mode, format and orientation, and what it has to look like."""
    pixels = scene(draw, draw.randrange(48, 120), draw.randrange(48, 120))
    grey = np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, -1)
    alpha = (np.indices(pixels.shape[:2]).sum(0) % 256).astype(np.uint8)
    veil = alpha[..., None] / 255
    behind = BACKGROUND * (1 - veil)
    sixteen = grey[..., 0].astype(np.uint16) * 257
    mode = draw.choice(["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "F255"])
    image, true, formats = {
        "RGB": lambda: (Image.fromarray(pixels), pixels, LOSSLESS + LOSSY),
        "L": lambda: (Image.fromarray(grey[..., 0]), grey, ["PNG", "TIFF", "BMP", "JPEG"]),
        "1": lambda: (Image.fromarray(grey[..., 0] > 127), np.where(grey > 127, 255, 0), ["PNG", "TIFF", "BMP"]),
        "P": lambda: (Image.fromarray(grey[..., 0]).convert("P"), grey, ["PNG", "TIFF", "BMP", "GIF"]),
        "RGBA": lambda: (Image.fromarray(np.dstack([pixels, alpha])), pixels * veil + behind, ["PNG", "TIFF"]),
        "LA": lambda: (Image.fromarray(np.dstack([grey[..., 0], alpha])), grey * veil + behind, ["PNG", "TIFF"]),
        "CMYK": lambda: (Image.fromarray(pixels).convert("CMYK"), pixels, ["TIFF", "JPEG"]),
        "I;16": lambda: (Image.fromarray(sixteen), grey, ["PNG", "TIFF"]),
        "I": lambda: (Image.fromarray(sixteen.astype(np.int32)), grey, ["TIFF"]),
        "F": lambda: (Image.fromarray(grey[..., 0].astype(np.float32) / 255), grey, ["TIFF"]),
        "F255": lambda: (Image.fromarray(grey[..., 0].astype(np.float32)), None, ["TIFF"]),
    }[mode]()  # fmt: skip
    format_, orientation = draw.choice(formats), draw.choice([1, 1, *TURN])
    content, orientation = _saved(image, format_, orientation)
    if true is not None and orientation in TURN:
        true = TURN[orientation](true)
    return _case(world, f"{mode} in {format_}, orientation {orientation}", content, format_.lower(), true)


def _saved(image: Image.Image, format_: str, orientation: int) -> tuple[bytes, int]:
    stream, exif = io.BytesIO(), Image.Exif()
    if format_ in {"BMP", "GIF"}:  # have no EXIF
        orientation = 1
    exif[0x0112] = orientation
    extra = {} if format_ in {"BMP", "GIF"} else {"exif": exif}
    if format_ in LOSSY:
        extra["quality"] = 95
    image.save(stream, format_, **extra)
    return stream.getvalue(), orientation


def _damaged(world: World, draw: random.Random) -> Case:
    format_ = draw.choice(LOSSLESS + LOSSY + ["GIF"])
    content, _ = _saved(Image.fromarray(scene(draw, 80, 60)), format_, 1)
    way, content = damaged(content, draw)
    return _case(world, f"{format_}, {way}", content, draw.choice([format_.lower(), "jpg"]), None)


def _extreme(world: World, draw: random.Random) -> Case:
    """Sizes, names and kinds at the edge."""
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    declared = bytearray(_saved(Image.new("RGB", (8, 8)), "PNG", 1)[0])
    declared[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    frames = io.BytesIO()
    Image.new("RGB", (60, 50), (9, 99, 199)).save(
        frames, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 50))]
    )

    def plain(width: int, height: int) -> bytes:
        return _saved(Image.fromarray(scene(draw, width, height)), "PNG", 1)[0]

    contents = {
        "1x1": plain(1, 1),
        "1x3000": plain(1, 3000),
        "4000x2": plain(4000, 2),
        "400 megapixels": huge.getvalue(),
        "a size of 2**31 declared": bytes(declared),
        "an animation": frames.getvalue(),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
        "PDF": b"%PDF-1.4\n",
        "HTML": b"<!DOCTYPE html><title>404</title>",
        "a link to nothing": b"",
    }
    what = draw.choice(sorted(contents))
    return _case(world, what, contents[what], draw.choice(["jpg", "png"]), None)


def _case(world: World, what: str, content: bytes, suffix: str, true: Pixels | None) -> Case:
    name = f"bird.{suffix}"

    def body(folder: Path) -> str:
        (folder / name).write_bytes(content)
        world.copy(folder, "data", "runs")
        words = [*world.overrides(folder)]
        return judge(
            call(folder, "predict", str(folder / name), *words),
            lambda outcome: _right(folder / name, outcome, true),
        )

    return Case(f"{what}, as {name}", body)


def _right(path: Path, outcome: Outcome, true: Pixels | None) -> str | None:
    """The answer is a distribution; the decoded pixels are what a viewer shows."""
    from pipeline.data.pictures import Layout, picture

    answer = json.loads(outcome.stdout, parse_constant=_no_constant)
    shares = [entry["probability"] for prediction in answer["predictions"] for entry in prediction["classes"]]
    if not shares or not all(0 <= share <= 1 for share in shares):
        return f"no probabilities: {outcome.stdout[:300]}"
    if true is None:
        return None
    expected = np.asarray(
        Image.fromarray(np.clip(true, 0, 255).astype(np.uint8)).resize((40, 40), Image.Resampling.BOX), float
    )
    off = np.abs(picture(path, Layout("squash", 40, "packed")) - expected).mean()
    return (
        f"pixels differ by {off:.0f} levels on average from what a viewer shows" if off > TOLERANCE else None
    )


def _no_constant(text: str) -> float:
    raise Failed(f"{text} in JSON")
