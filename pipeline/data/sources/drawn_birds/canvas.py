"""A small paint box: smooth shapes, feathers, blurred landscapes, perches, leaves and light.

Pictures are uint8 [H, W, 3] in RGB; points are float [..., 2], x to the right and y down. Nothing
here knows a bird: `bird.py` says what to paint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Colour = Sequence[float] | NDArray[np.float64]

SHIFT = 4  # cv2's fixed point: coordinates in sixteenths of a pixel
LANDSCAPES: dict[str, tuple[tuple[tuple[int, int, int], ...], str]] = {
    # name: colours from top to bottom, and what the bird stands on
    "sky": (((120, 170, 222), (170, 205, 235), (214, 228, 236)), "branch"),
    "overcast": (((176, 186, 192), (198, 204, 206), (216, 217, 212)), "branch"),
    "foliage": (((92, 132, 66), (64, 104, 52), (46, 78, 42)), "branch"),
    "autumn": (((196, 148, 82), (160, 104, 58), (104, 72, 48)), "branch"),
    "grass": (((176, 190, 150), (140, 166, 88), (98, 132, 60)), "ground"),
    "water": (((150, 176, 186), (98, 140, 160), (70, 112, 134)), "rock"),
    "shore": (((168, 192, 200), (190, 178, 150), (176, 156, 122)), "rock"),
}


@dataclass(frozen=True)
class Frame:
    """A place, an angle, a size and perhaps a mirror: takes points of a figure to the picture."""

    matrix: NDArray[np.float64]  # [2, 3]

    def __call__(self, points: ArrayLike) -> Points:
        """Take points [..., 2] to the picture."""
        placed: Points = np.asarray(points, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return placed

    def moved(self, scale: float, offset: Points) -> "Frame":
        """The same frame in a picture that is `scale` times as large and shifted by `offset`."""
        matrix = self.matrix * scale
        matrix[:, 2] += offset
        return Frame(matrix)

    def turned(self, origin: ArrayLike, degrees: float, scale: float) -> "Frame":
        """A frame inside this one: at `origin`, turned clockwise, its unit `scale` of this unit."""
        angle = np.deg2rad(degrees)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return Frame(np.column_stack([self.matrix[:, :2] @ turn, self(origin)]))


@dataclass(frozen=True)
class Canvas:
    """A picture to paint on and the mask of what is painted, both `scale` times as fine.

    `origin` (x, y) is where the canvas lies in the picture: all points are the picture's.
    """

    image: Image  # [H * scale, W * scale, 3]
    mask: Image  # [H * scale, W * scale]: 0 open, 255 painted
    scale: int
    origin: tuple[int, int]

    @staticmethod
    def of(
        height: int, width: int, colour: Colour, scale: int = 2, origin: tuple[int, int] = (0, 0)
    ) -> "Canvas":
        """An empty canvas; `colour` shows where only the mask is painted."""
        image = np.zeros((height * scale, width * scale, 3), np.uint8)
        cv2.rectangle(image, (0, 0), (width * scale, height * scale), _rgb(colour), -1)
        return Canvas(image, np.zeros(image.shape[:2], np.uint8), scale, origin)

    def fill(self, shapes: Points, colour: Colour, cover: bool = True) -> None:
        """Fill one shape [n, 2] or several [m, n, 2]; without `cover` the mask stays as it is."""
        for shape in self._fixed(shapes):
            cv2.fillPoly(self.image, [shape], _rgb(colour), cv2.LINE_AA, SHIFT)
        if cover:
            self.cover(shapes)

    def cover(self, shapes: Points) -> None:
        """Fill shapes in the mask alone: what is painted there already belongs to the figure."""
        for shape in self._fixed(shapes):
            cv2.fillPoly(self.mask, [shape], 255, cv2.LINE_AA, SHIFT)

    def soften(self, reach: float) -> None:
        """Blur what is painted by about `reach` pixels of the picture."""
        sides = [2 * max(1, round(1.2 * reach * self.scale)) + 1] * 2
        cv2.blur(self.image, sides, dst=self.image)
        cv2.blur(self.image, sides, dst=self.image)

    def line(self, lines: Points, colour: Colour, thickness: float, cover: bool = True) -> None:
        """Draw one line [n, 2] or several [m, n, 2], `thickness` pixels of the picture wide."""
        width = max(1, round(thickness * self.scale))
        for points in self._fixed(lines):
            cv2.polylines(self.image, [points], False, _rgb(colour), width, cv2.LINE_AA, SHIFT)
            if cover:
                cv2.polylines(self.mask, [points], False, 255, width, cv2.LINE_AA, SHIFT)

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        """Points [..., n, 2] in cv2's fixed point: [m, n, 2]."""
        fixed = np.rint((points - self.origin) * (self.scale << SHIFT)).astype(np.int32)
        return fixed.reshape(-1, *fixed.shape[-2:])

    def shrunk(self) -> tuple[Image, Floats]:
        """The picture [H, W, 3] and its mask [H, W] in 0..1, at the picture's own size."""
        size = self.image.shape[1] // self.scale, self.image.shape[0] // self.scale
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(self.mask, size, interpolation=cv2.INTER_AREA)
        return image.astype(np.uint8, copy=False), np.asarray(mask, np.float32) / np.float32(255)


