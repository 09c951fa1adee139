"""Photographs of a garment: a figure in a pose, clothes and light, in front of a background, seen by a camera."""

import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from clipfh.drawn.garments.body import Figure, Polygon, pose_figure
from clipfh.drawn.garments.camera import Camera, aim_camera
from clipfh.drawn.garments.catalogue import Garment, rgb
from clipfh.drawn.garments.choices import COLORS, NEUTRALS
from clipfh.drawn.garments.figure import draw_body, draw_head, draw_occlusion, other_clothes, pick_model
from clipfh.drawn.garments.patterns import blend, weave_cloth
from clipfh.drawn.garments.scenes import draw_background, light_photo, noise
from clipfh.drawn.garments.silhouettes import Outline, outline_garment

VIEWS = ("front", "side", "back", "full", "additional", "flat")
SUPERSAMPLING = 2
_EDGE_BRIGHTNESS = [round(255 * min(1.0, 0.62 + 0.38 * max(0.0, v / 255 - 0.35) / 0.55)) for v in range(256)]


def render_photo(
    garment: Garment, view: str, rng: random.Random, *, image_px: int = 128, cloth_seed: str = "", session: str = ""
) -> Image.Image:
    """A photo of the garment: RGB, `image_px` square.

    Args:
        garment: what to show.
        view: one of `VIEWS`.
        rng: draws everything that differs between photos of one item.
        image_px: side of the photo.
        cloth_seed: places the random parts of the pattern; the same in all photos of an item.
        session: chooses the person and the other clothes; the same in photos taken on one occasion.
    """
    size = SUPERSAMPLING * image_px
    canvas, scene = draw_background(size, view, rng)
    camera = aim_camera(garment, view, size, rng)
    figure = pose_figure(garment.gender, view, rng)
    back = view == "back"
    shape = Image.new("L", (size, size))  # everything that the light models: body and clothes
    layer = canvas.copy()
    session_rng = random.Random(f"session {session}") if session else rng
    model = pick_model(garment.gender, session_rng)
    if view != "flat":
        draw_body(layer, shape, camera, figure, model, garment)
        for other in other_clothes(garment, session_rng):
            _dress(layer, shape, camera, other, figure, back=back)
    offset = rng.uniform(0.15, 0.4) * rng.choice((1, -1)) if view == "side" else 0.0
    _dress(layer, shape, camera, garment, figure, back=back, cloth_seed=cloth_seed, offset=offset)
    if view != "flat":
        draw_head(layer, shape, camera, model, back=back, high_collar=garment.neckline in ("hood", "turtleneck"))
    draw_occlusion(layer, shape, camera, figure, model, garment, view, rng)
    _cast_shadow(canvas, shape, rng)
    canvas.paste(_model_light(layer, shape, rng), mask=shape)
    return light_photo(canvas.reduce(SUPERSAMPLING), scene, rng)


@lru_cache(maxsize=8)
def _cloth(garment: Garment, cloth_seed: str, back: bool) -> Image.Image:
    """The cloth with its folds; the folds are the same for all garments, so that they identify none."""
    cloth = weave_cloth(garment, random.Random(f"cloth {cloth_seed}"), back=back)
    folds = noise("folds")
    folds = folds.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if back else folds
    return ImageChops.multiply(cloth, Image.merge("RGB", (folds, folds, folds)))


