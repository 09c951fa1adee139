"""Write token-safe prompts: what identifies each item, in at most the 77 tokens that CLIP reads.

    python preprocessing/04_generate_structured_prompts_for_v4.py
    python preprocessing/04_generate_structured_prompts_for_v4.py --dataset inshop

They lead with colour, category and attributes, leave out marketing, sizing, care and shipping text, and take whole
clauses while they fit. `clipfh.prompts.structured` says how; stage 3's v4 trains on them.

Reads metadata/<dataset>/image_paths.json and descriptions.json (script 00). Writes, beside them,
    image_prompts_cleaned_for_v4.json   {item_id: prompt}, for every identity
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from tqdm import tqdm

from clipfh.core import paths
from clipfh.core.cli import option, run_script
from clipfh.datasets import DATASET_NAMES
from clipfh.prompts.description import Description, read_descriptions
from clipfh.prompts.files import write_prompts
from clipfh.prompts.plain import prompt_from_description
from clipfh.prompts.structured import structure_prompt
from clipfh.prompts.tokens import counter_of
from clipfh.tables.records import read_image_meta

MAX_NAMED = 20


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset", choices=DATASET_NAMES)
    metadata_dir: Path | None = option(
        None, "folder of the metadata (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    model: str | None = option(
        None, "for whose tokenizer they are made (default: CLIP's byte pairs, 77 tokens)", aliases=("--model_arch",)
    )


def main(config: Config) -> None:
    """Build the prompts, write them, and say what they leave out."""
    metadata_dir = config.metadata_dir or paths.metadata_dir(config.dataset)
    table = read_image_meta(metadata_dir / "image_paths.json")
    descriptions = read_descriptions(metadata_dir / "descriptions.json")

    counter = counter_of(config.model)
    limit = counter.context_length
    structured, raw_lengths = {}, []
    for item_id in tqdm(sorted(set(table["item_id"])), desc="prompts", disable=None):
        description = descriptions.get(item_id, Description())
        structured[item_id] = structure_prompt(description, counter, limit, item_id)
        raw_lengths.append(counter.count(prompt_from_description(description, item_id)))

    path = metadata_dir / "image_prompts_cleaned_for_v4.json"
    write_prompts(path, {item_id: prompt.text for item_id, prompt in structured.items()})
    lengths = [counter.count(prompt.text) for prompt in structured.values()]
    print(f"{len(structured):,} prompts of {describe(lengths)} tokens; raw ones have {describe(raw_lengths)}")
    print(f"over {limit} tokens: {count_over(lengths, limit):,}; of the raw ones {count_over(raw_lengths, limit):,}")
    num_left_out = sum(prompt.left_out for prompt in structured.values())
    print(f"clauses of marketing, sizing, care, sale, styling or serving left out: {num_left_out:,}")
    no_room = [item_id for item_id, prompt in structured.items() if prompt.no_room]
    num_clauses = sum(prompt.no_room for prompt in structured.values())
    print(f"clauses without room: {num_clauses:,}{of_identities(no_room)}")
    for where, kind in (("between two words", "words"), ("within a word", "characters")):
        shortened = [item_id for item_id, prompt in structured.items() if prompt.shortened == kind]
        print(f"single clauses cut {where}: {len(shortened):,}{of_identities(shortened)}")
    print(f"wrote {path}")


def describe(lengths: list[int]) -> str:
    """Minimum to maximum, and the median."""
    return f"{min(lengths)} to {max(lengths)} (median {statistics.median(lengths):g})"


def count_over(lengths: list[int], limit: int) -> int:
    """How many are longer than what the model reads."""
    return sum(length > limit for length in lengths)


def of_identities(item_ids: list[str]) -> str:
    """How many identities, and the first of them by name."""
    if not item_ids:
        return ""
    names = ", ".join(item_ids[:MAX_NAMED]) + (", ..." if len(item_ids) > MAX_NAMED else "")
    return f", of {len(item_ids):,} identities: {names}"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
