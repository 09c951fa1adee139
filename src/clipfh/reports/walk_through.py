"""One dataset from its photos to the search page, as a Markdown page that is written from the files of its run.

    python -m clipfh.reports.walk_through --dataset folder --out docs/walk_through.md

Takes what `run_all.sh` left of the dataset: the prepared table and prompts, the newest evaluation of stages 1 to 3 of
one model, the logs of their trainings. Every number, table and picture comes from there.

Writes the page, and its pictures (under 100 kB each) into a folder of its name beside it.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import read_json, write_text
from clipfh.core.paths import RESULTS_DIR, ROOT, display, stage_dir
from clipfh.reports import walk_through_pictures as pictures
from clipfh.reports.compare import EvaluatedRun, read_evaluated_run
from clipfh.reports.gains import difference_and_p, mean_ap_gain
from clipfh.reports.results_table import note_of, result_tables
from clipfh.reports.stage_results import StageResult, stage_number, stage_results
from clipfh.reports.summary import read_summary
from clipfh.reports.text_table import render_table
from clipfh.tables.digest import SHORT
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS, PreparedDataset, all_prompts, load_prepared
from clipfh.tables.records import SPLITS, read_image_meta

STAGES = (1, 2, 3)
CLEAN_TABLE = "image_paths_clean.json"  # of script 03: without what trains nothing
TIME = len("2026-03-01 09:30:00 ")  # that a line of train.log begins with
SPLIT_IS_FOR = {
    "train": "to learn from",
    "val": "to choose the epoch by",
    "query": "the photos that are searched with, of the test identities",
    "gallery": "the photos that are searched, of the test identities",
}

TRAINING_IS = {
    2: (
        "## Stage 2: the image encoder learns",
        "Photos of one identity are drawn together, and away from others; the text encoder is frozen. A line an "
        "epoch: the terms of the loss, then how well the val identities are found by photos and by their prompts. BEST "
        "marks the highest val mAP so far, and what stands there is what the next stage goes on from.",
    ),
    3: (
        "## Stage 3: both encoders learn",
        "From stage 2's weights on, photos and prompts of an identity are drawn together, so that words find it, too. "
        "BEST marks the highest mean of mAP by photos and by prompts.",
    ),
}


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("folder", "name of a prepared dataset that stages 1 to 3 were run on")
    out: Path = option(ROOT / "docs" / "walk_through.md", "the page to write")
    results_dir: Path = option(RESULTS_DIR, "folder of summary.csv and of the evaluations")
    about: str = option("", "a sentence of the page on what the photos are")


@dataclass(frozen=True)
class Trained:
    """The training of an evaluated checkpoint.

    Attributes:
        checkpoint: its path, below the checkout where it is there.
        folder: of its log.
        lines: of its `train.log`, without the time.
    """

    checkpoint: str
    folder: Path
    lines: list[str]


def main(config: Config) -> None:
    """Find the run's files, draw the pictures, write the page.

    Raises:
        InputError: a stage was not evaluated on the dataset as it is prepared now, or files of its run are missing.
    """
    data = load_prepared(config.dataset)
    results = newest_of_each_stage(config.results_dir, data)
    runs = [read_evaluated_run(config.results_dir / result.runs[0]) for result in results]
    trained = [training_of(config.results_dir / result.runs[0], stage_number(result.stage)) for result in results[1:]]
    folder = config.out.with_suffix("")
    drawn = pictures.draw(folder, data, runs, [one.folder for one in trained], config.results_dir)
    parts = [
        *beginning(config, data),
        *photos_and_splits(data, drawn["photos"]),
        *prompts(data),
        *zero_shot(config, results[0]),
        *training(trained, drawn),
        *measured(results, config.results_dir),
        *found(runs, drawn),
        *use(config, data, trained[-1].checkpoint),
    ]
    write_text(config.out, "\n\n".join(parts) + "\n")
    size = sum(path.stat().st_size for path in drawn.values())
    print(f"wrote {display(config.out)} and {len(drawn)} pictures, {size / 1000:.0f} kB, in {display(folder)}")


def newest_of_each_stage(results_dir: Path, data: PreparedDataset) -> list[StageResult]:
    """The newest results of stages 1, 2 and 3 on `data` by its own protocol, of the model evaluated last in stage 3.

    Raises:
        InputError: a stage lacks; the message has the command.
    """
    known = [
        result
        for result in stage_results(read_summary(results_dir / "summary.csv"))
        if (result.dataset, result.data_digest, result.detail) == (data.name, data.digest[:SHORT], "")
        and result.official
        and result.runs
    ]
    model = max((r for r in known if stage_number(r.stage) == STAGES[-1]), key=lambda r: r.time, default=None)
    found = []
    for stage in STAGES:
        of_stage = [r for r in known if model and r.model == model.model and stage_number(r.stage) == stage]
        if not of_stage:
            raise InputError(
                f"{results_dir / 'summary.csv'} has no stage {stage} on {data.name} as it is prepared now, by its own "
                "protocol, or not of the model of stage 3. Run all of them: "
                f"bash run_all.sh --dataset {data.name} --data_root FOLDER"
            )
        found.append(max(of_stage, key=lambda r: r.time))
    return found


def training_of(run_dir: Path, stage: int) -> Trained:
    """The training that made what was evaluated in `run_dir`.

    Raises:
        InputError: its log is not where the stage's script writes it.
    """
    checkpoint = str(read_json(run_dir / "metrics.json", made_by="bash run_all.sh").get("checkpoint"))
    name = Path(checkpoint).name.removesuffix("_BEST.pth")
    folder = stage_dir(stage) / "logs" / name
    log = folder / "train.log"
    if not log.is_file():
        raise InputError(f"{display(log)} does not exist: the log of what {run_dir.name} evaluated")
    lines = log.read_text(encoding="utf-8").splitlines()
    return Trained(checkpoint, folder, [line[TIME:] for line in lines if line.strip()])


def beginning(config: Config, data: PreparedDataset) -> list[str]:
    """Title, origin, command."""
    command = ["python", "-m", "clipfh.reports.walk_through", "--dataset", data.name, "--out", display(config.out)]
    command += ["--about", config.about] if config.about else []
    root = read_json(data.folder / "dataset.json", made_by="script 00").get("data_root") or "FOLDER"
    shown = Path(root).name if Path(root).is_absolute() else root  # where it lies on this machine helps nobody
    return [
        "# From photos to a search page",
        f"<!-- written by: {shlex.join(command)} -->",
        f"One run of one dataset, `{data.name}`, step by step. {config.about}".strip(),
        "All numbers, tables and pictures here were written from the run's files; "
        "`python -m clipfh.reports.walk_through` writes the same page of another dataset.",
        f"```bash\nbash run_all.sh --dataset {data.name} --data_root {shlex.quote(shown)}\n```",
    ]


def photos_and_splits(data: PreparedDataset, picture: Path) -> list[str]:
    """What there is, and what it is for."""
    table = data.table
    rows = [
        f"| {split} | {of['item_id'].nunique():,} | {len(of):,} | {SPLIT_IS_FOR[split]} |"
        for split in SPLITS
        if len(of := table[table["split"] == split])
    ]
    rows.append(f"| all | {table['item_id'].nunique():,} | {len(table):,} | |")
    test = data.rows("query", "gallery")
    learned = data.rows("train", "val")
    examples = "\n".join(table["image"].iloc[:3])
    trained = read_image_meta(data.folder / CLEAN_TABLE)["item_id"]
    alone = data.rows("train")["item_id"].nunique() - trained[trained.isin(data.rows("train")["item_id"])].nunique()
    left_out = f" Of those, {alone:,} with fewer than two photos are left out of the training." if alone else ""
    return [
        "## The photos, and what each is for",
        f"```text\n{examples}\n...\n```",
        image(picture, "Photos of some identities, a row an identity"),
        f"{table['item_id'].nunique():,} identities with {len(table):,} photos. "
        f"{test['item_id'].nunique():,} identities are held out to test on, and no stage sees a photo of them before; "
        f"{learned['item_id'].nunique():,} are to learn from.{left_out}",
        "\n".join(["| split | identities | photos | for |", "| --- | ---: | ---: | --- |", *rows]),
    ]


def prompts(data: PreparedDataset) -> list[str]:
    """What stands for an identity in words."""
    texts = all_prompts(data, None, TOKEN_SAFE_PROMPTS)
    shown = [f"| {cell(item_id)} | {cell(several[0])} |" for item_id, several in list(texts.items())[:3]]
    distinct = len({tuple(several) for several in texts.values()})
    return [
        f"Each identity has a prompt, short enough for the model's text encoder; {distinct:,} of the {len(texts):,} "
        "prompts are different texts:",
        "\n".join(["| identity | prompt |", "| --- | --- |", *shown]),
    ]


def zero_shot(config: Config, result: StageResult) -> list[str]:
    """The row to beat."""
    meaning = link(config, ROOT / "docs" / "questions" / "what_is_minp.md")
    official, text = result.official, result.text_to_image
    told = f"Rank-1 {percent(official['rank1'].mean)}, mAP {percent(official['mAP'].mean)}"
    told += f"; with prompts as queries mAP {percent(text['mAP'].mean)}" if text else ""
    return [
        "## Stage 1: what the pretrained model can do already",
        f"`{result.model}`, as it comes, finds the test identities again with {told} (percent, official split). "
        f"This is the row to beat. [What the figures mean]({meaning}).",
    ]


def training(trained: Sequence[Trained], drawn: dict[str, Path]) -> list[str]:
    """What the trainings printed, with their curves."""
    parts = []
    for stage, one in zip(STAGES[1:], trained, strict=True):
        parts += [*TRAINING_IS[stage], "```text\n" + "\n".join(one.lines) + "\n```"]
        parts.append(image(drawn[f"curves{stage}"], f"Loss, learning rate and val figures of stage {stage} by epoch"))
    return parts


def measured(results: Sequence[StageResult], results_dir: Path) -> list[str]:
    """The table of the stages, and what each added."""
    tables = result_tables(results, results_dir)
    lines = []
    for before, after in pairwise(results):
        for protocol, by in (("official", "photos"), ("text_to_image", "words")):
            gain = mean_ap_gain(after, before, protocol, results_dir)
            if gain:
                difference, _ = difference_and_p(gain.mAP, gain.paired)
                lines.append(f"- stage {after.stage} over stage {before.stage}, by {by}: mAP {difference}")
    return ["## What each stage added", render_table(tables[0], markdown=True), "\n".join(lines), note_of(tables)]


def found(runs: Sequence[EvaluatedRun], drawn: dict[str, Path]) -> list[str]:
    """Rankings, what changed, the map."""
    first, last = runs[0], runs[-1]
    changes = pictures.changes_of(first, last)
    return [
        "## What is found",
        image(drawn["ranked"], f"Queries from the best to the worst, and what {last.label} ranks first for them"),
        f"Queries from {first.label} to {last.label}, by average precision: {changes.better:,} better, "
        f"{changes.worse:,} worse, {changes.equal:,} alike. Those that gained and lost most:",
        image(drawn["changed"], "Queries that gained and lost most, before and after"),
        "A map of test photos, near meaning similar (red frame: the most similar one there is of another identity):",
        image(drawn["map"], f"Map of test photos by the features of {last.label}"),
    ]


def use(config: Config, data: PreparedDataset, checkpoint: str) -> list[str]:
    """What to do with the result."""
    readme = link(config, ROOT / "README.md")
    return [
        "## Search with it, take it elsewhere",
        f"The [search page]({readme}#looking-at-it-the-search-page) shows the stages side by side; an "
        f"[index]({readme}#searching-with-what-was-trained) answers for many photos, and a checkpoint becomes a "
        f"[folder that other libraries load]({readme}#taking-a-model-elsewhere):",
        "```bash\n"
        f"bash set_up.sh app parts scale export && source .venv/bin/activate\n"
        f"python -m clipfh.app --dataset {data.name}\n"
        f"CKPT={shlex.quote(checkpoint)}\n"
        "python -m clipfh.index extract --images my_photos --ckpt $CKPT --out features\n"
        "python -m clipfh.index build --features features --index my_index\n"
        'python -m clipfh.index search --text "what to find" --ckpt $CKPT --index my_index\n'
        "python -m clipfh.export --ckpt $CKPT --format open_clip --out my_model\n"
        "```",
    ]


def link(config: Config, path: Path) -> str:
    """A file of the checkout, as the page links to it."""
    return Path(os.path.relpath(path, config.out.absolute().parent)).as_posix()


def image(picture: Path, alt: str) -> str:
    """A picture of the page's own folder."""
    return f"![{alt}]({picture.parent.name}/{picture.name})\n\n*{alt}.*"


def cell(text: str) -> str:
    """What users wrote, as a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def percent(fraction: float) -> str:
    """Such as 61.2."""
    return f"{100 * fraction:.1f}"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
