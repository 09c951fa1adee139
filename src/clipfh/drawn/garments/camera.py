"""Where the camera stands: from body units to the pixels of a photo."""

import math
import random
from dataclasses import dataclass, replace

from clipfh.drawn.garments.body import Polygon
from clipfh.drawn.garments.catalogue import Garment
from clipfh.drawn.garments.patterns import CLOTH_PX, UNIT_PX
from clipfh.drawn.garments.silhouettes import garment_extent


@dataclass(frozen=True)
class Camera:
    """The affine map from body units to pixels: x' = a x + b y + c, y' = d x + e y + f."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def __call__(self, points: Polygon) -> Polygon:
        """Project points."""
        return [(self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f) for x, y in points]

    def moved(self, dx: float, dy: float) -> "Camera":
        """The same view, cut out with its origin at (dx, dy) pixels."""
        return replace(self, c=self.c - dx, f=self.f - dy)

    def cloth_coefficients(self, offset: float) -> tuple[float, ...]:
        """From pixels to the cloth's, as `Image.transform` wants it; `offset` (units) turns the cloth on the body."""
        det = self.a * self.e - self.b * self.d
        ia, ib, id_, ie = self.e / det, -self.b / det, -self.d / det, self.a / det
        ic, if_ = -(ia * self.c + ib * self.f), -(id_ * self.c + ie * self.f)
        k, half = UNIT_PX, CLOTH_PX / 2
        return (ia * k, ib * k, (ic + offset) * k + half, id_ * k, ie * k, if_ * k)


def aim_camera(garment: Garment, view: str, size_px: int, rng: random.Random) -> Camera:
    """Frame the garment as the view asks, with a random scale, crop, tilt and mirror image."""
    top, hem = garment_extent(garment)
    upper = top < 2
    if view == "full":
        middle, reach = 3.9, 4.15
    elif view == "additional":
        reach = rng.uniform(0.95, 1.3)
        middle = rng.uniform(1.9, 2.6) if upper else rng.uniform(3.3, min(4.6, hem))
    elif view == "flat":
        middle, reach = (top + hem) / 2, max(hem - top, 2.6) * 0.62
    else:
        start = rng.uniform(0.0, 0.9) if upper else rng.uniform(1.7, 2.5)
        end = min(7.7, hem + rng.uniform(0.15, 0.9))
        middle, reach = (start + end) / 2, max((end - start) / 2, 1.45)
    scale = size_px / (2 * reach) * rng.uniform(0.95, 1.22)
    squeeze = rng.uniform(0.66, 0.8) if view == "side" else rng.uniform(0.93, 1.06)
    tilt = math.radians(rng.gauss(0, 9 if view == "flat" else 3.5))
    mirror = rng.choice((1, -1)) if view in ("side", "back") else 1
    x0 = size_px * (0.5 + rng.uniform(-0.09, 0.09))
    y0 = size_px * (0.5 + rng.uniform(-0.06, 0.06))
    a, b = scale * squeeze * mirror * math.cos(tilt), -scale * math.sin(tilt)
    d, e = scale * squeeze * mirror * math.sin(tilt), scale * math.cos(tilt)
    return Camera(a, b, x0 - b * middle, d, e, y0 - e * middle)
