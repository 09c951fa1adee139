"""Stage 0: make a small CLIP of real pretrained parts, for machines without a CLIP's weights, network or GPU.

    python model/stage0_pretrain/make_small_clip.py

The image encoder is EfficientNet-Lite0, trained on ImageNet-1k, the text encoder MiniLM-L6; both come with ordinary
Python packages. Nothing is trained and no photo is seen: ImageNet's classifier has a row for each of 1,000 classes, and
the classes have names, so that the names' text features say where an image of a class belongs. Values are read from
config/small_clip.yaml; files of --config go over it, flags over both.

Writes:  checkpoints/small-clip_<digest of the configuration>.pth beside this script.
         A checkpoint of the same configuration is reused.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from clipfh.core.cli import jsonable, option, run_script
from clipfh.core.config_file import IN_FILE, parse_with_files
from clipfh.core.files import writable_folder
from clipfh.core.paths import SMALL_MODEL, display, stage_dir
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import LoadedClip, encode_texts, load_clip
from clipfh.models.parts import IMAGE_MEAN, IMAGE_STD, class_names, image_weights, text_weights

SETTINGS_VERSION = 1  # raise it when a change of this script changes the weights
LINEAR_SHIFT = 8.0  # GELU(x + 8) = x + 8 to seven digits for x above -3
LINEAR_SCALE = 5.0  # brings the image features' directions, up to 6 long, well above that


@dataclass(frozen=True)
class Config:
    """The command line."""

    threshold: float = option(IN_FILE, "of a class's logit, above which its name's text feature is added")
    aligned_scale: float = option(IN_FILE, "length of the part that text sees, relative to the classes' sum", above=0)
    temperature: float = option(IN_FILE, "first value of the learned temperature", above=0)
    save_path: Path | None = option(None, "folder of the checkpoint (default: checkpoints/ beside this script)")
    force: bool = option(False, "make it again, although the configuration is the same")
    smoke: bool = option(False, "the same, apart from real runs")


def digest(config: Config) -> str:
    """Short digest of all that decides the weights."""
    values = {k: v for k, v in jsonable(config).items() if k not in ("save_path", "force", "smoke")}
    return hashlib.sha256(json.dumps([SETTINGS_VERSION, values], sort_keys=True).encode()).hexdigest()[:8]


def class_texts() -> list[list[str]]:
    """Three texts for each of ImageNet's 1,000 classes: its first name, a prompt with it, and all of its names."""
    names = class_names()
    first = [name.split(",")[0] for name in names]
    return [[name, f"a photo of {name}", all_names] for name, all_names in zip(first, names, strict=True)]


def class_text_features(clip: LoadedClip) -> Tensor:
    """(1000, E): the mean text feature of each class, without what is common to all of them."""
    features = encode_texts(clip, [text for texts in class_texts() for text in texts], "cpu")
    means = F.normalize(features.view(1000, 3, -1).mean(dim=1), dim=1)
    return means - means.mean(dim=0)


def image_projection(classifier: Tensor, bias: Tensor, texts: Tensor, dim: int, config: Config) -> dict[str, Tensor]:
    """Weights of the projection, an MLP with 2 D hidden units, from the classifier (1000, F), (1000,).

    The first E dimensions are those of `texts` (1000, E): the classes' text features, each as much as the class's logit
    lies above the threshold, so that the classes an image is likely of decide (after ConSE, Norouzi et al. 2014, which
    takes their softmax). The other D - E are the leading principal directions of the classifier's rows: what tells
    classes apart, as it is; GELU's almost linear half lets them through.
    """
    hidden, E = 2 * dim, texts.shape[1]
    K, kept = len(classifier), dim - E
    _, _, directions = torch.linalg.svd(classifier - classifier.mean(dim=0), full_matrices=False)  # (K, F)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    directions = directions * largest.sign()  # of either sign by chance: the same on every machine
    first, first_bias = torch.zeros(hidden, classifier.shape[1]), torch.zeros(hidden)
    second, second_bias = torch.zeros(dim, hidden), torch.zeros(dim)
    first[:K], first_bias[:K] = classifier, bias - config.threshold
    second[:E, :K] = config.aligned_scale * texts.T
    first[K : K + kept], first_bias[K : K + kept] = directions[:kept] / LINEAR_SCALE, LINEAR_SHIFT
    second[E:, K : K + kept] = LINEAR_SCALE * torch.eye(kept)
    second_bias[E:] = -LINEAR_SCALE * LINEAR_SHIFT
    # units to spare: they say nothing yet, and can learn to
    torch.nn.init.normal_(first[K + kept :], std=0.02, generator=torch.Generator().manual_seed(0))
    return {"fc1.weight": first, "fc1.bias": first_bias, "fc2.weight": second, "fc2.bias": second_bias}


def main(config: Config) -> None:
    """Load the parts, put them into one space, save."""
    name = f"{SMALL_MODEL}_{digest(config)}"
    apart = "smoke" if config.smoke else ""  # so that a smoke run's weights are never anybody's default
    checkpoint = (config.save_path or stage_dir(0) / "checkpoints" / apart) / f"{name}.pth"
    if checkpoint.is_file() and not config.force:
        print(f"{display(checkpoint)} has this configuration already; --force makes it again")
        return
    writable_folder(checkpoint.parent, "--save_path")
    started = time.perf_counter()

    # ---- the parts
    clip = load_clip(SMALL_MODEL, "random")
    image, text = image_weights(), text_weights()
    classifier, bias = image.pop("classifier.weight"), image.pop("classifier.bias")
    clip.model.visual.trunk.load_state_dict(image)
    tower = clip.model.text.transformer  # without the pooler and the constants that older transformers saved
    tower.load_state_dict({name: text[name] for name in tower.state_dict()})

    # ---- one space: text has the first dimensions, and zeros in the others
    dim, width = clip.model.text.proj.weight.shape  # D, E
    with torch.no_grad():
        clip.model.text.proj.weight.copy_(torch.eye(dim, width))
        clip.model.logit_scale.fill_(torch.tensor(1 / config.temperature).log())
    texts = class_text_features(clip)[:, :width]
    clip.model.visual.head.mlp.load_state_dict(image_projection(classifier, bias, texts, dim, config))

    recorded = {**clip.architecture(), "mean": IMAGE_MEAN, "std": IMAGE_STD, "stage": 0}
    write_checkpoint(checkpoint, {**recorded, "state_dict": clip.model.state_dict()})
    print(f"wrote {display(checkpoint)}  {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    files = [Path(__file__).parent / "config" / "small_clip.yaml"]
    run_script(main, Config, __doc__, partial(parse_with_files, files=files))
