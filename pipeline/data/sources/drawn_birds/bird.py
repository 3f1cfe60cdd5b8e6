"""A picture of one bird, and what a person would annotate in it.

The traits of `species.py` say how the bird looks. All else in a picture (pose, place, light, what is
behind and before the bird) says nothing about the species.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.sources.drawn_birds.canvas import (
    LANDSCAPES,
    Canvas,
    Image,
    Points,
    blades,
    disc,
    feathers,
    landscape,
    leaves,
    lit,
    over,
    perch,
    rounded,
    smooth,
    sprig,
)
from pipeline.data.sources.drawn_birds.pose import (
    BODY_OUTLINE,
    HEAD_OUTLINE,
    TAIL_LENGTHS,
    TAIL_TIPS,
    Pose,
    sample_pose,
)
from pipeline.data.sources.drawn_birds.species import BILLS, COLOURS, Species

PARTS = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing",
    "nape", "right eye", "right leg", "right wing", "tail", "throat",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A picture and what a person would annotate in it."""

    image: Image  # uint8 [H, W, 3], RGB
    box: tuple[float, float, float, float]  # x, y, width, height of the whole bird in pixels
    parts: tuple[tuple[float, float, int], ...]  # x, y, visible in the order of `PARTS`; 0, 0, 0 if not


