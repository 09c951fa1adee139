"""Write a checkpoint as a folder that open_clip, transformers or onnxruntime loads by itself, and check that it does.

    python -m clipfh.export --ckpt <run>_BEST.pth --format open_clip --out DIR --dataset inshop --license mit
    python -m clipfh.export --ckpt <run>_BEST.pth --format transformers --out DIR
    python -m clipfh.export --ckpt <run>_BEST.pth --format onnx --out DIR --int8

Writes weights, configuration, tokenizer and a model card (README.md) with code that loads them. That code runs in a
fresh process, and its features are compared with the checkpoint's, before DIR appears.
"""

import dataclasses
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_text
from clipfh.core.paths import RESULTS_DIR, display
from clipfh.export import onnx_folder, open_clip_folder, transformers_folder
from clipfh.export.card import card, summary_figures
from clipfh.export.finished_folder import finished_folder, require_free
from clipfh.export.int8 import Int8Cost, measure_int8
from clipfh.export.parity import Parity, check_parity, compare
from clipfh.export.samples import Samples, dataset_samples, drawn_samples
from clipfh.export.source import Source, load_source
from clipfh.tables.digest import require_unseen
from clipfh.tables.prepared import PreparedDataset, load_prepared

LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers", "onnx": "onnxruntime"}  # of each format
_PACKAGES = {"open_clip": (), "transformers": ("transformers",), "onnx": ("onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True)
class Config:
    """The command line."""

    ckpt: Path = option(dataclasses.MISSING, "the checkpoint: <run>_BEST.pth, stage 0's, or stage 4's _CLIP.pth")
    format: str = option(dataclasses.MISSING, "what is to load it", choices=tuple(LIBRARIES))
    out: Path = option(dataclasses.MISSING, "the folder to write; it must be absent or empty")
    dataset: str | None = option(
        None, "prepared dataset whose test photos and prompts are compared (default: drawn garments, fixed texts)"
    )
    int8: bool = option(False, "onnx: encoders with weights of 8 bits as well, if they cost at most a point of Rank-1")
    license: str = option("unknown", "of the exported weights, as the Hugging Face hub spells it, for the card")
    results_dir: Path = option(RESULTS_DIR, "where summary.csv lies, whose figures of the checkpoint go into the card")
    unrelated_ids: bool = option(
        False, "item ids equal to ones that the weights were trained on in another dataset stand for other things"
    )


def main(config: Config) -> None:
    """Write, check, describe; the folder appears when all of it has succeeded."""
    require_packages(config.format)
    if config.int8 and config.format != "onnx":
        raise InputError(f"--int8 is for --format onnx, not {config.format}")
    require_free(config.out)
    source = load_source(config.ckpt)
    data = load_prepared(config.dataset) if config.dataset else None
    if data and config.int8:  # the only figures that are measured here
        require_unseen(
            source.clip.seen_identities,
            data.digest,
            data.table,
            weights=display(config.ckpt),
            name=data.name,
            unrelated_ids=config.unrelated_ids,
        )
    figures = summary_figures(source, config.results_dir)
    with finished_folder(config.out) as folder, tempfile.TemporaryDirectory() as work:
        samples = dataset_samples(source.clip, data, Path(work)) if data else drawn_samples(source.clip, Path(work))
        weights = write(config, source, folder, samples)
        parity, cost = check(config, source, folder, samples, data, Path(work))
        text = card(
            source,
            folder,
            library=LIBRARIES[config.format],
            code=code_of(config.format, source, config.out.name),
            weights=weights,
            licence=config.license,
            figures=figures,
            parity=parity,
            int8=cost,
        )
        write_text(folder / "README.md", text)
    print(f"wrote {display(config.out)}: loaded back by {LIBRARIES[config.format]}, on {samples.told}")
    for name, found in parity.items():
        print(f"{name}: features differ by at most {found.photos:.1e} (photos) and {found.texts:.1e} (texts)")
    if cost:
        print(f"int8, {cost.told}: Rank-1 of photos {_both(cost.photos)}")
        if cost.texts:
            print(f"int8, {cost.num_texts} texts: Rank-1 {_both(cost.texts)}")


def require_packages(format: str) -> None:
    """Check that what a format needs is installed.

    Raises:
        InputError: something lacks.
    """
    absent = [name for name in _PACKAGES[format] if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"--format {format} needs {', '.join(absent)}: bash set_up.sh export, or pip install -e '.[export]'"
        )


def write(config: Config, source: Source, folder: Path, samples: Samples) -> list[str]:
    """Write the files of the format; the names of those that hold weights."""
    final = config.out.absolute()
    if config.format == "open_clip":
        return open_clip_folder.write_open_clip(source, folder, final)
    if config.format == "transformers":
        return transformers_folder.write_transformers(source, folder)
    weights = onnx_folder.write_onnx(source, folder, samples.texts)
    return [*weights, *onnx_folder.write_int8(folder)] if config.int8 else weights


def code_of(format: str, source: Source, folder: str) -> str:
    """The Python that loads the folder."""
    module = {"open_clip": open_clip_folder, "transformers": transformers_folder, "onnx": onnx_folder}[format]
    return module.loading_code(source, folder)


def check(
    config: Config, source: Source, folder: Path, samples: Samples, data: PreparedDataset | None, work: Path
) -> tuple[dict[str, Parity], Int8Cost | None]:
    """Load the folder back and compare; with int8, measure what it costs.

    Raises:
        InputError: it computes something else, or int8 costs too much.
    """
    library = LIBRARIES[config.format]
    code = code_of(config.format, source, str(folder.absolute()))
    parity = {"float32": check_parity(source, samples, code, work, library)}
    if not config.int8:
        return parity, None
    code = onnx_folder.loading_code(
        source, str(folder.absolute()), image=onnx_folder.IMAGE_INT8, text=onnx_folder.TEXT_INT8
    )
    parity["int8"] = compare(source, samples, code, work, library)  # how far off, without a limit: Rank-1 has one
    listing = config.results_dir / "unreadable_images.csv"
    return parity, measure_int8(source.clip, folder, data, listing, work)


def _both(rank1: tuple[float, float]) -> str:
    return f"{100 * rank1[0]:.1f} with float32, {100 * rank1[1]:.1f} with int8"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
