"""How well stage 2 finds identities again, beside the recipes of other libraries with the same start and budget.

    python benchmarks/bench_accuracy.py                                 # grocery, seeds 0, 1 and 2
    python benchmarks/bench_accuracy.py --dataset synthetic
    python benchmarks/bench_accuracy.py --epochs 2                      # of ours: half the time for all
    python benchmarks/bench_accuracy.py --only oml_inshop --seeds 0     # one contestant, one seed
    python benchmarks/bench_accuracy.py --quick

The same for all: the photos (decoded once, the same bytes), the train, val and test identities of the prepared dataset,
small-clip with the weights of stage 0, views of 128 px and photos of 160 px to measure, one thread, and the time. The
sizes are the benchmark's own, and ours is given them as flags, whatever stage 2's files say: they are the same for all,
and kept results stay comparable.

The time is CPU seconds of the one thread. Ours is stage 2's script, run as a user runs it but for the sizes; the budget
is all that its first seed takes behind the measurement of the start: steps, validation, checkpoints, pictures, the line
between first and last weights. A peer's step and its measurement on val are timed once, right behind it, and the budget
is counted in such steps from then on: what is timed comes first, on a machine that does nothing else, and what follows
is the same on a busy one, and can be continued on another. A peer measures val as often as ours has epochs. Its best
weights on val are tested, those of the start among them. Loading, and the measurement of the start, are free for all.
So are, of ours, the features by the first weights that distill holds it near: README.md says what that is worth.

The budget stays where the recipe of ours changes later, so that the peers need not run again; a bar says whether ours
still keeps to it.

A peer's recipe is its own (accuracy_contestants.py), but for the learning rate, which is searched for on the val
identities with the first seed and the whole budget: over three rates, and beyond where the best is at an end. At
the best rate, batch norms that keep their statistics and such that learn them are compared in the same way.

Tested is on the official split, by our exact figures, at the end of each training: the kept files have test figures of
all that was tried. Chosen is by val alone, and shown is what was chosen. The difference in mAP is ours less the peer's:
each query's average precision is averaged over the seeds, and identities are drawn for the 95% interval.

Each result is written to benchmarks/results/accuracy_<dataset>/ as soon as it is there and is not computed again,
unless data, configuration of the first weights, sizes, recipe or number of steps have changed. The recipe of ours is
the values of stage 2's files and loss.py; that of the peers is the code of accuracy_contestants.py and
accuracy_training.py, whatever comments and docstrings say, and the versions of their libraries. The peers need
`make install-bench`.
"""

import argparse
import ast
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import FOLDER, ROOT, Case, available, bar, packages_of, run_benchmark, run_in_turn, save_results
from PIL import Image

sys.path.insert(0, str(ROOT / "src"))

# isort: split
from accuracy_contestants import CONTESTANTS, Recipe, Setting
from accuracy_training import (
    MEASURED_AT,
    VIEW_SIZE,
    costs,
    load_dataset,
    load_model,
    setting_of,
    steps_within,
    test,
    train,
    train_by_script,
)

from clipfh.core.errors import InputError
from clipfh.core.files import write_json, write_text
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import SMALL_MODEL, processed_dir
from clipfh.core.run import seed_everything
from clipfh.metrics.statistics import mean_and_std, paired_bootstrap_difference
from clipfh.models.checkpoint import read_stage_checkpoint
from clipfh.models.clip import LoadedClip
from clipfh.tables.prepared import PreparedDataset, prepare_weights
from clipfh.training.data import TrainingData, load_training_data

STAGE2 = ROOT / "model" / "stage2_img_encoder_finetune"
START, OURS = "start", "ours"
TITLES = {
    START: "stage 1, the start of all",
    OURS: "stage 2",
    "oml_inshop": "open-metric-learning, In-Shop: hard triplets, soft margin",
    "oml_sop": "open-metric-learning, SOP: hard triplets of unit features",
    "pml_example": "pytorch-metric-learning, example: triplets, multi-similarity miner",
    "pml_sop": "pytorch-metric-learning, author's SOP: multi-similarity loss and miner",
    "clip_reid": "CLIP-ReID's loss: id + triplet + image-to-text",
}
LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # learning rates, tried from 1e-4 to 1e-3 first
QUICK_DATASET, QUICK_LADDER = "bench_accuracy_quick", (1e-3,)

