"""Choose a recipe of stage 2 or 3 by cross-validation over the identities to train on; no test photo is looked at.

    python -m clipfh.pipeline.sweep --stage 2 --dataset grocery
    python -m clipfh.pipeline.sweep --stage 3 --dataset grocery --recipes my_recipe.yaml --val_folds 5 --seeds 0-1

A recipe is a YAML file that goes over the stage's own (see README, "Changing a recipe"): by default every file of
`config/ablation/` of the stage, each one change. The stage's own recipe, `default`, is always measured, too: what
run_all.sh trains with this model on a dataset of this name. Each is trained once a fold and seed, in turn, and
validated on the identities of the fold; a run that is finished is not run again, unless its command, the stage's
scripts and recipes, the metadata or the weights it starts from changed. A change of `src/clipfh` is not seen: remove
the folder of the sweep then. Stage 3 starts from stage 2's own recipe in the same fold.

A recipe's figures are those of the epoch that is best on average over its runs, not each run's own best: with few
identities the best of many epochs flatters. Weights between start and end (`wise_ft`) are left out for that reason.
Stage 2 is judged by mAP between photos, stage 3 by the mean of that and of mAP with prompts as queries.

Another recipe is preferred where it is further above `default` than the best of as many equal ones is in 2.5% of
sweeps (Student's t over the folds, Bonferroni's correction for the number of recipes): of few folds, only one far
above. Seeds share a fold's identities, and are averaged first: with more of them a fold's figure is firmer, but there
are no more folds.

Writes results/sweeps/<dataset>_<model>_stage<N>/: table.md, table.json, and a folder a run with its log; names say
`_from_<recipe>` where `--start_recipe` has one.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from scipy.special import stdtrit

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, write_json, write_text
from clipfh.core.names import require_name
from clipfh.core.paths import DEFAULT_MODEL, ROOT, display, stage_dir
from clipfh.models.names import canonical_model_name
from clipfh.models.pretrained import find_weights
from clipfh.pipeline.options import absolute_file, seed_list
from clipfh.pipeline.run_all import of_stage4, suiting_files
from clipfh.pipeline.steps import Step, end_on_signals, recorded, run_step
from clipfh.tables.prepared import prepare_weights

SCRIPTS = {2: "train_clip_img_encoder_finetune.py", 3: "train_clip_joint_encoders.py"}
JUDGED_BY = {2: ("val_mAP",), 3: ("val_mAP", "val_text_mAP")}  # the mean of those
DEFAULT = "default"
CHANCE = 0.025  # that equal recipes give one which val is said to prefer to the stage's own
BEGIN, END = "<!-- ablation:begin -->", "<!-- ablation:end -->"

Rows = list[dict[str, Any]]  # of a run's metrics.jsonl


@dataclass(frozen=True)
class Config:
    """The command line."""

    stage: int = option(2, "whose recipe is chosen", choices=tuple(SCRIPTS))
    dataset: str = option("synthetic", "name of a prepared dataset, a folder under metadata/")
    model: str = option(DEFAULT_MODEL, "as the stage's script takes it")
    pretrained: str | None = option(None, "weights to start from, as the stage's script takes them")
    recipes: str | None = option(
        None, "YAML files, with commas between them (default: all of config/ablation/ of the stage)"
    )
    start_recipe: str | None = option(
        None, "of stage 3: a YAML file that goes over stage 2's own; its weights are what is started from"
    )
    val_folds: int = option(
        3, "parts of the train and val identities; each is validated on once", at_least=2, at_most=100
    )
    seeds: str = option("0", "of the training: 0-2, or 0,3")
    flags: str = option("", 'flags for every training, as in --flags "--epochs 3 --device cpu"')
    readme: bool = option(False, "write the table into the stage's README, too, between its ablation markers")


@dataclass(frozen=True)
class Recipe:
    """A recipe to measure: its name, and the file of what it changes; the stage's own has none."""

    name: str
    file: Path | None = None


