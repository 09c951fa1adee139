"""A gallery of drawn shapes in models with random weights, in memory or as an index: small, quick, no two alike."""

import csv

import pytest
import torch
from PIL import Image, ImageDraw

from clipfh.app.indexed import IndexFlags, load_index
from clipfh.app.search import Gallery, Stage, exact, folder_categories, known_categories
from clipfh.features.extraction import extract_features
from clipfh.images.pixels import load_pixels
from clipfh.index.photos import FolderPhotos
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip
from clipfh.prompts.files import write_prompts

CPU = torch.device("cpu")
COLORS = ("red", "green", "blue", "orange", "purple", "black", "teal")
SHAPES = ("square", "circle")
IMAGES = [f"{shape}/{color}_{shape}/{photo}.png" for shape in SHAPES for color in COLORS for photo in range(2)]
ITEM_IDS = [image.split("/")[1] for image in IMAGES]
PROMPTS = {item_id: "a {} {}".format(*item_id.split("_")) for item_id in ITEM_IDS}
ENGINES = ("memory", "faiss", "milvus")


def draw_photos(folder):
    """28 photos, `<shape>/<colour>_<shape>/<n>.png`; photo 1 of the black square is a copy of photo 0."""
    for image in IMAGES:
        shape, item_id, name = image.split("/")
        color, photo = item_id.split("_")[0], int(name[0]) if "black" not in item_id else 0
        drawn = Image.new("RGB", (40, 48), ("white", "ivory")[photo])
        corner = (4 + COLORS.index(color), 6 + 5 * photo)
        draw = ImageDraw.Draw(drawn)
        (draw.rectangle if shape == "square" else draw.ellipse)((*corner, corner[0] + 22, corner[1] + 22), fill=color)
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        drawn.save(folder / image)


def random_clip(model):
    torch.manual_seed(0)
    return load_clip(model, "random", image_size=32)


def make_gallery(folder, engine="memory", models=("tiny-rn", "tiny-vit")):
    """The gallery of the photos, in memory with all `models`, or of an index with the first of them."""
    draw_photos(folder)
    if engine != "memory":
        return make_index_gallery(folder, engine, models[0])
    stages, categories = [], folder_categories(IMAGES, ITEM_IDS)
    for number, model in enumerate(models):
        clip = random_clip(model)
        pixels = load_pixels(folder, IMAGES, clip.image_size, folder / "cache", resize_mode=clip.resize_mode)
        features = extract_features(clip, pixels.array, CPU, quiet=True)
        stages.append(Stage(f"Stage {number + 1}", clip, exact(features, IMAGES, ITEM_IDS, categories)))
    return Gallery(
        name="shapes",
        size=f"{len(IMAGES)} photos",
        source=FolderPhotos(folder),
        categories=known_categories(categories),
        prompts=PROMPTS,
        stages=stages,
        device=CPU,
        max_megapixels=1.0,
    )


def make_index(folder, engine, model="tiny-rn"):
    """An index of the photos, which lie in `folder` already: its URI, and the checkpoint that made it."""
    pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}[engine], reason="needs the extra `scale`")
    from clipfh.index.engine import open_engine
    from clipfh.index.extract import extract
    from clipfh.index.listing import list_photos
    from clipfh.index.shards import SavedFeatures

    beside = folder.with_name(f"{folder.name}_{engine}")
    beside.mkdir()
    clip = random_clip(model)
    write_checkpoint(beside / "clip.pth", {**clip.architecture(), "state_dict": clip.model.state_dict()})
    with (beside / "photos.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "item_id", "category"])
        writer.writerows([image, item_id, image.split("/")[0]] for image, item_id in zip(IMAGES, ITEM_IDS, strict=True))
    listing = list_photos(str(beside / "photos.csv"), str(folder))
    extract(clip, listing, beside / "features", images="photos.csv", workers=1)
    uri = str(beside / {"faiss": "index", "milvus": "index.db"}[engine])
    opened = open_engine(uri)
    opened.create(SavedFeatures(beside / "features"), "flat")
    if engine == "milvus":
        opened.close()  # a file takes one connection at a time
    return uri, beside / "clip.pth"


def make_index_gallery(folder, engine, model):
    uri, checkpoint = make_index(folder, engine, model)
    prompts = checkpoint.with_name("prompts.json")
    write_prompts(prompts, PROMPTS)
    return load_index(IndexFlags(index=uri, prompt_json=prompts), checkpoint, "cpu")