Result = dict[str, Any]  # what a case returns, as its docstring says


# ---- the cases: each runs in a process of its own, see harness.Case


def prepare_start(dataset: str) -> Callable[[], Result]:
    """Stage 1: the first weights as they are; `test`'s figures."""
    data = load_dataset(dataset)
    clip = load_model(data)
    return lambda: test(clip, data)


def prepare_ours(dataset: str, smoke: bool, seed: int, epochs: int | None) -> Callable[[], Result]:
    """Stage 2's script in a process of its own; `test`'s figures of its BEST, `val_mAP`, `epochs`, `cpu_seconds`."""
    data = load_dataset(dataset)

    def run() -> Result:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--model", SMALL_MODEL, "--seed", str(seed), "--device", "cpu", *(["--smoke"] if smoke else [])]
            options += ["--epochs", str(epochs)] if epochs else []
            options += ["--image_size", str(VIEW_SIZE), "--eval_image_size", str(MEASURED_AT)]
            options += ["--metadata_dir", str(data.folder), "--save_path", folder, "--log_dir", folder]
            script = str(STAGE2 / "train_clip_img_encoder_finetune.py")
            cpu_seconds = train_by_script([sys.executable, script, *options])
            (log,) = Path(folder).glob("*/metrics.jsonl")
            (best,) = Path(folder).glob("*_BEST.pth")
            return {
                **test(load_model(data, str(best)), data),
                "val_mAP": read_stage_checkpoint(best, 2)["val_mAP"],
                "epochs": sum(json.loads(line)["epoch"] > 0 for line in log.read_text("utf-8").splitlines()),
                "cpu_seconds": cpu_seconds,
            }

    return run


def prepare_costs(dataset: str, contestant: str) -> Callable[[], Result]:
    """CPU seconds of a peer's `step` and of its measurement on `val`."""
    clip, pictures, setting, recipe = _peer(load_dataset(dataset), contestant, seed=0, lr=0.0)
    return lambda: costs(recipe, setting, clip, pictures)


def prepare_peer(
    dataset: str, contestant: str, seed: int, lr: float, keep_statistics: bool, steps: int, validations: int
) -> Callable[[], Result]:
    """A peer's recipe for a number of steps; `test`'s figures of its best weights on val, and those of `train`."""
    data = load_dataset(dataset)
    clip, pictures, setting, recipe = _peer(data, contestant, seed, lr)

    def run() -> Result:
        trained = train(recipe, setting, clip, pictures, steps, validations, keep_statistics=keep_statistics)
        return {**test(clip, data), **trained}

    return run


def _peer(
    data: PreparedDataset, contestant: str, seed: int, lr: float
) -> tuple[LoadedClip, TrainingData, Setting, Recipe]:
    sys.path += packages_of("oml")  # behind ours: its pin of an older numpy is for other parts of it
    keep_freed_memory()  # as stage 2 does
    seed_everything(seed)
    clip = load_model(data)
    pictures = load_training_data(data, clip, stage=2, seed=seed, skip_unreadable=False)
    setting = setting_of(data, clip, pictures)
    return clip, pictures, setting, CONTESTANTS[contestant](setting, lr)


# ---- results that are kept


