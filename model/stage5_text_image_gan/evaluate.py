"""Stage 5: measure both GANs of a run on test faces, beside baselines.

    python model/stage5_text_image_gan/evaluate.py
    python model/stage5_text_image_gan/evaluate.py --run_dir PATH --baseline_dir PATH

Without --run_dir it takes the newest conditional run, and says which. The baseline is a run of train.py with
--config model/stage5_text_image_gan/config/plain.yaml; without one its rows are left out.

Image to text: the share of faces whose embedding is nearest to a caption of their emotion, beside a classifier and a
linear probe of CLIP's image features (both learn from the real train faces), zero-shot CLIP and chance. Text to image:
FID, KID, whether the classifier finds the emotion that was asked for, diversity, CLIP similarity. The features of FID
and KID are the classifier's, not Inception's: compare runs, not papers.

Reads:   checkpoints of train.py, the faces they were trained on
Writes:  results/<dataset>_stage5_<time>/: metrics.json, metrics.md, classification_report.txt (precision, recall and
         confusions of every emotion), generated.png, mean_faces.png
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
from checkpoints import STAGE, TrainedGenerator, load_generator, load_recorded_clip, newest_epoch, newest_run
from dataset import recorded_faces, signed_batches
from evaluation_report import draw, emotion_tables, report
from face_classifier import EPOCHS, classified, trained_classifier
from face_measures import FaceSet, Judge, clip_similarity, face_set, generate, measure_faces
from face_readers import read_emotions, reading_figures

from clipfh.core.cli import jsonable, option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import writable_folder, write_json, write_text
from clipfh.core.paths import RESULTS_DIR, display, stage_dir
from clipfh.core.run import environment, new_run_folder, pick_device, seed_everything
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.clip import LoadedClip

TRAIN = "python model/stage5_text_image_gan/train.py"
PLAIN = f"{TRAIN} --config model/stage5_text_image_gan/config/plain.yaml --gans text2img"


@dataclass(frozen=True)
class Config:
    """The command line."""

    run_dir: Path | None = option(None, "folder with the checkpoints of a run (default: the newest conditional run)")
    baseline_dir: Path | None = option(
        None,
        "folder with those of an unconditional run to compare with (default: the newest on the same faces, if any)",
    )
    dataset: Path | None = option(None, "the faces, folder or CSV, if they have moved since the training")
    split: str = option(
        "test", "which faces to measure on: val while choosing settings, test for the figures", choices=("val", "test")
    )
    classifier_epochs: int = option(EPOCHS, "epochs of the classifier that judges faces", at_least=1)
    classifier_dir: Path | None = option(
        None, "folder where that classifier is kept for the next time (default: checkpoints/ beside this script)"
    )
    pretrained: str | None = option(None, "file or tag of the CLIP's weights, if they have moved since the training")
    results_dir: Path = option(RESULTS_DIR, "where the folder with metrics and figures goes")
    skip_unreadable: bool = option(False, "leave out images that cannot be read, instead of stopping")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    seed: int = option(0, "seed of captions and noise of the generated faces", at_least=0)


@dataclass(frozen=True)
class TrainedRun:
    """What is measured: both generators of a run, the CLIP they were trained around, a baseline to compare with."""

    folder: Path
    reader: TrainedGenerator  # image to text
    writer: TrainedGenerator  # text to image
    baseline: TrainedGenerator | None
    clip: LoadedClip

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.writer.recorded["settings"]["image_size"]

    @property
    def channels(self) -> int:
        """1: grey, 3: colour."""
        return self.writer.recorded["settings"]["channels"]


def load_run(config: Config, device: torch.device) -> TrainedRun:
    """The run that was asked for, or the newest one.

    Raises:
        InputError: there is none; or its files do not belong together.
    """
    folder = config.run_dir or newest_run("conditional")
    if folder is None:
        raise InputError(f"there is no run of stage 5. Make one with: {TRAIN}")
    writer = load_generator(newest_epoch(folder, "text2img"), "text2img", device)
    size = writer.recorded["settings"]["image_size"]
    reader = load_generator(newest_epoch(folder, "img2text"), "img2text", device, image_size=size)
    print(f"run: {display(folder)}, {reader.path.name} and {writer.path.name}")
    baseline = find_baseline(config, writer, device)
    return TrainedRun(folder, reader, writer, baseline, load_recorded_clip(writer, config.pretrained, device))


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


def load_splits(config: Config, run: TrainedRun) -> dict[str, Faces]:
    """The faces of the run, or those asked for.

    Raises:
        InputError: they cannot be read, were trained on, or are too few to measure anything on.
    """
    splits = recorded_faces(
        run.writer.recorded, config.dataset, run.image_size, split=config.split, skip_unreadable=config.skip_unreadable
    )
    if config.split not in splits:
        raise InputError(f"the faces have no split {config.split}; it has {', '.join(splits)}")
    few = [name for label, name in enumerate(EMOTIONS) if (splits[config.split].labels == label).sum() < 2]
    if few:
        raise InputError(
            f"the {config.split} split has fewer than two faces of {', '.join(few)}: nothing to compare with"
        )
    return splits


def sets_of_faces(
    config: Config, run: TrainedRun, splits: dict[str, Faces], device: torch.device
) -> dict[str, FaceSet]:
    """What is compared with the real faces: those of the other splits, generated ones, the baseline's, noise."""
    real, sets = splits[config.split], {}
    for name in ("train", "val", "test"):
        if name in splits and name != config.split:
            others = splits[name].first_of_each_emotion(int(np.bincount(real.labels).max()))
            if np.bincount(others.labels).min() < 2:
                print(f"note: no row of the {name} faces: they are too few, an emotion has only one")
                continue
            sets[f"real {name} faces"] = face_set(others, run.channels)
    labels = np.sort(real.labels)  # as many of each emotion as there are real ones
    made = sets["generated"] = generate(run.writer, labels, config.seed, device)
    if run.baseline:
        sets["unconditional baseline"] = generate(run.baseline, labels, config.seed, device)
    sets["noise"] = FaceSet(torch.rand_like(made.images) * 2 - 1, labels)
    return sets


