"""The model card: a README.md in the form of the Hugging Face hub."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from clipfh.core.errors import printable
from clipfh.core.paths import display
from clipfh.export.int8 import Int8Cost
from clipfh.export.parity import TOLERANCE, Parity
from clipfh.export.source import Source, sha256_of
from clipfh.models.clip import shown_size
from clipfh.reports.summary import FRACTIONS, read_summary

TAGS = ("clip", "feature-extraction", "image-retrieval", "identity-retrieval")
_PROTOCOLS = {
    "official": "photo to photo, official split",
    "random": "photo to photo, mean over {count} random splits",
    "text_to_image": "description to photo",
    "official_reranked": "photo to photo, official split, re-ranked ({detail})",
    "probe": "zero-shot classification ({detail}); Rank-1 is top-1",
}
_HEADINGS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}


def summary_figures(source: Source, results_dir: Path) -> pd.DataFrame:
    """The rows of the summary of this checkpoint: of each dataset those of the newest evaluation; may be empty.

    Raises:
        InputError: the summary cannot be read.
    """
    path = results_dir / "summary.csv"
    if not path.exists():
        return pd.DataFrame()
    rows = read_summary(path)
    rows = rows[rows["checkpoint"] == display(source.path)]
    return rows[rows["time"] == rows.groupby("dataset")["time"].transform("max")]


def card(
    source: Source,
    folder: Path,
    *,
    library: str,
    code: str,
    weights: list[str],
    licence: str,
    figures: pd.DataFrame,
    parity: dict[str, Parity],
    int8: Int8Cost | None,
) -> str:
    """The text of the card.

    Args:
        source: the checkpoint.
        folder: where the weights lie now.
        library: what loads them.
        code: that loads them; it defines `encode_photos` and `encode_texts`.
        weights: names of the files that hold them.
        licence: as the hub spells it.
        figures: of `summary_figures`.
        parity: of each pair of encoders.
        int8: None: there are no quantised ones.
    """
    front = {
        "license": licence,
        "library_name": {"onnxruntime": "onnx"}.get(library, library),
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [*TAGS, *(["onnx"] if library == "onnxruntime" else [])],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {source.clip.name}, fine-tuned for identity retrieval",
        _origin(source),
        "## Use\n\n"
        "Features of photos and texts in one space, of unit length: their product is the similarity. Meant to find the "
        "same identity (product, garment, hand) again in other photos, or by a description.",
        f"```python\n{code}\n\n"
        'photos = encode_photos(["photo.jpg"])\n'
        'texts = encode_texts(["a photo of a red dress"])\n'
        "print(photos @ texts.T)  # cosine similarities: (photos, texts)\n```",
        "## Figures",
        _figures_table(figures),
        "## Checked when this folder was written",
        _checks(library, parity, int8),
        "## Limits",
        _limits(source),
        "## Files",
        "| weights | SHA-256 |\n|---|---|\n"
        + "\n".join(f"| `{name}` | `{sha256_of(folder / name)}` |" for name in weights)
        + f"\n| the checkpoint, `{source.path.name}` | `{sha256_of(source.path)}` |",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(source: Source) -> str:
    recorded, clip = source.recorded, source.clip
    dataset = recorded.get("dataset")
    facts: dict[str, Any] = {
        "architecture": clip.name,
        "activation": "QuickGELU" if clip.quick_gelu else "GELU (towers of timm and transformers: their own)",
        "photos": shown_size(clip),
        "mean and deviation of RGB in 0..1": f"{_numbers(clip.mean)}; {_numbers(clip.std)}",
        "training data": f"{dataset} (train identities)" if dataset else "not fine-tuned on identities",
        "stage": recorded.get("stage"),
        "variant": recorded.get("variant"),
        "epoch": recorded.get("epoch"),
        "first weights": clip.first_weights,
        "training seed": clip.train_seed,
    }
    shown = [f"- {name}: {printable(value)}" for name, value in facts.items() if value not in (None, "")]
    return "\n".join(shown)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _figures_table(figures: pd.DataFrame) -> str:
    if figures.empty:
        return "No evaluation of this checkpoint was recorded where it was exported."
    lines = [
        f"| dataset | protocol | queries | gallery | {' | '.join(_HEADINGS.values())} |",
        f"|---|---|---:|---:|{'---:|' * len(FRACTIONS)}",
    ]
    for (dataset, protocol, detail), rows in figures.groupby(["dataset", "protocol", "detail"], sort=False):
        told = _PROTOCOLS[protocol].format(count=len(rows), detail=detail)
        told += f", {detail}" if detail and detail not in told else ""
        values = " | ".join(f"{100 * rows[name].mean():.1f}" for name in _HEADINGS)
        first = rows.iloc[0]
        cells = f"{dataset} | {told} | {first['num_query']} | {first['num_gallery']} | {values}"
        lines.append(f"| {printable(cells)} |")
    measured = ", ".join(f"{name} {time[:10]}" for name, time in figures.groupby("dataset")["time"].max().items())
    return (
        "\n".join(lines)
        + f"\n\nPercent, measured from the checkpoint on identities that it was not trained on: {measured}."
    )


def _checks(library: str, parity: dict[str, Parity], int8: Int8Cost | None) -> str:
    compared = next(iter(parity.values()))
    text = (
        f"The code above ran in a process of its own, with {library}, on {compared.told} (one of them too long for the "
        "tokenizer), and was compared with the checkpoint.\n\n"
        "| encoders | largest difference, photos | largest difference, texts | least cosine, photo files |\n"
        "|---|---:|---:|---:|\n"
    )
    text += "\n".join(
        f"| {name} | {found.photos:.1e} | {found.texts:.1e} | {found.least_cosine:.4f} |"
        for name, found in parity.items()
    )
    text += (
        "\n\nLargest absolute difference of a component of a unit-length feature; float32 must stay under "
        f"{TOLERANCE:g}. Photos were brought into the model's frame beforehand; the last column "
        "leaves that to the code above."
    )
    if int8:
        text += f"\n\nRank-1, percent, {int8.told}:\n\n| queries | number | float32 | int8 |\n|---|---:|---:|---:|\n"
        text += f"| photos | {int8.num_photos} | {100 * int8.photos[0]:.1f} | {100 * int8.photos[1]:.1f} |"
        if int8.texts:
            text += f"\n| texts | {int8.num_texts} | {100 * int8.texts[0]:.1f} | {100 * int8.texts[1]:.1f} |"
    return text


def _limits(source: Source) -> str:
    length = source.clip.tokenizer.context_length
    lines = [
        "The figures hold for photos like those of the training data; measure on your own before you rely on them.",
        "Near-identical items get near-identical features. A similarity is no probability, and no proof of identity.",
        "Not meant to recognise people, or to decide anything about them.",
        "Photos with transparent parts belong on white first, as in training; the code above leaves that out.",
        f"Texts beyond {length} tokens are cut.",
        "Licences of the first weights and of the training data apply.",
    ]
    return "\n".join(f"- {line}" for line in lines)