@dataclass(frozen=True)
class Work:
    """The results of the cases on a dataset, each in a file.

    Attributes:
        dataset: as `load_dataset` takes it.
        folder: of the files.
        origin: what decides about all results, and about the files' names: the data's digest, the first weights'
            configuration, and the sizes.
        smoke: ours makes a smoke run.
        epochs: of ours, where not its recipe's: a smaller budget for all.
        only: the peers to run; of the others there is what has run. Empty: all.
    """

    dataset: str
    folder: Path
    origin: str
    smoke: bool = False
    epochs: int | None = None
    only: Sequence[str] = ()

    def start(self) -> Result:
        """Stage 1."""
        return self._result("prepare_start", START, "", run=True)

    def ours(self, seed: int) -> Result:
        """Stage 2."""
        arguments = {"seed": seed, "smoke": self.smoke, "epochs": self.epochs}
        return self._result("prepare_ours", f"{OURS}_seed{seed}", recipe_of_ours(), run=True, **arguments)

    def budget(self, ours: Result) -> Result:
        """The `cpu_seconds` and `epochs` that all have: those of the first run of ours that there was."""
        known = json.dumps([self.origin, self.smoke, self.epochs])
        file = self.folder / f"budget_{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"
        if not file.exists():
            write_json(file, {key: ours[key] for key in ("cpu_seconds", "epochs")})
        return json.loads(file.read_text("utf-8"))

    def costs(self, name: str) -> Result | None:
        """What a peer's step and its measurement on val take; None: was not timed."""
        return self._result("prepare_costs", f"{name}_costs", recipe_of_peers(), run=self.runs(name), contestant=name)

    def peer(self, name: str, seed: int, tuned: Result, budget: Result) -> Result | None:
        """A peer with its `lr` and `keep_statistics`, and the time that `budget`, of ours, took; None: has not run."""
        costs = self.costs(name)
        if costs is None:
            return None
        steps = steps_within(budget["cpu_seconds"], budget["epochs"], costs)
        arguments = {"contestant": name, "seed": seed, **tuned, "steps": steps, "validations": budget["epochs"]}
        label = f"{name}_seed{seed}_lr{tuned['lr']:g}" + ("" if tuned["keep_statistics"] else "_statistics")
        return self._result("prepare_peer", label, recipe_of_peers(), run=self.runs(name), **arguments)

    def runs(self, name: str) -> bool:
        """Whether what is missing of a peer is to be run."""
        return not self.only or name in self.only

    def _result(self, prepare: str, label: str, recipe: str, *, run: bool, **arguments: Any) -> Result | None:
        known = json.dumps([self.origin, recipe, arguments], sort_keys=True)
        file = self.folder / f"{label}_{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"
        if file.exists():
            return json.loads(file.read_text("utf-8"))
        if not run:
            return None
        case = Case(label, prepare, {"dataset": self.dataset, **arguments}, warmup=0)
        (sample,) = run_in_turn([case], rounds=1)[label]
        write_text(file, json.dumps(sample.value) + "\n")
        shown = {key: round(sample.value[key], 3) for key in ("val_mAP", "cpu_seconds") if key in sample.value}
        print(f"    {round(sample.seconds)} s {shown or ''}", file=sys.stderr)
        return sample.value


def recipe_of_ours() -> str:
    """What decides about stage 2: the values of its files for small-clip, and its loss. The loop is held by tests."""
    files = [STAGE2 / "config" / name for name in ("default.yaml", "small_clip.yaml")]
    values = {key: value for file in files for key, value in yaml.safe_load(file.read_text("utf-8")).items()}
    del values["image_size"], values["eval_image_size"]  # the benchmark has its own
    return json.dumps([values, _code(STAGE2 / "loss.py")], sort_keys=True)


def recipe_of_peers() -> str:
    """What decides about the peers: their recipes, the loop that they have in common, and their libraries."""
    files = [FOLDER / "accuracy_contestants.py", FOLDER / "accuracy_training.py"]
    return json.dumps([*map(_code, files), *map(_version, ("open-metric-learning", "pytorch-metric-learning"))])


