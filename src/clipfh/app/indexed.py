"""From an index of photos (`clipfh.index`) to a gallery that can be searched.

The engine holds the rows and does the searching; here is nothing of their number. Shapes: D embedding, K hits.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from clipfh.app.search import Category, Gallery, Rank, Stage
from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.paths import STAGES, display, stage_dir
from clipfh.images.transforms import MAX_MEGAPIXELS
from clipfh.index.embedding import ModelConfig, load_model, model_of
from clipfh.index.engine import Engine, Match, open_engine
from clipfh.index.photos import PhotoSource, is_uri, photos_at
from clipfh.index.shards import SHORT, Model, require_same_model
from clipfh.models.checkpoint import read_checkpoint, weights_digest
from clipfh.models.clip import LoadedClip, shown_size
from clipfh.prompts.files import read_prompts

MAX_CATEGORIES = 200  # that the page lists


@dataclass(frozen=True)
class IndexFlags:
    """The flags of the page that say what is searched by an index, and where its photos and prompts are."""

    index: str | None = option(
        None, "search an index in place of a dataset: a folder (FAISS), NAME.db or http://HOST:19530 (Milvus)"
    )
    image_dir: str | None = option(
        None, "with --index: the folder or URI of its photos, where they are no longer where they were extracted"
    )
    prompt_json: Path | None = option(None, "with --index: prompts by item id, shown below its photos")
    model: str | None = option(None, "with --index of pretrained weights: the architecture", aliases=("--model_arch",))
    pretrained: str | None = option(None, "with --index of pretrained weights: a tag of open_clip or a file")


def load_index(flags: IndexFlags, ckpt: Path | None, device: str) -> Gallery:
    """The photos of an index, with the model that made it.

    Args:
        flags: which index, and what belongs to it.
        ckpt: the checkpoint that made it; None, and no model in the flags: it is looked for among the project's runs.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        InputError: it is no index, its weights cannot be found or are others, or a file is missing.
    """
    engine = open_engine(flags.index)
    facts, origin = engine.info(), engine.origin()
    prompts = read_prompts(flags.prompt_json) if flags.prompt_json else {}
    source = _photos_of(origin.image_dir, flags.image_dir)
    if ckpt is None and flags.model is None:
        ckpt = fitting_checkpoint(origin.model, flags.index)
    config = ModelConfig(ckpt, flags.model, flags.pretrained, origin.model.get("resize_mode"), device)
    clip = load_model(config)
    model = model_of(clip)
    require_same_model(origin.model, model, f"the index {flags.index}", "the query was")
    print(f"{clip.name} ({clip.pretrained}), {shown_size(clip)}: {facts['count']:,} photos, kind {facts['kind']}")
    categories = engine.categories(MAX_CATEGORIES + 1)
    if len(categories) > MAX_CATEGORIES:
        print(f"note: there are more than {MAX_CATEGORIES} categories; the page lists the first {MAX_CATEGORIES}")
    return Gallery(
        name=_name_of(flags.index),
        size=f"{facts['count']:,} photos",
        source=source,
        categories=[(name,) for name in categories[:MAX_CATEGORIES]],
        prompts={item_id: texts[0] for item_id, texts in prompts.items()},
        stages=[Stage(_title(clip), clip, by_engine(engine, model))],
        device=next(clip.model.parameters()).device,
        max_megapixels=MAX_MEGAPIXELS,
    )


def by_engine(engine: Engine, model: Model) -> Rank:
    """Rank by an index, which also leaves out the other categories.

    Args:
        engine: the index.
        model: what makes the queries.
    """

    def rank(vector: torch.Tensor, k: int, category: Category) -> list[Match]:
        wanted = category[0] if category else None
        (found,) = engine.search(model, vector[None].cpu().numpy(), k, category=wanted)
        return found

    return rank


def fitting_checkpoint(model: Model, index: str) -> Path:
    """The checkpoint of the project's runs whose weights made an index: BEST ones before others, the newest first.

    Raises:
        InputError: there is none.
    """
    files = [path for stage in STAGES for path in (stage_dir(stage) / "checkpoints").glob("*.pth")]
    files.sort(key=lambda path: (path.stem.endswith("_LAST"), -path.stat().st_mtime_ns))
    for path in files:
        try:
            content = read_checkpoint(path)
        except InputError as error:  # it is not asked for by its name: another one may do
            print(f"note: passed over {error}")
            continue
        if content.get("model") == model["model"] and weights_digest(content["state_dict"]) == model["weights"]:
            print(f"the weights of the index: {display(path)}")
            return path
    raise InputError(
        f"the index {index} was made by weights {model['weights'][:SHORT]} ({model['model']}), and no checkpoint in "
        "model/stage*/checkpoints has them: name it with --ckpt FILE, or pretrained weights with --model NAME "
        "--pretrained TAG"
    )


def _photos_of(recorded: str, given: str | None) -> PhotoSource | None:
    """Where the photos lie; None where they were is not there any more, which is said."""
    if given is not None:
        return photos_at(given)
    if recorded and (is_uri(recorded) or Path(recorded).is_dir()):
        return photos_at(recorded)
    where = f"{recorded} is not there" if recorded else "the index does not say where they are"
    print(f"note: photos are shown as plain tiles ({where}); name their folder or URI with --image_dir")
    return None


def _name_of(index: str) -> str:
    return index if is_uri(index) else Path(index).resolve().stem


def _title(clip: LoadedClip) -> str:
    return Path(clip.pretrained).stem if clip.pretrained.endswith(".pth") else f"{clip.name}, {clip.pretrained}"