def main(config: Config) -> None:
    """Train all that is not yet trained, then print and write the table."""
    config = replace(config, pretrained=start_of(config))
    seeds, recipes, first = seed_list(config.seeds), recipes_of(config), recipe_of_stage2(config)
    origin = f"_from_{first.name}" if first.file else ""  # in names, so that runs of two starts lie apart
    require_name(config.dataset, "--dataset")
    os.chdir(ROOT)
    end_on_signals()
    runs = [(fold, seed) for seed in seeds for fold in range(config.val_folds)]
    require_readable(config, recipes, config.stage)
    if config.stage == 3:
        require_readable(config, [first], 2)
    count = len(recipes) * len(runs)
    print(f"{len(recipes)} recipes in {config.val_folds} folds with {len(seeds)} seeds: {count} trainings")
    of_recipe: dict[str, list[Rows]] = {recipe.name: [] for recipe in recipes}
    for fold, seed in runs:  # each recipe once before the next fold: what is stopped early can be compared
        start = best_of_stage2(config, first, fold, seed) if config.stage == 3 else []
        for recipe in recipes:
            run = Recipe(f"{recipe.name}{origin}", recipe.file)
            log = train(config, config.stage, run, fold, seed, start)
            of_recipe[recipe.name].append(metrics_of(log))
    judged_by = JUDGED_BY[config.stage]
    table = [measured(recipe.name, of_recipe[recipe.name], judged_by, config.val_folds) for recipe in recipes]
    changes = {recipe.name: changed(recipe.file) for recipe in recipes}
    told = f"{config.dataset}, {config.model}: {config.val_folds} folds of the train identities, seeds {config.seeds}"
    told += "".join(f", over `{file}`" for file in own_files(config, config.stage))
    told += f", from stage 2 with {changed(first.file)}" if first.file else ""
    text = f"{told}\n\n{markdown(table, changes)}\n\n{verdict(table)}\n"
    folder = sweep_folder(config, config.stage)
    name = f"table{origin}"
    write_json(folder / f"{name}.json", {"of": told, "recipes": table})
    write_text(folder / f"{name}.md", text)
    print(f"\n{text}\n{display(folder / f'{name}.md')}")
    if config.readme:
        write_into(stage_dir(config.stage) / "README.md", text)


def start_of(config: Config) -> str | None:
    """`--pretrained` as it means the same from any folder and for all trainings: a file by its path, a tag as it is.

    Raises:
        InputError: it is `stage4`, which has made none.
    """
    return of_stage4(config.model) if config.pretrained == "stage4" else absolute_file(config.pretrained)


def own_files(config: Config, stage: int) -> list[str]:
    """What run_all.sh lays over the files that the stage reads by itself: part of its own recipe and of the others."""
    return suiting_files(display(stage_dir(stage)), config.model, config.dataset)


def recipes_of(config: Config) -> list[Recipe]:
    """The stage's own recipe, and those of the files.

    Raises:
        InputError: a file is missing, or two have one name.
    """
    if config.recipes is None:
        files = sorted((stage_dir(config.stage) / "config" / "ablation").glob("*.yaml"))
    else:
        files = [require_file(Path(name), "--recipes").absolute() for name in config.recipes.split(",")]
    names = [file.stem for file in files]
    if twice := [name for name in [*names, DEFAULT] if [*names, DEFAULT].count(name) > 1]:
        raise InputError(f"--recipes: two recipes are called {twice[0]}, which is what their rows are called")
    return [Recipe(DEFAULT), *(Recipe(file.stem, file) for file in files)]


def recipe_of_stage2(config: Config) -> Recipe:
    """The recipe of stage 2 whose weights stage 3 starts from.

    Raises:
        InputError: its file is missing or called as the own one, or stage 2 itself is swept.
    """
    if config.start_recipe is None:
        return Recipe(DEFAULT)
    if config.stage != 3:
        raise InputError("--start_recipe says what stage 3 starts from; stage 2 starts from --pretrained")
    file = require_file(Path(config.start_recipe), "--start_recipe").absolute()
    if file.stem == DEFAULT:
        raise InputError(
            f"--start_recipe: {DEFAULT} is what stage 2's own recipe is called; give the file another name"
        )
    return Recipe(file.stem, file)


def require_readable(config: Config, recipes: Sequence[Recipe], stage: int) -> None:
    """End as a training would that cannot read a recipe or --flags, before hours of others: `--help` reads them, too.

    Raises:
        SystemExit: the training's script has said what is wrong.
    """
    script = stage_dir(stage) / SCRIPTS[stage]
    for recipe in recipes:
        flags = [*over(config, stage, recipe), *shlex.split(config.flags), "--help"]
        if code := subprocess.run([sys.executable, str(script), *flags], stdout=subprocess.DEVNULL).returncode:
            sys.exit(code)