def _code(file: Path) -> str:
    """A module without comments and docstrings: other words there ask for no training anew."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def _version(package: str) -> str:
    found = distributions(name=package, path=[*sys.path, *packages_of("oml")])  # where a peer's process imports from
    return next(iter(found)).version


def best_rate(ladder: Sequence[float], first: int, last: int, val_mAP: Callable[[float], float | None]) -> float | None:
    """The learning rate with the highest val mAP, of a rising ladder's rungs `first` to `last`.

    Where the best of them is at an end, the ladder's next rung is tried, too. None where a rung's figure is missing.
    """
    while True:
        found = {rate: val_mAP(rate) for rate in ladder[first : last + 1]}
        if None in found.values():
            return None
        best = ladder.index(max(found, key=lambda rate: found[rate]))
        if best == first > 0:
            first -= 1
        elif best == last < len(ladder) - 1:
            last += 1
        else:
            return ladder[best]


def results_of_peer(work: Work, name: str, ours: dict[int, Result], ladder: Sequence[float]) -> list[Result] | None:
    """A peer's results with the seeds of `ours`, tuned with the first, whose time all have; None: not all ran."""
    first = next(iter(ours))
    budget = work.budget(ours[first])

    def val_mAP(lr: float, *, keep_statistics: bool = True) -> float | None:  # noqa: N802
        result = work.peer(name, first, {"lr": lr, "keep_statistics": keep_statistics}, budget)
        # of what was trained: the start, which may be better still, is the same for all rates
        return result and max(result["val_curve"][1:], default=0.0)

    tried_first = [place for place, rate in enumerate(ladder) if 1e-4 <= rate <= 1e-3]
    lr = best_rate(ladder, tried_first[0], tried_first[-1], val_mAP)
    learned = lr and val_mAP(lr, keep_statistics=False)
    if learned is None:
        return None
    tuned = {"lr": lr, "keep_statistics": learned <= val_mAP(lr)}
    results = [work.peer(name, seed, tuned, budget) for seed in ours]
    return None if None in results else [{**result, **tuned} for result in results]


# ---- the table


def compared(name: str, theirs: Sequence[Result], ours: Sequence[Result]) -> dict[str, Any]:
    """A contestant's row: figures over the seeds, and what ours has more."""
    row: dict[str, Any] = {"name": TITLES[name], "contestant": name, "seeds": len(theirs)}
    cells = {}
    for figure, column in (("rank1", "Rank-1"), ("mAP", "mAP")):
        mean, std = mean_and_std([result[figure] for result in theirs])
        row |= {figure: round(mean, 5)} | ({} if math.isnan(std) else {f"{figure}_std": round(std, 5)})
        cells[column] = f"{100 * mean:.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}")
    cells["stage 2 less it, mAP"] = ""
    if name != OURS:
        before, after = (
            np.mean([result["average_precision"] for result in several], axis=0) for several in (theirs, ours)
        )
        found = paired_bootstrap_difference(before, after, theirs[0]["item_ids"])
        row |= {key: round(getattr(found, key), 5) for key in ("difference", "low", "high", "p")}
        difference, low, high = (100 * value for value in (found.difference, found.low, found.high))
        cells["stage 2 less it, mAP"] = f"{difference:+.1f} [{low:.1f}, {high:.1f}]"
    for key, column in (("lr", "learning rate"), ("steps", "steps")):
        values = [result[key] for result in theirs if key in result]
        if values:
            row[key] = float(f"{sum(values) / len(values):.4g}")
        cells[column] = f"{row[key]:g}" if values else ""
    if "keep_statistics" in theirs[0]:
        row["keep_statistics"] = theirs[0]["keep_statistics"]
    cells["batch norms"] = {True: "kept", False: "learned"}.get(row.get("keep_statistics"), "")
    return {**row, "cells": cells}


def show(work: Work, results: dict[str, Sequence[Result]], *, whole: bool) -> None:
    """Print the table of the contestants that are there, and write it; `whole`: to the README, too."""
    rows = [compared(name, several, results[OURS]) for name, several in results.items()]
    bars = [
        bar(f"ahead of {row['name']}: lower end of the interval", 100 * row["low"], at_least=0, unit="points of mAP")
        for row in rows
        if "low" in row
    ]
    took, budget = results[OURS][0]["cpu_seconds"], work.budget(results[OURS][0])["cpu_seconds"]
    bars.append(bar("CPU seconds of stage 2 beside the budget", took / budget, at_most=1.05, unit="x"))
    name = f"accuracy_{Path(work.dataset).name}" + (f"_{work.epochs}_epochs" if work.epochs else "")
    save_results(name, rows, bars, quick=not whole)


# ---- the command line


