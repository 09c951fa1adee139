"""Look for identities that training or evaluation can't use well: too few images, no prompt, another one's prompt.

    python preprocessing/02_analyze_prompt_consistency.py
    python preprocessing/02_analyze_prompt_consistency.py --dataset inshop --prompt_json my_prompts.json

Two prompts count as the same where CLIP reads the same: cleaned, in lower case, cut at 77 tokens. It changes nothing.

Reads metadata/<dataset>/image_paths.json (script 00) and image_prompts_per_identity.json (script 01). Writes, beside
them,
    prompt_consistency.csv     one row an identity: item_id, split (train, val or test), num_images, num_tokens (of its
                               longest prompt, start and end tokens counted), over_limit, missing, duplicate_of (the
                               first identity with the same prompt), too_few_images
    prompt_token_lengths.csv   how many prompts have how many tokens
    prompt_token_lengths.png   the same as a histogram
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from clipfh.core import paths
from clipfh.core.cli import option, run_script
from clipfh.core.files import replace_atomically
from clipfh.datasets import DATASET_NAMES
from clipfh.prompts.files import read_prompts
from clipfh.prompts.tokens import TokenCounter, counter_of
from clipfh.tables.records import read_image_meta

MAX_NAMED = 5


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset", choices=DATASET_NAMES)
    metadata_dir: Path | None = option(
        None, "folder of the metadata (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    prompt_json: Path | None = option(None, "the prompts (default: image_prompts_per_identity.json of that folder)")
    model: str | None = option(
        None, "whose tokenizer counts (default: CLIP's byte pairs, 77 tokens)", aliases=("--model_arch",)
    )
    min_images: int = option(2, "an identity with fewer images has too few")


def main(config: Config) -> None:
    """Read, analyse, write, print the summary."""
    metadata_dir = config.metadata_dir or paths.metadata_dir(config.dataset)
    table = read_image_meta(metadata_dir / "image_paths.json")
    prompts = read_prompts(config.prompt_json or metadata_dir / "image_prompts_per_identity.json", allow_empty=True)

    counter = counter_of(config.model)
    consistency, lengths = analyze(table, prompts, config.min_images, counter)
    with replace_atomically(metadata_dir / "prompt_consistency.csv") as path:
        consistency.to_csv(path, index=False, lineterminator="\n")
    histogram = pd.DataFrame(sorted(Counter(lengths).items()), columns=["num_tokens", "num_prompts"])
    with replace_atomically(metadata_dir / "prompt_token_lengths.csv") as path:
        histogram.to_csv(path, index=False, lineterminator="\n")
    with replace_atomically(metadata_dir / "prompt_token_lengths.png") as path:
        draw_histogram(path, lengths, config.dataset, counter.context_length)
    print_summary(consistency, lengths, config.min_images, counter.context_length)
    if unused := sorted(prompts.keys() - set(table["item_id"])):
        print(f"prompts of unknown identities: {named(unused)}")
    print(f"wrote prompt_consistency.csv, prompt_token_lengths.csv and prompt_token_lengths.png to {metadata_dir}")


def analyze(
    table: pd.DataFrame, prompts: dict[str, list[str]], min_images: int, counter: TokenCounter
) -> tuple[pd.DataFrame, list[int]]:
    """The rows of prompt_consistency.csv, and the number of tokens of every prompt of the table's identities."""
    role = table["split"].replace({"query": "test", "gallery": "test"})
    per_item = (
        pd.DataFrame({"split": role, "item_id": table["item_id"]}).groupby("item_id")["split"].agg(["first", "size"])
    )
    rows, lengths = [], []
    first_with: dict[tuple[int, ...], str] = {}
    for item_id, split, num_images in tqdm(per_item.itertuples(), total=len(per_item), desc="tokens", disable=None):
        tokens = [tuple(ids) for ids in map(counter.encode, prompts.get(item_id, [])) if ids]
        counts = [len(ids) + counter.num_special for ids in tokens]
        # the end token takes the last place, so that much of a longer prompt is read
        same = [first_with.setdefault(ids[: counter.context_length - counter.num_special], item_id) for ids in tokens]
        rows.append(
            {
                "item_id": item_id,
                "split": split,
                "num_images": num_images,
                "num_tokens": max(counts, default=0),
                "over_limit": max(counts, default=0) > counter.context_length,
                "missing": not tokens,
                "duplicate_of": next((other for other in same if other != item_id), ""),
                "too_few_images": num_images < min_images,
            }
        )
        lengths += counts
    return pd.DataFrame(rows), lengths


def draw_histogram(path: Path, lengths: list[int], name: str, context_length: int) -> None:
    """Number of prompts by number of tokens, with the limit."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    highest = max(lengths, default=0)
    width = max(1, highest // 60)
    axes.hist(lengths, bins=range(0, highest + 2 * width, width), color="#4878a8")
    num_cut = sum(length > context_length for length in lengths)
    axes.axvline(
        context_length + 0.5, color="#c0392b", linestyle="--", label=f"{context_length}: {num_cut:,} prompts are cut"
    )
    axes.set_xlabel("tokens of a prompt, start and end tokens counted")
    axes.set_ylabel("prompts")
    axes.set_title(f"{name}: {len(lengths):,} prompts")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def print_summary(consistency: pd.DataFrame, lengths: list[int], min_images: int, context_length: int) -> None:
    """What a user should know before training, in a line each."""
    num_cut = sum(length > context_length for length in lengths)
    too_few = consistency[consistency["too_few_images"]]
    missing = consistency.loc[consistency["missing"], "item_id"].tolist()
    print(f"identities: {len(consistency):,} with {len(lengths):,} prompts")
    print(f"fewer than {min_images} images: {named(too_few['item_id'].tolist())}")
    for split, group in too_few.groupby("split"):
        print(f"    in {split}: {len(group):,}")
    print(f"without prompt: {named(missing)}")
    groups = consistency[consistency["duplicate_of"] != ""].groupby("duplicate_of")["item_id"].apply(list)
    print(f"prompts that several identities share: {len(groups):,}")
    for first, others in list(groups.items())[:MAX_NAMED]:
        print(f"    {named([first, *others])}")
    if len(groups) > MAX_NAMED:
        print("    ... all of them are in column duplicate_of")
    print(f"over {context_length} tokens, cut when the model reads them: {num_cut:,} of {len(lengths):,} prompts")


def named(item_ids: list[str]) -> str:
    """How many, and the first of them by name."""
    if not item_ids:
        return "0"
    return f"{len(item_ids):,} ({', '.join(item_ids[:MAX_NAMED])}{', ...' if len(item_ids) > MAX_NAMED else ''})"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
