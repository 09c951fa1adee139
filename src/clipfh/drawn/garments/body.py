"""A simple posed figure, and the tubes and mirrored polygons that it and its clothes are made of.

Body units: x to the right with 0 on the body's axis, y downwards; the head's top is at 0.1, the soles at 7.65.
"""

import math
import random
from dataclasses import dataclass

Point = tuple[float, float]
Polygon = list[Point]

WAIST, HIP, CROTCH, KNEE, ANKLE = 2.9, 3.75, 4.12, 5.75, 7.35


@dataclass(frozen=True)
class Figure:
    """A posed body: half widths of the trunk, and the joints of arms and legs (right first)."""

    shoulder: float
    chest: float
    waist: float
    hip: float
    arms: tuple[Polygon, ...]
    legs: tuple[Polygon, ...]


def pose_figure(gender: str, view: str, rng: random.Random) -> Figure:
    """A figure in a pose that suits the view; `flat` spreads the sleeves as on a table."""
    shoulder, chest, waist, hip = (0.86, 0.68, 0.55, 0.76) if gender == "WOMEN" else (1.02, 0.84, 0.74, 0.76)
    arms = []
    for side in (1, -1):
        upper, lower = rng.choice(((9, 3), (12, 7), (20, 9), (34, -38)))
        if view == "flat":
            upper = lower = rng.uniform(18, 30)
        elif view == "side":
            upper, lower = rng.uniform(-4, 6), rng.uniform(-14, 0)
        start = (side * (0.3 if view == "side" and side > 0 else shoulder - 0.1), 1.56)
        elbow = _step(start, side * upper + rng.uniform(-2, 2), 1.22)
        arms.append([start, elbow, _step(elbow, side * lower + rng.uniform(-2, 2), 1.15)])
    spread = 0.0 if view == "flat" else rng.uniform(-0.03, 0.1)
    bend = 0.0 if view == "flat" else rng.uniform(-0.05, 0.12)
    legs = tuple(
        [(s * 0.36, 4.0), (s * (0.37 + spread) + bend, KNEE), (s * (0.34 + 1.8 * spread), ANKLE)] for s in (1, -1)
    )
    return Figure(shoulder, chest, waist, hip, tuple(arms), legs)


def _step(start: Point, degrees: float, length: float) -> Point:
    angle = math.radians(degrees)
    return start[0] + length * math.sin(angle), start[1] + length * math.cos(angle)


def limb(joints: Polygon, widths: tuple[float, ...], end: float = 1.0, *, rounded: bool = False) -> Polygon:
    """A tapered tube around the joints, cut at the fraction `end` of its length; `widths` are half widths."""
    position = end * (len(joints) - 1)
    whole = min(int(position), len(joints) - 2)
    rest = position - whole
    line = [(*joint, width) for joint, width in zip(joints[: whole + 1], widths, strict=False)]
    line.append(
        tuple(
            a + rest * (b - a)
            for a, b in zip((*joints[whole], widths[whole]), (*joints[whole + 1], widths[whole + 1]), strict=True)
        )
    )
    if rounded:  # a shoulder, not the corners of a cut tube
        (x, y, width), after = line[0], line[1]
        share = min(0.5, 0.2 / (math.dist((x, y), after[:2]) or 1.0))
        line[:1] = [(x, y, 0.6 * width), (x + share * (after[0] - x), y + share * (after[1] - y), width)]
    right, left = [], []
    for index, (x, y, width) in enumerate(line):
        before, after = line[max(index - 1, 0)], line[min(index + 1, len(line) - 1)]
        dx, dy = after[0] - before[0], after[1] - before[1]
        length = math.hypot(dx, dy) or 1.0
        right.append((x + width * dy / length, y - width * dx / length))
        left.append((x - width * dy / length, y + width * dx / length))
    return right + left[::-1]


def mirrored(half: Polygon) -> Polygon:
    """A closed symmetric polygon from its right half, top to bottom."""
    return half + [(-x, y) for x, y in reversed(half)]
