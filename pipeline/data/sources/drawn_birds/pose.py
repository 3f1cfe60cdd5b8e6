"""How a drawn bird is put together and how it sits in the picture.

The body's frame has its origin in the middle of the body, and a body length is its unit; the head's
frame has the middle of the head and the head's radius. The bird looks along x; y points down.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.data.sources.drawn_birds.canvas import Frame, Points
from pipeline.data.sources.drawn_birds.species import BILLS, Species

HEAD_RADIUS = 0.27
HEAD_OUTLINE = [(0.90, 0.30), (0.98, -0.12), (0.74, -0.70), (0.10, -1.0), (-0.62, -0.80), (-0.98, -0.10)]
BODY_OUTLINE = [(0.04, -0.335), (-0.22, -0.27), (-0.45, -0.15), (-0.60, -0.05), (-0.58, 0.05)]
BODY_OUTLINE += [(-0.42, 0.17), (-0.12, 0.31), (0.20, 0.32), (0.46, 0.17), (0.59, -0.06)]
TAIL_LENGTHS = {"short": 0.38, "medium": 0.56, "long": 0.86}
TAIL_TIPS = {  # how far the feathers reach, from the outermost inwards
    "squared": (0.96, 0.98, 1.0),
    "rounded": (0.78, 0.94, 1.0),
    "pointed": (0.50, 0.85, 1.22),
    "forked": (1.12, 0.78, 0.50),
}


@dataclass(frozen=True)
class Pose:
    """Where the bird is: its frames in pixels, its feet, and pixels a body length."""

    body: Frame
    head: Frame
    tail: Frame
    feet: Points  # [2, 2]
    unit: float
    mirrored: bool
    window: tuple[int, int, int, int]  # left, top, right, bottom: all of the bird lies within


def sample_pose(species: Species, rng: np.random.Generator, height: int, width: int) -> Pose:
    """A pose for a bird that fills most of a picture of height x width pixels; all of it lies within."""
    mirrored = bool(rng.random() < 0.5)
    flat = Frame(np.array([[-1.0 if mirrored else 1.0, 0, 0], [0, 1, 0]]))
    tilt = rng.uniform(-44, -18)
    body = flat.turned((0, 0), tilt, 1.0)
    head = body.turned((0.43, -0.30), -tilt + rng.uniform(-16, 12), HEAD_RADIUS)
    tail = body.turned((-0.48, 0.0), rng.uniform(-12, 12), 1.0)
    hips = body([[-0.06, 0.30], [0.08, 0.31]])
    feet = np.column_stack([hips[:, 0], np.full(2, hips[:, 1].max() + rng.uniform(0.13, 0.22))])
    bill = 0.9 + BILLS[species.bill_shape][0]
    extent = [body(BODY_OUTLINE), head(HEAD_OUTLINE), head([(bill, 0.5), (bill, 0)]), np.add(feet, [0, 0.06])]
    reach = max(TAIL_TIPS[species.tail_shape]) * TAIL_LENGTHS[species.tail_length]
    extent += [tail([(-reach, -0.24 * reach), (-reach, 0.24 * reach)])]
    extent += [head([(-1.2, -1.7)])] if species.crest else []
    points = np.vstack(extent)
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([width, height], np.float64)
    unit = rng.uniform(0.80, 0.97) * float((room / (high - low)).min())
    slack = room - unit * (high - low)
    offset = slack * rng.uniform(0.15, 0.85, 2) - unit * low
    body, head, tail = (frame.moved(unit, offset) for frame in (body, head, tail))
    corners = np.clip(unit * np.array([low - 0.08, high + 0.08]) + offset, 0, room)
    left, top, right, bottom = (int(value) for value in corners.ravel())
    return Pose(body, head, tail, feet * unit + offset, unit, mirrored, (left, top, right, bottom))