def over(config: Config, stage: int, recipe: Recipe) -> list[str]:
    """The flag for the files of a recipe, by their paths from the project's folder."""
    files = [*own_files(config, stage), *([display(recipe.file)] if recipe.file else [])]
    return ["--config", *files] if files else []


def train(config: Config, stage: int, recipe: Recipe, fold: int, seed: int, start: Sequence[str] = ()) -> Path:
    """Train where it is not done yet; the step's log, whose stamp names what was made. A failure ends the sweep."""
    run = f"{recipe.name}_fold{fold}of{config.val_folds}_seed{seed}"
    folder = sweep_folder(config, stage) / run
    script = stage_dir(stage) / SCRIPTS[stage]
    command = ["python", display(script), "--dataset", config.dataset, "--model", config.model]
    command += ["--pretrained", config.pretrained] if config.pretrained and not start else []
    command += over(config, stage, recipe)
    command += ["--val_fold", f"{fold}/{config.val_folds}", "--seed", str(seed), "--wise_ft", "0"]
    command += [*start, "--save_path", str(folder), "--log_dir", str(folder), *shlex.split(config.flags)]
    inputs = [f"{display(script.parent)}/*.py", f"{display(script.parent)}/config/*.yaml"]
    inputs += [*([display(recipe.file)] if recipe.file else []), f"metadata/{config.dataset}/*.json"]
    inputs += [] if start else first_weights(config)  # the name of a checkpoint to start from is new with each training
    outputs = [f"{folder}/*/metrics.jsonl", f"{folder}/*_BEST.pth"]
    step = Step(f"stage {stage} {run}", folder / "run.log", command, outputs=outputs, inputs=inputs)
    if code := run_step(step):
        sys.exit(code)
    for last in folder.glob("*_LAST.pth"):  # several times as large as BEST, and of a run that is finished
        last.unlink()
    return step.log


def first_weights(config: Config) -> list[str]:
    """The file that a training starts from, which stage 0 makes where it is missing; none of an open_clip tag.

    Raises:
        InputError: there are no such weights, or stage 0 failed.
    """
    prepare_weights(config.model, config.pretrained)
    file = find_weights(canonical_model_name(config.model), config.pretrained).file
    return [display(file)] if file else []


def metrics_of(log: Path) -> Rows:
    """The lines of the `metrics.jsonl` of a run, by its step's log."""
    (metrics,) = recorded(log, "*/metrics.jsonl")
    return [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]


def best_of_stage2(config: Config, recipe: Recipe, fold: int, seed: int) -> list[str]:
    """The flag by which stage 3 starts from stage 2's BEST with `recipe` in this fold."""
    log = train(config, 2, recipe, fold, seed)
    return ["--init_ckpt", recorded(log, "*_BEST.pth")[-1]]


def sweep_folder(config: Config, stage: int) -> Path:
    """Where a stage's runs and its table lie."""
    return Path("results", "sweeps", f"{config.dataset}_{config.model.replace('/', '-')}_stage{stage}")


def measured(name: str, runs: Sequence[Rows], judged_by: Sequence[str], num_folds: int) -> dict[str, Any]:
    """A recipe's figures at the epoch that is best on average over its runs.

    Args:
        name: of the recipe.
        runs: a list of lines each, of as many epochs; epoch 0 is what training began with. All folds with one seed,
            then with the next.
        judged_by: the figures whose mean is to be high; those that no run has are left out.
        num_folds: of them.

    Returns:
        name; epoch; `value`, the figure judged by, of each fold, a mean over its seeds; `figures`, the mean of each val
        figure; `start`, the same before training; `seconds`, the mean time of a run.
    """
    epochs = sorted({row["epoch"] for row in runs[0]} - {0})
    last = min(max(row["epoch"] for row in rows) for rows in runs)  # patience may end some early
    by_epoch = [{row["epoch"]: row for row in rows} for rows in runs]
    known = [figure for figure in judged_by if all(figure in rows[0] for rows in by_epoch)]

    def values(epoch: int) -> list[float]:
        return [statistics.fmean(rows[epoch][figure] for figure in known) for rows in by_epoch]

    best = max((epoch for epoch in epochs if epoch <= last), key=lambda epoch: statistics.fmean(values(epoch)))
    return {
        "name": name,
        "epoch": best,
        "value": [statistics.fmean(values(best)[fold::num_folds]) for fold in range(num_folds)],
        "figures": means(rows[best] for rows in by_epoch),
        "start": means(rows[0] for rows in by_epoch),
        "seconds": statistics.fmean(sum(row.get("seconds", 0) for row in rows) for rows in runs),
    }