def _dress(
    layer: Image.Image,
    shape: Image.Image,
    camera: Camera,
    garment: Garment,
    figure: Figure,
    *,
    back: bool,
    cloth_seed: str = "",
    offset: float = 0.0,
) -> None:
    """Lay a garment on the figure: cloth inside its outline, trims and seams. Works on the garment's bounding box."""
    outline = outline_garment(garment, figure, back=back)
    box = _bounding_box(outline, camera, layer.size)
    if box is None:
        return
    local = camera.moved(box[0], box[1])
    size = (box[2] - box[0], box[3] - box[1])
    cloth = _cloth(garment, cloth_seed, back).transform(
        size, Image.Transform.AFFINE, local.cloth_coefficients(offset), Image.Resampling.BILINEAR
    )
    mask = _draw_outline(cloth, outline, local, rgb(garment.color, garment.category), max(1, layer.width // 128))
    if outline.opening:  # an inner tee, so that an open front does not show bare skin
        inner = COLORS[NEUTRALS[sum(map(ord, garment.fit)) % 4]]
        for polygon in outline.opening:
            ImageDraw.Draw(layer).polygon(camera(polygon), fill=inner)
            ImageDraw.Draw(shape).polygon(camera(polygon), fill=255)
    edge = _edge_light(mask, layer.width // 40)
    layer.paste(ImageChops.multiply(cloth, Image.merge("RGB", (edge, edge, edge))), box, mask)
    shape.paste(255, box, mask)


def _bounding_box(outline: Outline, camera: Camera, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom pixel of what is seen of the outline; None if nothing is."""
    polygons = [*outline.fabric, *outline.sleeves, *outline.opening, *(polygon for polygon, _ in outline.trims)]
    xs, ys = zip(*(point for polygon in polygons for point in camera(polygon)), strict=True)
    left, top = max(0, int(min(xs)) - 2), max(0, int(min(ys)) - 2)
    right, bottom = min(size[0], int(max(xs)) + 3), min(size[1], int(max(ys)) + 3)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _draw_outline(
    cloth: Image.Image, outline: Outline, camera: Camera, main: tuple[int, int, int], width: int
) -> Image.Image:
    """Draw trims and seams on the cloth, and return the mask of the garment."""
    mask = Image.new("L", cloth.size)
    pen, draw = ImageDraw.Draw(mask), ImageDraw.Draw(cloth)
    light_cloth = sum(main) > 150
    dark = blend(main, (0, 0, 0), 0.45) if light_cloth else blend(main, (255, 255, 255), 0.25)

    def trace(polygon: Polygon, fill: int | None, *, closed: bool) -> None:
        points = camera(polygon)
        if fill is not None:
            pen.polygon(points, fill=fill)
        draw.line([*points, points[0]] if closed else points, fill=dark, width=width)

    for polygon in outline.fabric:
        pen.polygon(camera(polygon), fill=255)
    for polygon in outline.opening:
        trace(polygon, 0, closed=False)
    for polygon in outline.sleeves:
        trace(polygon, 255, closed=True)
    for seam in outline.seams:
        trace(seam, None, closed=False)
    for polygon, brightness in outline.trims:
        points = camera(polygon)
        pen.polygon(points, fill=255)
        color = blend((0, 0, 0), main, brightness) if light_cloth else blend(main, (255, 255, 255), 0.14)
        draw.polygon(points, fill=color, outline=dark)
    return mask


def _edge_light(mask: Image.Image, cell_px: int) -> Image.Image:
    """Brightness that falls off towards the edge of `mask`, as on a rounded body."""
    small = mask.reduce(cell_px).filter(ImageFilter.GaussianBlur(1.8)).point(_EDGE_BRIGHTNESS)
    right, bottom = mask.width / cell_px, mask.height / cell_px  # the last cell may be a part of one
    return small.resize(mask.size, Image.Resampling.BILINEAR, box=(0, 0, right, bottom))


def _model_light(layer: Image.Image, shape: Image.Image, rng: random.Random) -> Image.Image:
    """Light from one side: the blurred shape, shifted, darkens the other side."""
    cells = 32
    small = shape.resize((cells, cells), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.6))
    moved = ImageChops.offset(small, rng.choice((-2, -1, 1, 2)), rng.choice((0, 1)))
    depth = rng.uniform(0.1, 0.4)
    light = moved.point([round(255 * (1 - depth * (1 - v / 255))) for v in range(256)]).resize(
        shape.size, Image.Resampling.BILINEAR
    )
    return ImageChops.multiply(layer, Image.merge("RGB", (light, light, light)))


def _cast_shadow(canvas: Image.Image, shape: Image.Image, rng: random.Random) -> None:
    """A soft shadow of the figure on what is behind it."""
    strength = rng.uniform(0.1, 0.4)
    small = shape.resize((64, 64), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.5))
    small = ImageChops.offset(small, rng.choice((-3, -2, 2, 3)), rng.choice((1, 2)))
    canvas.paste(
        (18, 18, 24),
        mask=small.point([round(strength * v) for v in range(256)]).resize(shape.size, Image.Resampling.BILINEAR),
    )
