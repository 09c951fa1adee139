"""Prints on the chest: stars, hearts, mountains and the other motifs of graphic tees."""

import math

from PIL import ImageDraw, ImageFont

Color = tuple[int, int, int]


def _rays(x: float, y: float, radii: tuple[float, ...], count: int) -> list[tuple[float, float]]:
    """A star-like polygon: `radii` in turn, `count` points, the first one upwards."""
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [
        (x + radii[i % len(radii)] * math.cos(a), y + radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)
    ]


def draw_motif(draw: ImageDraw.ImageDraw, motif: str, x: float, y: float, r: float, color: Color) -> None:
    """One of `garment_choices.MOTIFS`, centred at (x, y), about 2 r wide."""

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + r * px, y + r * py) for px, py in points], fill=color)

    def disc(cx: float, cy: float, radius: float, fill: Color = color) -> None:
        cx, cy, radius = x + r * cx, y + r * cy, r * radius
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=fill)

    if motif in ("number 89 print", "PARIS print"):
        text = "89" if motif.startswith("number") else "PARIS"
        draw.text(
            (x, y),
            text,
            fill=color,
            anchor="mm",
            font=ImageFont.load_default(52 if text == "89" else 27),
            stroke_width=2,
            stroke_fill=color,
        )
    elif motif == "star print":
        draw.polygon(_rays(x, y, (r, 0.42 * r), 10), fill=color)
    elif motif == "sunburst print":
        draw.polygon(_rays(x, y, (r, 0.62 * r), 24), fill=color)
    elif motif == "diamond print":
        polygon((0, -1), (0.8, 0), (0, 1), (-0.8, 0))
    elif motif == "heart print":
        disc(-0.42, -0.3, 0.48)
        disc(0.42, -0.3, 0.48)
        polygon((-0.86, -0.1), (0.86, -0.1), (0, 0.95))
    elif motif == "mountain print":
        polygon((-1.1, 0.7), (-0.35, -0.6), (0.05, 0.05), (0.4, -0.35), (1.1, 0.7))
        disc(0.65, -0.75, 0.2)
    elif motif == "palm tree print":
        polygon((-0.1, 1), (0.12, 1), (0.1, -0.3), (-0.02, -0.3))
        for px, py in ((-0.9, -0.2), (-0.8, -0.8), (0, -1.05), (0.85, -0.75), (0.95, -0.15)):
            polygon((0, -0.5), (px, py), (px * 0.5 + 0.1, py * 0.6 - 0.35))
    elif motif == "anchor print":
        box = (x - 0.75 * r, y - 0.5 * r, x + 0.75 * r, y + 0.95 * r)
        draw.arc(box, 10, 170, fill=color, width=8)
        polygon((-0.1, -0.7), (0.1, -0.7), (0.1, 0.9), (-0.1, 0.9))
        polygon((-0.5, -0.45), (0.5, -0.45), (0.5, -0.27), (-0.5, -0.27))
        disc(0, -0.8, 0.22)
    elif motif == "lightning bolt print":
        polygon((0.25, -1.05), (-0.55, 0.15), (-0.05, 0.15), (-0.3, 1.05), (0.6, -0.25), (0.1, -0.25))
    elif motif == "cat print":
        disc(0, 0.15, 0.75)
        polygon((-0.75, 0.1), (-0.7, -0.95), (-0.1, -0.5))
        polygon((0.75, 0.1), (0.7, -0.95), (0.1, -0.5))
        dark = tuple(255 - c for c in color)
        disc(-0.28, 0.05, 0.12, dark)
        disc(0.28, 0.05, 0.12, dark)
    elif motif == "moon print":
        points = [(math.sin(a), -math.cos(a)) for a in (0.3 + 0.25 * i for i in range(20))]
        inner = [(0.35 + 0.72 * math.sin(a), -0.72 * math.cos(a)) for a in (0.7 + 0.25 * i for i in range(17))]
        polygon(*[(-px, py) for px, py in points], *[(-px, py) for px, py in reversed(inner)])