def main(config: Config) -> None:
    """Load, measure both GANs, write."""
    device = pick_device(config.device)
    seed_everything(config.seed)
    run = load_run(config, device)
    splits = load_splits(config, run)
    real = splits[config.split]
    writable_folder(config.results_dir, "--results_dir")  # before the work, not after it

    # ---- the judge: a classifier of real train faces
    judges = config.classifier_dir or stage_dir(STAGE) / "checkpoints"
    classifier = trained_classifier(splits, run.channels, judges, device, epochs=config.classifier_epochs)
    judge = Judge(classifier, *classified(classifier, signed_batches(real, run.channels, device)), real.labels)

    # ---- image to text: the same real faces for every reader
    readings = read_emotions(run.reader, run.clip, splits, config.split, judge.emotions, device)
    read = reading_figures(readings)

    # ---- text to image: every set of faces, measured in the same way against the real ones
    real_set, sets = face_set(real, run.channels), sets_of_faces(config, run, splits, device)
    similarity = partial(clip_similarity, space=run.writer.space, clip=run.clip, device=device)
    rows = {f"real {config.split} faces": {"accuracy": read["classifier"], "clip_similarity": similarity(real_set)}}
    seen = {}
    for name, faces in sets.items():
        figures, seen[name] = measure_faces(faces, judge, device)
        rows[name] = {**figures, "clip_similarity": similarity(faces)}

    # ---- the results
    trained_on = f"{len(splits['train']):,}"
    metrics = {
        "run": display(run.folder),
        "generators": [display(run.reader.path), display(run.writer.path)],
        "baseline": display(run.baseline.path) if run.baseline else None,
        "config": jsonable(config),
        "split": config.split,
        "faces": len(real),
        "features": f"{judge.features.shape[1]} features of a classifier trained on {trained_on} real train faces",
        "image_to_text": read,
        "text_to_image": rows,
    }
    results = new_run_folder(config.results_dir, f"{run.writer.recorded['dataset']}_stage5", "--results_dir")
    write_json(results / "metrics.json", {**metrics, "environment": environment()})
    write_text(results / "metrics.md", report(metrics))
    made = sets["generated"]
    write_text(results / "classification_report.txt", emotion_tables(readings, made.labels, seen["generated"]))
    draw(results, made, real_set)
    print(report(metrics))
    print(f"wrote {display(results)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