def means(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The mean of each val figure over `rows`."""
    rows = list(rows)
    names = [name for name in rows[0] if name.startswith("val_") and all(name in row for row in rows)]
    return {name: statistics.fmean(row[name] for row in rows) for name in names}


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Mean difference of what two recipes are judged by, over the folds, and its standard error.

    Folds are not independent (their train identities overlap): the error is somewhat too small.
    """
    apart = [a - b for a, b in zip(one["value"], other["value"], strict=True)]
    return statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def markdown(table: Sequence[dict[str, Any]], changes: dict[str, str]) -> str:
    """The table, in percent: what training began with, the stage's own recipe, and each other beside it."""
    labels = {"val_rank1": "Rank-1", "val_mAP": "mAP", "val_text_mAP": "text mAP"}
    shown = [figure for figure in labels if all(figure in row["figures"] for row in table)]
    head = ["recipe", "what it changes", *(labels[figure] for figure in shown), "to default", "epoch", "s a run"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    lines.append(["*start*", "", *(f"{100 * table[0]['start'][figure]:.1f}" for figure in shown), "", "", ""])
    for row in table:
        apart = ""
        if row is not table[0]:
            mean, error = difference(row, table[0])
            apart = f"{100 * mean:+.1f} ± {100 * error:.1f}"
        figures = [f"{100 * row['figures'][figure]:.1f}" for figure in shown]
        lines.append([row["name"], changes[row["name"]], *figures, apart, str(row["epoch"]), f"{row['seconds']:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(table: Sequence[dict[str, Any]]) -> str:
    """Which recipe val prefers; the stage's own stays where the best of equal ones could be as far above it by chance.

    By chance means in more than `CHANCE` of sweeps: one-sided, Student's t, with Bonferroni's correction. Of several
    that are further above, val prefers the highest; one that is higher still, but by chance, is not in its way.
    """
    default, num_folds = table[0], len(table[0]["value"])
    best = max(table, key=lambda row: statistics.fmean(row["value"]))
    if best is default:
        return f"Of {len(table)} recipes val prefers the stage's own ({num_folds} folds)."
    needed = stdtrit(num_folds - 1, 1 - CHANCE / (len(table) - 1))  # Student's t
    apart = [(*difference(row, default), row["name"]) for row in table[1:]]
    if above := [(mean, error, name) for mean, error, name in apart if mean > needed * error]:
        mean, error, name = max(above)
        told = _told(mean, error, num_folds)
        return f"Of {len(table)} recipes val prefers {name}: {told}, above {needed:.1f} standard errors."
    mean, error = difference(best, default)
    return (
        f"Of {len(table)} recipes {best['name']} is highest, {_told(mean, error, num_folds)}: not the {needed:.1f} "
        "standard errors that tell the best of so many from chance; the stage's own stays."
    )


def _told(mean: float, error: float, num_folds: int) -> str:
    return f"{100 * mean:+.1f} ± {100 * error:.1f} (mean and standard error over {num_folds} folds)"


def changed(file: Path | None) -> str:
    """The keys of a recipe's file with their values, as the table shows them."""
    if file is None:
        return ""
    keys = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
    return ", ".join(f"`{key}: {value}`" for key, value in keys.items())


def write_into(readme: Path, text: str) -> None:
    """Put the table between the ablation markers of a README.

    Raises:
        InputError: it has no such markers.
    """
    before, begin, rest = require_file(readme, "--readme").read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme} has no lines {BEGIN} and {END}")
    write_text(readme, f"{before}{BEGIN}\n{text}{END}{after}")
    print(f"written into {display(readme)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