def main(arguments: argparse.Namespace) -> None:
    """Run what is missing, and show what is there."""
    try:
        if not available("oml"):
            raise InputError("the peers are not installed: make install-bench")
        if arguments.quick:
            run_quick(arguments.seeds or [0], arguments.only)
            return
        folder = FOLDER / "results" / f"accuracy_{arguments.dataset}"
        compare(arguments.dataset, folder, arguments.seeds or [0, 1, 2], arguments.only, epochs=arguments.epochs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def compare(
    dataset: str,
    folder: Path,
    seeds: Sequence[int],
    only: Sequence[str] | None,
    *,
    quick: bool = False,
    epochs: int | None = None,
) -> None:
    """All contestants with all seeds; of those that are not to run, what is there."""
    prepare_weights(SMALL_MODEL)
    data = load_dataset(dataset)
    # by their configuration: on another processor the same weights differ in their last bits
    first_weights = Path(load_model(data).pretrained).name
    origin = f"{data.digest} {first_weights} {VIEW_SIZE} {MEASURED_AT}"
    work = Work(dataset, folder, origin, smoke=quick, epochs=epochs, only=only or ())
    work.ours(seeds[0])
    for name in CONTESTANTS:  # what is timed comes first, see above
        work.costs(name)
    start, ours = work.start(), {seed: work.ours(seed) for seed in seeds}
    results = {START: [start], OURS: list(ours.values())}
    ladder = QUICK_LADDER if quick else LADDER
    for name in CONTESTANTS:
        several = results_of_peer(work, name, ours, ladder)
        if several is None:
            print(f"{name} has not run yet", file=sys.stderr)
        else:
            results[name] = several
    show(work, results, whole=not quick and len(seeds) >= 3)


def run_quick(seeds: Sequence[int], only: Sequence[str] | None) -> None:
    """The same on a few drawn patterns, with the budget of a smoke run and one rate; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / QUICK_DATASET
        draw_dataset(metadata, Path(folder) / "photos")
        compare(str(metadata), Path(folder) / "work", seeds, only, quick=True)
    shutil.rmtree(processed_dir(QUICK_DATASET))


def draw_dataset(metadata: Path, photos: Path) -> None:
    """A prepared dataset of 20 colour patterns with 4 photos each: 8 to train on, 4 for val, 8 to test on."""
    generator, table = np.random.default_rng(0), {}
    for identity in range(20):
        pattern = generator.integers(0, 256, (4, 4, 3))
        (photos / f"{identity:02}").mkdir(parents=True)
        for number in range(4):
            cells = np.clip(pattern + generator.normal(0, 40, (4, 4, 3)), 0, 255).astype(np.uint8)
            name = f"{identity:02}/{number}.png"
            Image.fromarray(cells).resize((180, 180), Image.Resampling.BICUBIC).save(photos / name)
            split = "train" if identity < 8 else "val" if identity < 12 else ("query", "gallery")[number % 2]
            table[name] = {"item_id": f"{identity:02}", "split": split, "camera": ""}
    official = {side: [name for name, row in table.items() if row["split"] == side] for side in ("query", "gallery")}
    contents = {
        "dataset.json": {"name": QUICK_DATASET, "image_dir": str(photos)},
        "image_paths.json": table,
        "image_paths_clean.json": table,
        "image_prompts_cleaned_for_v4.json": {row["item_id"]: f"pattern {row['item_id']}" for row in table.values()},
        "image_splits.json": {"official": official, "random": []},
    }
    metadata.mkdir()
    for name, content in contents.items():
        (metadata / name).write_text(json.dumps(content), encoding="utf-8")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which data, which peers, which seeds."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--dataset", default="grocery", help="a prepared dataset, a folder below metadata/ (grocery)")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CONTESTANTS), metavar="NAME",
        help=f"run these peers alone, and show of the others what is there: {', '.join(CONTESTANTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="of ours, which sets the time for all (as its recipe says)"
    )
    parser.add_argument(
        "--seeds", type=numbers, help="of the trainings; the rates are searched for with the first (0,1,2)"
    )


if __name__ == "__main__":
    run_benchmark(main, __doc__, add_flags)
