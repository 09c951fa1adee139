"""What the evaluation writes for people: tables in Markdown, figures, and a classification report of every reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dataset import to_pixels
from face_measures import FaceSet
from face_readers import Readings
from sklearn.metrics import classification_report, confusion_matrix

from clipfh.datasets.fer2013 import EMOTIONS
from clipfh.reports.image_grid import image_grid_figure

READERS = {  # in the order of the table
    "generator": "generator, nearest caption",
    "classifier": "classifier of real faces",
    "linear_probe": "linear probe of CLIP's image features",
    "zero_shot_clip": "zero-shot CLIP",
}
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


def report(metrics: dict[str, Any]) -> str:
    """Two tables in Markdown, and what to beware of."""
    read, rows = metrics["image_to_text"], metrics["text_to_image"]
    scaled = "standardised features" if read["linear_probe_standardised"] else "features as they are"
    lines = [
        f"# {metrics['run']}, {metrics['split']} split, {metrics['faces']} faces",
        "",
        f"FID and KID compare {metrics['features']}.",
        "",
        "| image to text | accuracy |",
        "|---|---|",
        *(f"| {title} | {read['accuracy' if name == 'generator' else name]:.3f} |" for name, title in READERS.items()),
        f"| chance | {read['chance']:.3f} |",
        "",
        f"The linear probe is a logistic regression of the train faces with C {read['linear_probe_C']:g} on {scaled}:",
        f"of the val faces, which chose that, it gets {read['linear_probe_val_accuracy']:.3f} right.",
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


def emotion_tables(readings: Readings, asked: np.ndarray, seen: np.ndarray) -> str:
    """A classification report and a confusion matrix for every reader, and for the generated faces.

    Args:
        readings: of real faces.
        asked: (N,) the emotions that generated faces were asked for.
        seen: (N,) those that the classifier of real faces finds in them.
    """
    pairs = {title: (readings.labels, readings.found[name]) for name, title in READERS.items()}
    pairs["generated faces: the emotions asked for, as the classifier of real faces sees them"] = (asked, seen)
    parts, classes = [], range(len(EMOTIONS))
    for title, (labels, found) in pairs.items():
        table = classification_report(labels, found, labels=classes, target_names=EMOTIONS, digits=3, zero_division=0)
        confusion = pd.DataFrame(confusion_matrix(labels, found, labels=classes), EMOTIONS, EMOTIONS)
        parts.append(f"{title}\n\n{table}\nfound (columns) of each emotion (rows)\n\n{confusion.to_string()}\n")
    return "\n\n".join(parts)


def draw(folder: Path, made: FaceSet, real: FaceSet) -> None:
    """The generated faces by the emotions asked for, and the mean images of generated and of real ones."""
    classes = [(c, name) for c, name in enumerate(EMOTIONS)]
    rows = [(name, to_pixels(made.images[torch.from_numpy(made.labels == c)][:12])) for c, name in classes]
    image_grid_figure(folder / "generated.png", rows, title="generated faces, the first of each emotion")
    rows = [
        (name, to_pixels(torch.stack([of.images[torch.from_numpy(of.labels == c)].mean(dim=0) for c, _ in classes])))
        for name, of in (("real", real), ("generated", made))
    ]
    image_grid_figure(folder / "mean_faces.png", rows, title="mean images by emotion", columns=EMOTIONS)
