"""Stage 5: measure both GANs of a run on test faces, beside zero-shot CLIP, chance and an unconditional baseline.

    python model/stage5_text_image_gan/evaluate.py
    python model/stage5_text_image_gan/evaluate.py --run_dir PATH --baseline_dir PATH

Without --run_dir it takes the newest conditional run, and says which. The baseline is a run of train.py with
--config config/plain.yaml; without one its rows are left out.

Image to text: the share of faces whose embedding is nearest to a caption of their emotion. Text to image: FID, KID,
whether a classifier finds the emotion that was asked for, diversity, CLIP similarity. The features of FID and KID, and
the classifier, are of a network trained here on the real train faces (not Inception: compare runs, not papers).

Reads:   checkpoints of train.py, the faces they were trained on
Writes:  results/<dataset>_stage5_<time>/ (metrics.json, metrics.md, generated.png, mean_faces.png)
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from captions import CaptionSpace
from checkpoints import STAGE, TrainedGenerator, load_generator, load_recorded_clip, newest_epoch, newest_run
from dataset import for_clip, recorded_faces, signed_batches, to_pixels
from face_classifier import EPOCHS, classified, trained_classifier
from generative_metrics import frechet_distance, kernel_distance
from networks import FaceClassifier

from clipfh.core.cli import jsonable, option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import writable_folder, write_json, write_text
from clipfh.core.paths import RESULTS_DIR, display, stage_dir
from clipfh.core.run import environment, new_run_folder, pick_device, seed_everything
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.reports.image_grid import image_grid_figure

TRAIN = "python model/stage5_text_image_gan/train.py"
PLAIN = f"{TRAIN} --config model/stage5_text_image_gan/config/plain.yaml --gans text2img"


@dataclass(frozen=True)
class Config:
    """The command line."""

    run_dir: Path | None = option(None, "checkpoints of a run (default: the newest conditional one)")
    baseline_dir: Path | None = option(None, "those of an unconditional run (default: the newest on the same faces)")
    dataset: Path | None = option(None, "the faces, if they are not where they were in training")
    split: str = option("test", "val is for choosing settings, test for the figures", choices=("val", "test"))
    classifier_epochs: int = option(EPOCHS, "of the judge", at_least=1)
    classifier_dir: Path | None = option(None, "where the judge is kept (default: checkpoints/ beside this script)")
    pretrained: str | None = option(None, "the weights of CLIP, if they are not where they were in training")
    results_dir: Path = option(RESULTS_DIR, "folder of the results")
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the noise", at_least=0)


@torch.inference_mode()
def generate(generator: TrainedGenerator, labels: np.ndarray, seed: int, device: torch.device) -> torch.Tensor:
    """Faces of the emotions (N,), of captions and noise drawn anew: (N, C, S, S) on the CPU."""
    torch.manual_seed(seed)
    parts = []
    for part in torch.from_numpy(labels).split(256):
        noise = torch.randn(len(part), generator.network.noise_dim).to(device)
        parts.append(generator.network(generator.space.draw(part.to(device), 0.0), noise).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def image_to_text(
    generator: TrainedGenerator, clip: LoadedClip, faces: Faces, device: torch.device
) -> dict[str, float]:
    """Accuracies on real faces: of the generator, of zero-shot CLIP, of chance."""
    channels, space = generator.recorded["settings"]["channels"], generator.space
    captions = encode_texts(clip, [text for texts in space.captions for text in texts], device)
    prototypes = F.normalize(captions.view(len(EMOTIONS), -1, space.dim).mean(dim=1), dim=1).to(device)
    nearest, zero_shot = [], []
    for images in signed_batches(faces, channels, device):
        nearest.append(space.nearest(generator.network(images))[0].cpu())
        features = clip.model.encode_image(for_clip(images, clip), normalize=True)
        zero_shot.append((features @ prototypes.T).argmax(dim=1).cpu())
    right = torch.cat(nearest).numpy() == faces.labels
    figures = {"accuracy": float(right.mean()), "chance": 1 / len(EMOTIONS)}
    figures["zero_shot_clip"] = float((torch.cat(zero_shot).numpy() == faces.labels).mean())
    by_emotion = {f"accuracy_{name}": float(right[faces.labels == label].mean()) for label, name in enumerate(EMOTIONS)}
    return {**figures, **by_emotion}


def text_to_image(
    images: torch.Tensor, labels: np.ndarray, classifier: FaceClassifier, real_features: np.ndarray, real: Faces
) -> dict[str, float]:
    """What is measured of a set of faces against real ones.

    Args:
        images: (N, C, S, S) in -1..1, on the CPU.
        labels: (N,) the emotions that were asked for.
        classifier: the judge.
        real_features: (M, F), the classifier's, of `real`.
        real: the real faces.
    """
    device = next(classifier.parameters()).device
    features, emotions = classified(classifier, (part.to(device) for part in images.split(256)))
    classes = range(len(EMOTIONS))
    within = [kernel_distance(real_features[real.labels == c], features[labels == c]) for c in classes]
    pixels = images.flatten(1).numpy() * 127.5  # grey levels
    means = np.stack([pixels[labels == c].mean(axis=0) for c in classes])
    apart = np.sqrt(np.square(means[:, None] - means[None]).mean(axis=2))  # (7, 7)
    return {
        "fid": frechet_distance(real_features, features),
        "kid": kernel_distance(real_features, features),
        "kid_within_emotion": float(np.mean(within)),
        "accuracy": float((emotions == labels).mean()),
        "diversity": float(np.mean([spread(features[labels == c]) for c in classes])),
        "diversity_pixels": float(np.mean([spread(pixels[labels == c]) for c in classes])),
        "mean_images_apart": float(apart[~np.eye(len(classes), dtype=bool)].min()),
    }


def spread(vectors: np.ndarray) -> float:
    """The root mean square difference, a coordinate, of two different rows of (N, F): sqrt(2) standard deviations."""
    return float(np.sqrt(2 * vectors.var(axis=0, ddof=1).mean()))


@torch.inference_mode()
def clip_similarity(
    images: torch.Tensor, labels: np.ndarray, space: CaptionSpace, clip: LoadedClip, device: torch.device
) -> float:
    """The mean cosine similarity of images (N, C, S, S) to the first caption of the emotions (N,), with plain CLIP."""
    captions = encode_texts(clip, [texts[0] for texts in space.captions], device)  # (7, E)
    inputs = (for_clip(part.to(device), clip) for part in images.split(256))
    features = torch.cat([clip.model.encode_image(part, normalize=True).cpu() for part in inputs])
    return float((features * captions[torch.from_numpy(labels)]).sum(dim=1).mean())


def find_baseline(config: Config, generator: TrainedGenerator, device: torch.device) -> TrainedGenerator | None:
    """The unconditional run to compare with: the one asked for, else the newest on the same faces, else none.

    Raises:
        InputError: the one asked for is conditional, or of another image size or number of channels.
    """
    size, channels = (generator.recorded["settings"][name] for name in ("image_size", "channels"))
    folder = config.baseline_dir or newest_run("unconditional", generator.recorded["dataset"], size)
    if folder is None:
        print(f"no unconditional baseline of these faces at {size} px; make one with: {PLAIN} --dataset ...")
        return None
    path = newest_epoch(folder, "text2img")
    print(f"unconditional baseline: {display(path)}")
    baseline = load_generator(path, "text2img", device, image_size=size)
    if baseline.recorded["variant"] != "unconditional":
        raise InputError(f"--baseline_dir {folder} holds no unconditional run; make one with: {PLAIN}")
    if baseline.recorded["settings"]["channels"] != channels:
        raise InputError(f"{path} makes images of another number of channels than {generator.path} ({channels})")
    return baseline


def main(config: Config) -> None:
    """Load, generate, measure, draw."""
    device = pick_device(config.device)
    seed_everything(config.seed)
    folder = config.run_dir or newest_run("conditional")
    if folder is None:
        raise InputError(f"there is no run of stage 5. Make one with: {TRAIN}")
    writer = load_generator(newest_epoch(folder, "text2img"), "text2img", device)
    size, channels = writer.recorded["settings"]["image_size"], writer.recorded["settings"]["channels"]
    reader = load_generator(newest_epoch(folder, "img2text"), "img2text", device, image_size=size)
    print(f"run: {display(folder)}, {reader.path.name} and {writer.path.name}")
    baseline = find_baseline(config, writer, device)
    clip = load_recorded_clip(writer, config.pretrained, device)
    splits = recorded_faces(
        writer.recorded, config.dataset, size, split=config.split, skip_unreadable=config.skip_unreadable
    )
    if config.split not in splits:
        raise InputError(f"the faces have no split {config.split}; it has {', '.join(splits)}")
    real = splits[config.split]
    few = [name for label, name in enumerate(EMOTIONS) if (real.labels == label).sum() < 2]
    if few:
        raise InputError(
            f"the {config.split} split has fewer than two faces of {', '.join(few)}: nothing to compare with"
        )
    writable_folder(config.results_dir, "--results_dir")  # before the work, not after it

    # ---- the judge: a classifier of real train faces
    judges = config.classifier_dir or stage_dir(STAGE) / "checkpoints"
    classifier = trained_classifier(splits, channels, judges, device, epochs=config.classifier_epochs)
    real_images = all_signed(real, channels)
    real_features, real_emotions = classified(classifier, signed_batches(real, channels, device))

    # ---- every set of faces, measured in the same way against the real ones
    labels = np.sort(real.labels)  # as many of each emotion as there are real ones
    made = generate(writer, labels, config.seed, device)
    sets = {}
    for name in ("train", "val", "test"):
        if name in splits and name != config.split:
            others = splits[name].first_of_each_emotion(int(np.bincount(real.labels).max()))
            if np.bincount(others.labels).min() < 2:
                print(f"note: no row of the {name} faces: they are too few, an emotion has only one")
                continue
            sets[f"real {name} faces"] = (all_signed(others, channels), others.labels)
    sets["generated"] = (made, labels)
    if baseline:
        sets["unconditional baseline"] = (generate(baseline, labels, config.seed, device), labels)
    sets["noise"] = (torch.rand_like(made) * 2 - 1, labels)
    similarity = partial(clip_similarity, space=writer.space, clip=clip, device=device)
    judged = float((real_emotions == real.labels).mean())
    of_real = {"accuracy": judged, "clip_similarity": similarity(real_images, real.labels)}
    rows = {f"real {config.split} faces": of_real}
    for name, (images, asked) in sets.items():
        rows[name] = text_to_image(images, asked, classifier, real_features, real)
        rows[name]["clip_similarity"] = similarity(images, asked)
    judge = f"{real_features.shape[1]} features of a classifier trained on {len(splits['train']):,} real train faces"
    metrics = {
        "run": display(folder),
        "generators": [display(reader.path), display(writer.path)],
        "baseline": display(baseline.path) if baseline else None,
        "config": jsonable(config),
        "split": config.split,
        "faces": len(real),
        "features": judge,
        "image_to_text": {**image_to_text(reader, clip, real, device), "classifier": judged},
        "text_to_image": rows,
    }
    results = new_run_folder(config.results_dir, f"{writer.recorded['dataset']}_stage5", "--results_dir")
    write_json(results / "metrics.json", {**metrics, "environment": environment()})
    write_text(results / "metrics.md", report(metrics))
    print(report(metrics))
    draw(results, made, labels, real_images, real.labels)
    print(f"wrote {display(results)}")


def all_signed(faces: Faces, channels: int) -> torch.Tensor:
    """All faces as (N, C, S, S) in -1..1 on the CPU."""
    return torch.cat(list(signed_batches(faces, channels, torch.device("cpu"))))


COLUMNS = (
    *("accuracy", "fid", "kid", "kid_within_emotion", "diversity", "diversity_pixels", "mean_images_apart"),
    "clip_similarity",
)


WARNINGS = {  # where generated faces top real ones
    "accuracy": "The classifier finds the emotion in generated faces more often than in real ones: they are plainer\n"
    "than photographs, and a generator trained with `cycle` has a network much like this one for a teacher.",
    "clip_similarity": "Generated faces are more similar to their captions than real ones, for this CLIP: a generator\n"
    "can please a CLIP beyond what photographs do. It says nothing of how real they look; FID and KID do.",
}


def report(metrics: dict) -> str:
    """Two tables in Markdown, and what to beware of."""
    read, rows = metrics["image_to_text"], metrics["text_to_image"]
    lines = [
        f"# {metrics['run']}, {metrics['split']} split, {metrics['faces']} faces",
        "",
        f"FID and KID compare {metrics['features']}.",
        "",
        "| image to text | accuracy |",
        "|---|---|",
        f"| generator, nearest caption | {read['accuracy']:.3f} |",
        f"| classifier of real faces | {read['classifier']:.3f} |",
        f"| zero-shot CLIP | {read['zero_shot_clip']:.3f} |",
        f"| chance | {read['chance']:.3f} |",
        "",
        f"| text to image | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    real = next(row for name, row in rows.items() if name.startswith("real"))
    for figure, warning in WARNINGS.items():
        if rows["generated"][figure] > real[figure]:
            lines += ["", warning]
    return "\n".join(lines) + "\n"


def draw(folder: Path, made: torch.Tensor, asked: np.ndarray, real: torch.Tensor, labels: np.ndarray) -> None:
    """The generated faces by the emotions (N,) asked for, and the mean images of generated and of real ones."""
    rows = [(name, to_pixels(made[torch.from_numpy(asked == c)][:12])) for c, name in enumerate(EMOTIONS)]
    image_grid_figure(folder / "generated.png", rows, title="generated faces, the first of each emotion")
    sets = {"real": (real, labels), "generated": (made, asked)}
    rows = [
        (name, to_pixels(torch.stack([images[torch.from_numpy(of == c)].mean(dim=0) for c in range(len(EMOTIONS))])))
        for name, (images, of) in sets.items()
    ]
    image_grid_figure(folder / "mean_faces.png", rows, title="mean images by emotion", columns=EMOTIONS)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