def draw(species: Species, rng: np.random.Generator, long_side_px: int = 256) -> Drawing:
    """Draw one bird of a species; everything but the species comes from `rng`."""
    sides = long_side_px, round(long_side_px / rng.choice([1.0, 1.2, 4 / 3, 4 / 3, 1.5]))
    height, width = sides if rng.random() < 0.3 else sides[::-1]
    pose = sample_pose(species, rng, height, width)
    unit = pose.unit
    place = list(LANDSCAPES)[rng.integers(len(LANDSCAPES))]
    stand = LANDSCAPES[place][1]

    back = Canvas.of(height, width, (0, 0, 0), scale=1)
    back.image[:] = landscape(rng, place, height, width)
    perch(rng, back, stand, pose.feet.mean(axis=0), unit)
    left, top, right, bottom = pose.window
    bird = _bird(species, pose, rng)
    coat, mask = bird.shrunk()
    shaded = rounded(coat, mask, unit, feathers(pose.body, pose.window))
    picture = back.image.astype(np.float32)
    behind = picture[top:bottom, left:right]
    picture[top:bottom, left:right] = over(shaded, mask, behind)
    front = _in_front(rng, pose, stand, height, width)
    picture = over(front.image.astype(np.float32), front.shrunk()[1], picture)
    rows, columns = np.flatnonzero(mask.max(1) > 0.3), np.flatnonzero(mask.max(0) > 0.3)
    box = (left + columns[0], top + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    x, y, w, h = (float(value) for value in box)
    return Drawing(lit(rng, picture), (x, y, w, h), _parts(species, pose, front.mask))


def _bird(species: Species, pose: Pose, rng: np.random.Generator) -> Canvas:
    ink = {name: np.clip(np.array(rgb) * rng.normal(1, 0.035, 3), 0, 255) for name, rgb in COLOURS.items()}
    left, top, right, bottom = pose.window
    canvas = Canvas.of(bottom - top, right - left, ink[species.back_color], origin=(left, top))
    _coat(canvas, species, pose, ink)
    _breast(canvas, species, pose, ink, rng)
    if species.crest:
        base = np.array([(0.45, -0.75), (0.1, -0.85), (-0.3, -0.75)])
        tips = np.array([(-0.50, -1.75), (-0.95, -1.55), (-1.2, -1.2)])
        canvas.fill(pose.head(leaves(base, tips, np.array([0.5, 0.55, 0.5]), 0.3)), ink[species.crown_color])
    canvas.cover(smooth(np.vstack([pose.head(HEAD_OUTLINE), pose.body(BODY_OUTLINE)])))
    _tail(canvas, species, pose, ink)
    _legs(canvas, species, pose, ink)
    _wing(canvas, species, pose, ink)
    _face(canvas, species, pose, ink)
    _bill(canvas, species, pose, ink)
    return canvas


Ink = dict[str, Any]


def _coat(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    """The large areas of colour, their borders softened; they may reach over the outline."""
    body, head = pose.body, pose.head
    under = [(0.9, -0.12), (0.42, -0.14), (0.26, 0.04), (-0.10, 0.10), (-0.62, 0.03), (-0.6, 0.6), (0.9, 0.6)]
    chest = [(0.9, -0.2), (0.40, -0.18), (0.20, 0.02), (0.16, 0.6), (0.9, 0.6)]
    throat = [(1.3, 0.12), (0.55, 0.20), (0.15, 0.60), (0.1, 1.15), (0.75, 1.5), (1.5, 1.2)]
    crown = [(1.3, -0.22), (0.6, -0.34), (-0.1, -0.40), (-0.75, -0.2), (-1.1, 0.1), (-1.5, -0.4), (-1, -1.6)]
    crown += [(1.2, -1.6)]
    canvas.fill(body(under), ink[species.belly_color], cover=False)
    canvas.fill(body(chest), ink[species.breast_color], cover=False)
    canvas.fill(head(throat), ink[species.throat_color], cover=False)
    canvas.fill(head(crown), ink[species.crown_color], cover=False)
    canvas.soften(0.02 * pose.unit)


def _breast(canvas: Canvas, species: Species, pose: Pose, ink: Ink, rng: np.random.Generator) -> None:
    if species.breast_pattern == "solid":
        return
    rings, rays = np.arange(44) // 11, np.arange(44) % 11
    angles = np.deg2rad(12.2 * rays - 22 + 6 * (rings % 2)) + rng.normal(0, 0.04, 44)
    radii = 0.36 + 0.087 * rings + rng.normal(0, 0.012, 44)
    where = np.column_stack([0.06 + radii * np.cos(angles), -0.04 + 0.72 * radii * np.sin(angles)])
    along = np.column_stack([-np.sin(angles), 0.72 * np.cos(angles)])
    dark = ink["brown"] * 0.5 if species.breast_color != "black" else ink["white"]
    half, width = (0.05, 0.036) if species.breast_pattern == "striped" else (0.028, 0.056)
    marks = leaves(where - half * along, where + half * along, np.full(44, width), 0.55)
    canvas.fill(pose.body(marks), dark, cover=False)


def _tail(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    length = TAIL_LENGTHS[species.tail_length]
    reach = np.array(TAIL_TIPS[species.tail_shape])
    lengths = length * np.concatenate([reach, reach[-2::-1]])
    spread = np.deg2rad(np.linspace(-13, 13, 5))
    tips = np.column_stack([-lengths * np.cos(spread), lengths * np.sin(spread)])
    base = np.column_stack([np.full(5, 0.06), np.linspace(-0.045, 0.045, 5)])
    shade, mark = ink[species.wing_color] * 0.86, _mark(species, ink)
    for order in (0, 4, 1, 3, 2):
        feather = leaves(base[order], tips[order], 0.13, 0.72)
        tone = shade * (0.82 + 0.09 * (order % 2)) if order != 2 else shade
        if species.tail_pattern == "tipped":
            canvas.fill(pose.tail(feather), mark)
            shorter = base[order] + 0.72 * (tips[order] - base[order])
            canvas.fill(pose.tail(leaves(base[order], shorter, 0.13, 0.72)), tone)
        else:
            canvas.fill(pose.tail(feather), tone)
        if species.tail_pattern == "striped":
            for at in (0.42, 0.64, 0.86):
                middle = base[order] + at * (tips[order] - base[order])
                bar = leaves(np.add(middle, [0, -0.055]), np.add(middle, [0, 0.055]), 0.07, 0.5)
                canvas.fill(pose.tail(bar), mark, cover=False)
    canvas.line(
        pose.tail(np.stack([base[1:4], tips[1:4] * 0.96], 1)), shade * 0.6, 0.008 * pose.unit, cover=False
    )


def _legs(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    hips = pose.body([(-0.06, 0.25), (0.08, 0.26)])
    ahead = -1.0 if pose.mirrored else 1.0
    for hip, foot, tone in zip(hips, pose.feet, (0.75, 1.0), strict=True):
        colour = ink[species.leg_color] * tone
        ankle = hip * 0.45 + foot * 0.55 + pose.unit * np.array([-0.05 * ahead, 0.0])
        canvas.line(np.stack([hip, ankle, foot]), colour, 0.032 * pose.unit)
        for reach in (0.11, 0.07, -0.07):
            knuckle = foot + pose.unit * np.array([reach * ahead * 0.6, -0.012])
            toe = foot + pose.unit * np.array([reach * ahead, 0.04])
            canvas.line(np.stack([foot, knuckle, toe]), colour, 0.028 * pose.unit)
        thigh = leaves(hip - pose.unit * np.array([0, 0.10]), hip * 0.4 + ankle * 0.6, 0.15 * pose.unit, 0.4)
        canvas.fill(thigh, ink[species.belly_color] * 0.94)


def _mark(species: Species, ink: Ink) -> Any:
    """The colour of bars on wing and tail, which has to stand out from the wing's."""
    return ink["black" if species.wing_color in ("white", "yellow", "buff") else "white"]


def _wing(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    body, wing = pose.body, ink[species.wing_color]
    light, dark = np.clip(wing * 1.14 + 12, 0, 255), wing * 0.62
    edge = 0.007 * pose.unit

    def row(base: Points, tips: Points, width: float, colour: Any, widest: float = 0.7) -> None:
        shapes = body(leaves(base, tips, np.full(len(base), width), widest))
        for shape in shapes:
            canvas.fill(shape, colour)
            canvas.line(shape[3:16], dark, edge, cover=False)

    under = [
        (0.33, -0.08),
        (0.18, -0.23),
        (-0.15, -0.22),
        (-0.45, -0.12),
        (-0.45, 0.06),
        (-0.1, 0.11),
        (0.2, 0.10),
    ]
    canvas.fill(body(smooth(under)), wing)
    t = np.linspace(0, 1, 6)[:, None]
    row(
        np.array([0.0, 0.07]) + t * [-0.1, -0.12],
        np.array([-0.46, 0.10]) + t * [-0.24, -0.05],
        0.10,
        wing * 0.72,
    )
    row(
        np.array([0.10, 0.06]) + t * [-0.04, -0.20],
        np.array([-0.30, 0.10]) + t * [-0.14, -0.22],
        0.11,
        wing * 0.9,
    )
    greater = np.array([0.20, 0.07]) + t * [-0.04, -0.25], np.array([-0.09, 0.10]) + t * [-0.06, -0.29]
    median = np.array([0.27, 0.05]) + t * [-0.03, -0.22], np.array([0.09, 0.085]) + t * [-0.05, -0.27]
    for count, (base, tips) in ((1, greater), (2, median)):
        barred = species.wing_bars >= count
        if barred:
            row(base, tips, 0.105, _mark(species, ink))
        short = np.array([0.075, -0.004]) * barred
        row(base, tips + short, 0.10, light if count == 2 else wing)
    shoulder = [(0.37, -0.06), (0.30, -0.19), (0.17, -0.22), (0.14, -0.06), (0.20, 0.08), (0.31, 0.06)]
    canvas.fill(body(smooth(shoulder)), light)


def _face(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    head = pose.head
    eye = np.array([0.42, -0.14])
    if species.face == "eyebrow":
        brow = smooth(
            [(0.95, -0.42), (0.4, -0.56), (-0.3, -0.48), (-0.9, -0.12), (-0.3, -0.30), (0.4, -0.34)]
        )
        pale = {species.back_color, species.crown_color} & {"white", "buff", "yellow"}
        canvas.fill(head(brow), ink["black" if pale else "white"], cover=False)
    if species.face == "masked":
        mask = smooth([(0.98, -0.22), (0.4, -0.46), (-0.3, -0.34), (-0.85, 0.10), (-0.2, 0.22), (0.5, 0.18)])
        canvas.fill(head(mask), ink["black"], cover=False)
    if species.face == "eyering":
        canvas.fill(head(disc(eye, 0.34)), ink["white"], cover=False)
    iris = ink[species.eye_color] if species.eye_color != "black" else ink["brown"] * 0.5
    canvas.fill(head(disc(eye, 0.215)), iris, cover=False)
    canvas.fill(head(disc(eye, 0.15)), (14, 12, 14), cover=False)
    canvas.fill(head(disc(np.add(eye, [0.06, -0.07]), 0.055)), (255, 255, 255), cover=False)


def _bill(canvas: Canvas, species: Species, pose: Pose, ink: Ink) -> None:
    length, depth, droop, _ = BILLS[species.bill_shape]
    t = np.linspace(0, 1, 7)[:, None]
    tip = np.array([0.88 + length, 0.08 + droop])
    bow = np.array([0.88 + 0.62 * length, 0.02 - 0.3 * depth + 0.05 * droop])

    def curve(start: tuple[float, float], bend: Points) -> Points:
        return np.asarray((1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * bend + t**2 * tip)

    gape = curve((0.80, 0.06), np.add(bow, [0, 0.36 * depth]))
    upper = np.vstack([curve((0.82, 0.06 - 0.55 * depth), bow), gape[::-1]])
    shorter = (gape - gape[0]) * [0.9, 0.9] + gape[0]
    lower = np.vstack([shorter, [(0.82, 0.06 + 0.42 * depth)]])
    colour = ink[species.bill_color]
    canvas.fill(pose.head(lower), colour * 0.8)
    canvas.fill(pose.head(upper), colour)
    canvas.line(pose.head(gape), colour * 0.5, 0.008 * pose.unit, cover=False)


def _in_front(rng: np.random.Generator, pose: Pose, stand: str, height: int, width: int) -> Canvas:
    """Leaves, a twig or grass before the bird, on one picture in three; none over much of it."""
    canvas = Canvas.of(height, width, (0, 0, 0), scale=1)
    if stand == "ground":
        blades(rng, canvas, pose.feet[0, 1] + 0.06 * pose.unit, pose.unit, 16)
    if rng.random() < 0.3:
        at = np.array([rng.uniform(0, width), height if rng.random() < 0.7 else 0])
        toward = at + (pose.body((0, 0.1)) - at) * rng.uniform(0.3, 0.8)
        canvas.line(np.stack([at, toward]), (82, 66, 50), 0.022 * pose.unit)
        stems = at + (toward - at) * np.linspace(0.35, 1, 4)[:, None]
        sprig(rng, canvas, stems, pose.unit * 0.9)
    return canvas


def _parts(species: Species, pose: Pose, front: Image) -> tuple[tuple[float, float, int], ...]:
    body, head = pose.body, pose.head
    near, far = ("left", "right") if pose.mirrored else ("right", "left")
    where = {
        "back": body((-0.10, -0.25)),
        "beak": head((0.88 + 0.5 * BILLS[species.bill_shape][0], 0.08)),
        "belly": body((-0.05, 0.22)),
        "breast": body((0.44, 0.08)),
        "crown": head((0.0, -0.85)),
        "forehead": head((0.72, -0.5)),
        "nape": head((-0.85, -0.2)),
        "tail": pose.tail((-0.5 * TAIL_LENGTHS[species.tail_length], 0)),
        "throat": head((0.62, 0.62)),
        f"{near} eye": head((0.42, -0.14)),
        f"{near} wing": body((-0.05, -0.05)),
        f"{far} leg": pose.feet[0],
        f"{near} leg": pose.feet[1],
    }
    return tuple(_part(where.get(name), front) for name in PARTS)


def _part(at: Points | None, front: Image) -> tuple[float, float, int]:
    if at is None:
        return 0.0, 0.0, 0
    x, y = (round(float(value), 1) for value in at)
    hidden = front[min(int(y), front.shape[0] - 1), min(int(x), front.shape[1] - 1)] > 127
    return (0.0, 0.0, 0) if hidden else (x, y, 1)
