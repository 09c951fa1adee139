"""A gallery of drawn shapes in two models with random weights: small, quick, and not the same in both."""

import torch
from PIL import Image, ImageDraw

from clipfh.app.search import Gallery, Stage, exact, folder_categories
from clipfh.features.extraction import extract_features
from clipfh.images.pixels import load_pixels
from clipfh.models.clip import load_clip

CPU = torch.device("cpu")
COLORS = ("red", "green", "blue", "orange", "purple", "black", "teal")
SHAPES = ("square", "circle")


def make_gallery(folder, models=("tiny-rn", "tiny-vit"), max_megapixels=1.0):
    """28 photos, `<shape>/<colour>_<shape>/<n>.png`; photo 1 of the black square is a copy of photo 0."""
    images = []
    for shape in SHAPES:
        for number, color in enumerate(COLORS):
            for photo in range(2):
                image = Image.new("RGB", (40, 48), ("white", "ivory")[photo if color != "black" else 0])
                corner = (4 + number, 6 + (5 * photo if color != "black" else 0))
                box = (*corner, corner[0] + 22, corner[1] + 22)
                draw = ImageDraw.Draw(image)
                (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=color)
                images.append(f"{shape}/{color}_{shape}/{photo}.png")
                (folder / images[-1]).parent.mkdir(parents=True, exist_ok=True)
                image.save(folder / images[-1])
    item_ids = [image.split("/")[1] for image in images]
    stages = []
    for number, model in enumerate(models):
        torch.manual_seed(0)
        clip = load_clip(model, "random", image_size=32)
        pixels = load_pixels(folder, images, clip.image_size, folder / "cache", resize_mode=clip.resize_mode)
        stages.append(Stage(f"Stage {number + 1}", clip, exact(extract_features(clip, pixels.array, CPU, quiet=True))))
    return Gallery(
        name="shapes",
        photos=[folder / image for image in images],
        item_ids=item_ids,
        categories=folder_categories(images, item_ids),
        prompts={item_id: "a {} {}".format(*item_id.split("_")) for item_id in item_ids},
        stages=stages,
        device=CPU,
        max_megapixels=max_megapixels,
    )
