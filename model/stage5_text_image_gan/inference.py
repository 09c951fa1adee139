"""Stage 5: use a run. Image to its best caption, text to images, image to text to image.

    python model/stage5_text_image_gan/inference.py
    python model/stage5_text_image_gan/inference.py --image PHOTO_OR_FOLDER
    python model/stage5_text_image_gan/inference.py --task text_to_image --text "a photo of a happy face" --num 16

Without --run_dir it takes the newest conditional run, and says which; without --image, val faces that the run was not
trained on; without --text, the first caption of every emotion. --text is any text: CLIP embeds it as it does captions.

Reads:   checkpoints of train.py
Writes:  results/stage5_inference_<time>/: captions.json, text_to_image.png, image_to_image.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import numpy as np
import torch
from checkpoints import TrainedGenerator, load_generator, load_recorded_clip, newest_epoch, newest_run
from dataset import recorded_faces, to_pixels, to_signed

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.core.paths import RESULTS_DIR, display
from clipfh.core.run import new_run_folder, pick_device
from clipfh.datasets.fer2013 import EMOTIONS
from clipfh.images.photo_files import account, find_photos, require_photos
from clipfh.images.transforms import decode
from clipfh.reports.image_grid import image_grid_figure

TASKS = ("all", "image_to_text", "text_to_image", "image_to_image")
MAX_ROWS = 40  # of a grid


@dataclass(frozen=True)
class Config:
    """The command line."""

    task: str = option("all", "what to make; all: each of the three", choices=TASKS)
    run_dir: Path | None = option(None, "folder with the checkpoints of a run (default: the newest conditional run)")
    image: Path | None = option(
        None, "a photo of one face, or a folder of such photos (default: a val face of each emotion)"
    )
    text: str | None = option(None, "what to draw (default: the first caption of every emotion)")
    num: int = option(8, "images to draw for each text or photo", at_least=1, at_most=32)
    pretrained: str | None = option(
        None, "file or tag of the CLIP's weights, if they have moved since the training; only --text needs it"
    )
    results_dir: Path = option(RESULTS_DIR, "where the folder with captions and images goes")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    seed: int = option(0, "seed of the noise of the drawn images", at_least=0)


def read_photos(path: Path, image_size: int) -> tuple[list[str], np.ndarray]:
    """Names and pixels (N, S, S, 3) of one photo, or of all below a folder; what is left out is counted and said.

    Raises:
        InputError: nothing to read.
    """
    if path.is_dir():
        folder, (found, left_out) = path, find_photos(path)
    elif path.exists():
        folder, found, left_out = path.parent, [path.name], []
    else:
        raise InputError(f"--image {path} does not exist")
    names, photos = [], []
    for name in found:
        try:
            photos.append(decode(folder / name, image_size))
            names.append(name)
        except Exception as error:  # decoders raise anything
            left_out.append((name, f"cannot be decoded: {type(error).__name__}"))
    if left_out:
        print(account(len(names), left_out))
    require_photos(path, names, left_out)
    return names, np.stack(photos)


def val_faces(reader: TrainedGenerator, image_size: int) -> tuple[list[str], np.ndarray]:
    """The first val face of each emotion.

    Raises:
        InputError: the faces of the run are not where they were.
    """
    source = ROOT / reader.recorded["faces"]["source"]
    if not source.exists():
        raise InputError(f"the faces of the run are no longer at {source}; give photos with --image")
    faces = recorded_faces(reader.recorded, None, image_size, split="val", skip_unreadable=True)["val"]
    rows = np.array([np.flatnonzero(faces.labels == label)[0] for label in range(len(EMOTIONS))])
    chosen = faces.take(rows)
    return list(chosen.names), chosen[:]


def draw_images(writer: TrainedGenerator, embeddings: torch.Tensor, num: int, device: torch.device) -> np.ndarray:
    """`num` images of each embedding (N, E): (N, num, S, S, 3) uint8. Every embedding gets the same noise."""
    noise = torch.randn(num, writer.network.noise_dim).to(device)
    made = [writer.network(row.expand(num, -1).to(device), noise) for row in embeddings]
    return np.stack([to_pixels(images) for images in made])


@torch.inference_mode()
def main(config: Config) -> None:
    """Load what the task needs, do it, write it."""
    if config.text is not None and config.task not in ("all", "text_to_image"):
        raise InputError(f"--text is for --task text_to_image, and --task is {config.task}")
    if config.image and config.task == "text_to_image":
        raise InputError("--image is for --task image_to_text and image_to_image, and --task is text_to_image")
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    folder = config.run_dir or newest_run("conditional")
    if folder is None:
        raise InputError("there is no run of stage 5. Make one with: python model/stage5_text_image_gan/train.py")
    print(f"run: {display(folder)}")
    wanted = TASKS[1:] if config.task == "all" else (config.task,)
    reader = writer = size = None
    if wanted != ("text_to_image",):
        reader = load_generator(newest_epoch(folder, "img2text"), "img2text", device)
        size = reader.recorded["settings"]["image_size"]
    if wanted != ("image_to_text",):
        writer = load_generator(newest_epoch(folder, "text2img"), "text2img", device, image_size=size)
    results = new_run_folder(config.results_dir, "stage5_inference", "--results_dir")

    if reader is not None:
        names, pixels = read_photos(config.image, size) if config.image else val_faces(reader, size)
        embeddings = reader.network(to_signed(pixels, reader.recorded["settings"]["channels"], device))
        emotions, places = reader.space.nearest(embeddings)
        captions = [reader.space.captions[c][k] for c, k in zip(emotions.tolist(), places.tolist(), strict=True)]
        for name, caption in zip(names, captions, strict=True):
            print(f"{name}: {caption}")
        write_json(results / "captions.json", dict(zip(names, captions, strict=True)))
    if "text_to_image" in wanted:
        if config.text:
            clip = load_recorded_clip(writer, config.pretrained, device)
            texts, asked = [config.text], writer.space.embed(clip, [config.text], device)
        else:
            texts, asked = [texts[0] for texts in writer.space.captions], writer.space.features[:, 0]
        rows = list(zip(texts, draw_images(writer, asked, config.num, device), strict=True))
        image_grid_figure(results / "text_to_image.png", rows, title="text to image")
    if "image_to_image" in wanted:
        made = draw_images(writer, embeddings[:MAX_ROWS], config.num, device)
        given = zip(captions[:MAX_ROWS], pixels[:MAX_ROWS], made, strict=True)
        rows = [(caption, np.concatenate([photo[None], images])) for caption, photo, images in given]
        image_grid_figure(results / "image_to_image.png", rows, title="image to text to image", columns=("given",))
    print(f"wrote {display(results)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