def smooth(points: ArrayLike, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve [n * steps, 2] through points [n, 2]."""
    knots = np.asarray(points, dtype=np.float64)
    around = np.stack([np.roll(knots, shift, axis=0) for shift in (1, 0, -1, -2)])
    curve: Points = np.einsum("sk,knd->nsd", _catmull_rom(steps), around).reshape(-1, 2)
    return curve


def leaves(base: ArrayLike, tip: ArrayLike, width: ArrayLike, widest: float = 0.5) -> Points:
    """Leaves, feathers, blades: pointed shapes [..., 18, 2] from `base` to `tip` ([..., 2] each).

    `width` ([...]) is reached at `widest` (0..1) of the way.
    """
    start, end = np.asarray(base, np.float64), np.asarray(tip, np.float64)
    along = end - start
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-9)
    across = np.stack([-along[..., 1], along[..., 0]], -1) / length[..., None]
    across = across * np.asarray(width, np.float64)[..., None]
    forward, aside = _leaf_profile(widest)
    shape: Points = (
        start[..., None, :]
        + along[..., None, :] * forward[:, None]
        + across[..., None, :] * (aside[:, None] / 2)
    )
    return shape


def disc(centre: ArrayLike, radius: float) -> Points:
    """A circle as a polygon [20, 2]."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.asarray(centre, np.float64) + radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def landscape(rng: np.random.Generator, name: str, height: int, width: int) -> Image:
    """What lies behind, out of focus: uint8 [height, width, 3]."""
    rows, columns = max(6, height // 8), max(6, width // 8)
    stops = np.array(LANDSCAPES[name][0], np.float64) + rng.normal(0, 6, (3, 3))
    where = np.clip(np.linspace(-0.3, 2.3, rows) + rng.uniform(-0.25, 0.25), 0, 2)
    column = np.stack([np.interp(where, [0, 1, 2], stops[:, band]) for band in range(3)], -1)
    small = np.repeat(column[:, None], columns, axis=1).astype(np.float32)
    spread = 9 if name in ("sky", "overcast") else 20
    for _ in range(14):
        centre = (int(rng.integers(columns)), int(rng.integers(rows)))
        axes = (int(rng.integers(1, columns // 4 + 2)), int(rng.integers(1, rows // 5 + 2)))
        if name in ("water", "shore"):
            axes = axes[0] + 2, 1
        tint = small[centre[1], centre[0]] + rng.normal(0, spread) + rng.normal(0, spread / 4, 3)
        cv2.ellipse(small, centre, axes, 0, 0, 360, _rgb(np.clip(tint, 12, 244)), -1)
    if name in ("grass", "foliage"):
        _stalks(rng, small, upright=name == "grass")
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.6, 1.3)).astype(np.float32)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(large, 0, 255).astype(np.uint8)
    if name in ("foliage", "autumn", "water"):
        _bokeh(rng, picture)
    return picture


def _stalks(rng: np.random.Generator, small: Floats, upright: bool) -> None:
    rows, columns = small.shape[:2]
    for _ in range(12):
        x, lean = int(rng.integers(columns)), int(rng.integers(-4, 5)) * (1 if upright else 3)
        top = int(rng.integers(rows // 4, rows)) if upright else 0
        tint = np.clip(small[-1, x] + rng.normal(0, 26), 12, 244)
        cv2.line(small, (x, rows), (x + lean, top), _rgb(tint), 1)


def _bokeh(rng: np.random.Generator, picture: Image) -> None:
    height, width = picture.shape[:2]
    glow = np.zeros((height // 2, width // 2), np.uint8)
    for _ in range(int(rng.integers(3, 11))):
        centre = int(rng.integers(width // 2)), int(rng.integers(height // 3))
        radius = int(rng.uniform(0.01, 0.045) * width)
        cv2.circle(glow, centre, radius + 1, int(rng.integers(20, 62)), -1, cv2.LINE_AA)
    large = cv2.resize(cv2.blur(glow, (3, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.add(picture, cv2.merge([large, large, large // 2]), dst=picture)


def perch(rng: np.random.Generator, canvas: Canvas, kind: str, foot: Points, unit: float) -> None:
    """Paint what the bird stands on: its top passes through `foot` ([2]); `unit` is a body length."""
    width = canvas.image.shape[1] / canvas.scale
    slope = rng.uniform(-0.16, 0.16) if kind == "branch" else 0.0
    if kind == "branch":
        _branch(rng, canvas, foot, unit, slope)
        return
    x = np.linspace(-0.1 * width, 1.1 * width, 9)
    low = canvas.image.shape[0] / canvas.scale * 1.1
    if kind == "rock":
        half = rng.uniform(0.6, 0.95) * unit
        bumps = rng.uniform(0.85, 1.1, 7)
        angle = np.linspace(np.pi, 2 * np.pi, 7)
        top = np.stack([np.cos(angle) * half * bumps, np.sin(angle) * 0.42 * unit * bumps], -1)
        top[2:5, 1] = -0.42 * unit
        outline = smooth(np.vstack([top, [[half, unit], [-half, unit]]]) + foot + [0, 0.42 * unit])
        grey = rng.uniform(88, 140) * np.array([1.0, 0.97, 0.9])
        canvas.fill(outline, grey)
        canvas.fill(np.add(outline, [0.05 * unit, 0.10 * unit]), grey * 0.8)
        canvas.fill(np.add(outline, [0.12 * unit, 0.26 * unit]), grey * 0.64)
        specks = foot + unit * np.column_stack([rng.uniform(-0.4, 0.4, 24), rng.uniform(0.08, 0.5, 24)])
        lengths = unit * np.column_stack([rng.uniform(0.01, 0.06, 24), rng.normal(0, 0.012, 24)])
        canvas.fill(leaves(specks, specks + lengths, np.full(24, 0.022 * unit)), grey * 0.72)
        return
    soil = np.column_stack([x, foot[1] + 0.03 * unit * rng.normal(0, 0.5, 9)])
    colour = np.array([84.0, 104, 46]) + rng.normal(0, 7, 3)
    canvas.fill(np.vstack([soil, [[1.1 * width, low], [-0.1 * width, low]]]), colour)
    for depth in (0.05, 0.22, 0.42, 0.66):
        if foot[1] + depth * unit < low:
            blades(rng, canvas, foot[1] + depth * unit, unit, 44)


def _branch(rng: np.random.Generator, canvas: Canvas, foot: Points, unit: float, slope: float) -> None:
    width = canvas.image.shape[1] / canvas.scale
    thick = unit * rng.uniform(0.09, 0.15)
    bark = np.array([112.0, 88, 66]) * rng.uniform(0.7, 1.2) + rng.normal(0, 5, 3)
    x = np.linspace(-0.1 * width, 1.1 * width, 9)
    top = np.column_stack([x, foot[1] + slope * (x - foot[0]) + rng.normal(0, 0.03 * thick, 9)])
    taper = thick * np.linspace(0.75, 1.2, 9)[:: rng.choice([-1, 1])]
    lower = top + np.column_stack([np.zeros(9), taper])
    side = -1 if rng.random() < 0.5 else 1
    fork = foot + np.array([side * 0.5 * unit, side * 0.5 * unit * slope + thick * 0.5])
    twig = fork + unit * np.array([side * rng.uniform(0.3, 0.6), rng.uniform(0.15, 0.5)])
    canvas.line(np.stack([fork, twig]), bark * 0.8, thick * 0.4)
    canvas.fill(np.vstack([top, lower[::-1]]), bark)
    canvas.fill(np.vstack([(top + lower) / 2 + [0, 0.1 * thick], lower[::-1]]), bark * 0.68)
    canvas.line(np.add(top, [0, 0.16 * thick]), np.clip(bark * 1.3, 0, 255), thick * 0.14)
    marks = np.column_stack([rng.uniform(0, width, 14), rng.uniform(0.2, 0.8, 14) * thick])
    marks[:, 1] += foot[1] + slope * (marks[:, 0] - foot[0])
    dashes = leaves(marks, marks + unit * np.array([0.12, 0.12 * slope]), np.full(14, 0.018 * unit))
    canvas.fill(dashes, bark * 0.5)
    count = int(rng.integers(0, 5))
    starts = np.vstack([np.repeat(twig[None], count, 0)])
    sprig(rng, canvas, starts, unit)


def sprig(rng: np.random.Generator, canvas: Canvas, starts: Points, unit: float) -> None:
    """Paint a leaf at each of `starts` ([n, 2])."""
    green = np.array([[84, 128, 54], [112, 140, 62], [150, 120, 50], [62, 100, 52]][rng.integers(4)])
    for start in starts:
        angle, length = rng.uniform(0, 2 * np.pi), unit * rng.uniform(0.16, 0.3)
        tip = start + length * np.array([np.cos(angle), np.sin(angle)])
        tint = np.clip(green * rng.uniform(0.75, 1.2), 0, 255)
        canvas.fill(leaves(start, tip, length * 0.42, 0.4), tint)
        canvas.fill(leaves(start, tip, length * 0.14, 0.5), np.clip(tint * 1.18, 0, 255))


def blades(rng: np.random.Generator, canvas: Canvas, y: float, unit: float, count: int) -> None:
    """Paint blades of grass that grow at height `y` over the whole width."""
    x = rng.uniform(-0.05, 1.05, count) * canvas.image.shape[1] / canvas.scale
    base = np.column_stack([x, y + unit * rng.uniform(-0.02, 0.25, count)])
    tip = base + unit * np.column_stack([rng.normal(0, 0.09, count), -rng.uniform(0.08, 0.26, count)])
    tints = np.array([96.0, 128, 52]) * rng.uniform(0.65, 1.3, (count, 1)) + rng.normal(0, 6, (count, 3))
    for shape, tint in zip(leaves(base, tip, np.full(count, 0.035 * unit), 0.3), tints, strict=True):
        canvas.fill(shape, np.clip(tint, 0, 255))


def rounded(image: Image, mask: Floats, unit: float, texture: Floats) -> Floats:
    """Shade a flat figure as a round, feathered body lit from above: float32 [H, W, 3]."""
    quarter = cv2.resize(mask, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    bulge = cv2.GaussianBlur(quarter, (0, 0), max(0.5, unit * 0.11 / 4))
    fall = cv2.Sobel(bulge, cv2.CV_32F, 0, 1, ksize=3) * (unit / 4)
    side = cv2.Sobel(bulge, cv2.CV_32F, 1, 0, ksize=3) * (unit / 4)
    light = np.clip(1.0 + 0.045 * fall + 0.02 * side, 0.5, 1.22)
    large = cv2.resize(light, mask.shape[::-1], interpolation=cv2.INTER_LINEAR) * texture
    return image.astype(np.float32) * np.asarray(large, np.float32)[..., None]


@lru_cache(maxsize=1)
def _feather_texture() -> Floats:
    """Fine strokes along x: float32 [512, 512] around 1."""
    noise = np.random.default_rng(0).normal(0, 1, (512, 512)).astype(np.float32)
    strokes = cv2.GaussianBlur(noise, (0, 0), sigmaX=7, sigmaY=1.6, borderType=cv2.BORDER_REFLECT)
    return np.asarray(1 + 0.055 * strokes / strokes.std(), np.float32)


def feathers(frame: Frame, window: tuple[int, int, int, int]) -> Floats:
    """The texture as it lies on a figure's frame in a window (left, top, right, bottom): [h, w]."""
    left, top, right, bottom = window
    matrix = frame.matrix.copy()
    matrix[:, :2] /= 200.0  # texels a unit
    matrix[:, 2] -= matrix[:, :2] @ [256.0, 256.0] + [left, top]
    size = right - left, bottom - top
    grain = cv2.warpAffine(_feather_texture(), matrix, size, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(grain, np.float32)


def over(upper: Floats, mask: Floats, lower: Floats) -> Floats:
    """Lay one picture over another where `mask` ([H, W], 0..1) says so: float32 [H, W, 3]."""
    return np.asarray(cv2.blendLinear(upper, lower, mask, 1 - mask), np.float32)


def lit(rng: np.random.Generator, picture: Floats) -> Image:
    """The light of the day: brightness, contrast, a cast, a gradient and grain; uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    gain = rng.uniform(0.84, 1.12) * (1 + rng.normal(0, 0.022, 3))
    slope_x, slope_y = rng.normal(0, 0.07, 2)
    ramp = 1 + slope_x * np.linspace(-1, 1, width)[None] + slope_y * np.linspace(-1, 1, height)[:, None]
    grain = _grain()
    top, left = rng.integers(0, 64, 2)
    noise = np.resize(grain[top:, left:], (height, width)) * np.float32(rng.uniform(0.4, 1.6))
    picture = picture * (ramp[..., None] * gain).astype(np.float32)
    picture += noise[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _grain() -> Floats:
    return np.random.default_rng(1).normal(0, 2.2, (448, 448)).astype(np.float32)


@lru_cache(maxsize=8)
def _catmull_rom(steps: int) -> NDArray[np.float64]:
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    powers = np.hstack([np.ones_like(t), t, t**2, t**3])
    basis = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    return np.asarray(powers @ basis)


@lru_cache(maxsize=16)
def _leaf_profile(widest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    forward = (1 - np.cos(np.linspace(0, np.pi, 10))) / 2
    half = np.sin(np.pi * forward ** (np.log(0.5) / np.log(widest))) ** 0.8
    return np.concatenate([forward, forward[-2:0:-1]]), np.concatenate([half, -half[-2:0:-1]])


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in colour)
    return red, green, blue
