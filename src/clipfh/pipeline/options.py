"""The options of `bash run_all.sh`, and what is wrong with them. Standard library only: checked before any set-up."""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import DATASETS, DEFAULT_MODEL, ROOT, STAGE0_SCRIPTS
from clipfh.drawn.generated_folder import holds_others

# of another room, written out: it imports what a bare Python lacks
CAPTIONS = ("synthetic", "coco", "flickr8k", "flickr30k", "grocery", "jsonl", "identities")
LAST_STAGE = 5
MOST_SEEDS = 100  # more are a slip of the keyboard
HELP = """The staged pipeline of `bash run_all.sh`: data, stages, summary table.

Prepares a dataset, trains and evaluates the stages, and prints the table of results. Without options: the generated
garments, a small CLIP, stages 0 to 3; no download of data or weights, no GPU. Started again, it skips the steps that
are finished and whose outputs are untouched. Every step's output is kept in results/logs/<run>/.

stages:
  0  make a small CLIP           2  fine-tune the image encoder
  1  evaluate zero-shot          3  fine-tune both encoders
  4  align an image encoder to the frozen text encoder, on captions
  5  text-image GANs around the frozen CLIP, on faces
Weights that stage 0 makes (of small-clip, tiny-rn, tiny-vit) are always made first, where --pretrained names no others.

PYTHON=/path/to/python3 in the environment chooses the Python (3.10 or newer) that .venv is made with. In an activated
environment that satisfies constraints.txt nothing is installed.
"""


@dataclass(frozen=True)
class Options:
    """The command line of run_all.sh; paths are taken from where the user is."""

    dataset: str = option("synthetic", "photos of identities", choices=DATASETS)
    data_root: Path | None = option(None, "folder of the raw dataset; needed by all but synthetic")
    model: str = option(
        DEFAULT_MODEL, f"{', '.join(STAGE0_SCRIPTS)}, ViT-B/16, ViT-L/14, RN50, or another open_clip name"
    )
    pretrained: str | None = option(
        None,
        "weights to start from: a tag of open_clip, a weights file, TAG=FILE for a file of such a tag whose name does "
        "not hold it, or stage4, what stage 4 has aligned (default: stage 0's for the models that it makes, else "
        "openai)",
    )
    stages: str | None = option(
        None, "which ones: 1-3, 2, 1,3 or 0-5 (default: 0-3 where stage 0 makes the weights, else 1-3)"
    )
    variant: str = option(
        "v4", "of stage 3; v3 goes on from v2, which is trained first", choices=("v1", "v2", "v3", "v4")
    )
    exclude_same_camera: bool = option(
        True, "as the dataset's protocol says; off: keep photos of a query's own camera in its gallery"
    )
    final_fit: bool = option(
        False,
        "train stages 2 and 3 on the val identities too, for figures that compare with papers; the last epoch counts",
    )
    epochs: int | None = option(None, "of stages 2 to 5 (default: what each stage finds best)", at_least=1)
    seed: int | None = option(
        None,
        "of the training (default: 0); data, splits and stage 0's weights stay the same, so that several seeds can be "
        "compared",
        at_least=0,
    )
    seeds: str | None = option(
        None,
        "train and evaluate stages 2 to 5 once with each of these seeds, stage 3 from stage 2 of the same seed: 0-2, "
        "or 0,3; the table shows a row a stage, their mean and standard deviation",
    )
    soup: bool = option(
        False,
        "with --seeds: mix the weights of all seeds of stage 2, and of stage 3, to one model each, too, and evaluate "
        "it: as fast as one of them, and mostly better",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    captions: str = option(
        "synthetic", "captioned images of stage 4; identities: the photos and prompts of --dataset", choices=CAPTIONS
    )
    captions_root: Path | None = option(None, "folder of those; needed by all but synthetic and identities")
    captions_val: int | None = option(None, "how many of them choose BEST, where the layout does not say", at_least=1)
    captions_test: int | None = option(None, "how many of them are held out, where the layout does not say", at_least=1)
    faces: Path | None = option(
        None,
        "faces of stage 5: a folder in FER2013's layout, or fer2013.csv (default: data/fer2013 if it is there, else "
        "generated faces)",
    )
    nproc: int = option(
        1,
        "processes of each training of stages 2 to 4: one a GPU, or on CPUs, whose cores they share; the figures are "
        "those of one",
        at_least=1,
    )
    smoke: bool = option(False, "every step on very little data, in a few minutes, in folders of its own")
    force: bool = option(False, "run finished steps again")
    setup_only: bool = option(False, "set up and stop", aliases=("--setup-only",))

    @property
    def makes_weights(self) -> bool:
        """Whether stage 0 makes the weights to start from."""
        return self.model in STAGE0_SCRIPTS and self.pretrained is None

    @property
    def wanted(self) -> list[int]:
        """The numbers of the chosen stages, in order.

        Raises:
            InputError: `stages` is no such list.
        """
        text = ("0-3" if self.makes_weights else "1-3") if self.stages is None else self.stages
        chosen: set[int] = set()
        for part in filter(None, text.split(",")):
            match = re.fullmatch(r"(\d)(?:-(\d))?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not first <= last <= LAST_STAGE:
                chosen.clear()
                break
            chosen.update(range(first, last + 1))
        if not chosen:
            raise InputError(f"--stages {text} is not understood; valid: 0 to {LAST_STAGE}, as in 1-3, 2 or 1,3")
        return sorted(chosen)

    @property
    def training_seeds(self) -> list[int]:
        """The seeds to train with, in order.

        Raises:
            InputError: `seeds` is no list of seeds, or `seed` is given too.
        """
        if self.seeds is None:
            return [self.seed or 0]
        if self.seed is not None:
            raise InputError(f"--seed {self.seed} and --seeds {self.seeds}: give one of them")
        return seed_list(self.seeds)


def seed_list(text: str) -> list[int]:
    """The seeds that `--seeds` names, in order: `0-2`, or `0,3`.

    Raises:
        InputError: it is no list of seeds, or names too many.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"--seeds {shortened(text, 40)} is not understood; valid: as in 0-2, or 0,3")
        if last - first >= MOST_SEEDS or len(chosen | set(range(first, last + 1))) > MOST_SEEDS:
            raise InputError(f"--seeds {shortened(text, 40)} are more than {MOST_SEEDS}")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def checked(options: Options) -> Options:
    """The options with absolute paths.

    Raises:
        InputError: options that are wrong, or do not fit together.
    """
    if empty := [name for name, value in vars(options).items() if isinstance(value, str) and not value.strip()]:
        raise InputError(f"--{empty[0]} is empty; give it a value, or leave it out")
    made = ", ".join(STAGE0_SCRIPTS)
    if options.model.startswith(("tiny-", "small-")) and options.model not in STAGE0_SCRIPTS:
        raise InputError(f"--model {options.model} is unknown; valid: {made}, or a name of open_clip")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d)?", options.device):
        raise InputError(f"--device {options.device} is unknown; valid: auto, cpu, cuda, cuda:N, mps")
    wanted = options.wanted
    seeds = options.training_seeds  # understood, before anything is said of the stages that use them
    if options.soup and len(seeds) < 2:
        raise InputError("--soup mixes trainings with different seeds: give two or more, as in --seeds 0-2")
    for flag, first, last in _given(options):
        if set(wanted).isdisjoint(range(first, last + 1)):
            users = (
                f"stage {first}" if first == last else f"stages {first} {'and' if first + 1 == last else 'to'} {last}"
            )
            raise InputError(f"--{flag} is for {users}, which --stages leaves out")
    if 0 in wanted and not options.makes_weights:
        raise InputError(f"stage 0 makes the weights of {made}; leave it out here: --stages 1-3")
    for flag, kind, name, root in (
        ("data_root", "dataset", options.dataset, options.data_root),
        ("captions_root", "captions", options.captions, options.captions_root),
    ):
        if name == "synthetic" and root is not None and holds_others(root):
            own = {"dataset": "folder, for your own photos", "captions": "jsonl, for your own images"}[kind]
            raise InputError(
                f"--{flag} {root} holds files that were not generated here. Is it another --{kind}? Say so: --{kind} "
                f"{own}"
            )
        if name in ("synthetic", "identities"):
            continue
        if root is None:
            raise InputError(f"{name} needs --{flag} DIR, the folder of the raw data")
        if not root.is_dir():
            raise InputError(f"--{flag}: there is no folder {root}")
    if options.captions == "identities" and options.captions_root:
        raise InputError("--captions identities are those of --dataset: leave --captions_root out")
    if options.faces and not options.faces.exists():
        raise InputError(f"--faces: there is no {options.faces}")
    faces = options.faces or (ROOT / "data" / "fer2013")
    return dataclasses.replace(
        options,
        data_root=_absolute(options.data_root),
        captions_root=_absolute(options.captions_root),
        faces=_absolute(faces) if faces.exists() else None,
        pretrained=absolute_file(options.pretrained),
    )


def _given(options: Options) -> Iterator[tuple[str, int, int]]:
    """The options that were given and that some stages alone use; the first and the last of these stages."""
    last_on_photos = 4 if options.captions == "identities" else 3
    users = {
        "dataset": (1, last_on_photos),
        "data_root": (1, last_on_photos),
        "exclude_same_camera": (1, 3),
        "final_fit": (2, 3),
        "variant": (3, 3),
        "epochs": (2, 5),
        "nproc": (2, 4),
        "seed": (2, 5),
        "seeds": (2, 5),
        "soup": (2, 3),
        "captions": (4, 4),
        "captions_root": (4, 4),
        "captions_val": (4, 4),
        "captions_test": (4, 4),
        "faces": (5, 5),
    }
    for field in dataclasses.fields(options):
        if field.name in users and getattr(options, field.name) != field.default:
            yield field.name, *users[field.name]


def _absolute(path: Path | None) -> Path | None:
    return path and Path(os.path.abspath(path))  # without `..`; not resolve(), as data may lie behind a link


def absolute_file(pretrained: str | None) -> str | None:
    """A weights file, or that of TAG=FILE, by its absolute path; a tag as it is."""
    if pretrained is None or Path(pretrained).is_file():
        return pretrained and str(Path(pretrained).absolute())
    tag, _, file = pretrained.partition("=")
    return f"{tag}={Path(file).absolute()}" if file and Path(file).is_file() else pretrained


if __name__ == "__main__":
    sys.argv[0] = "run_all.sh"  # what the user has called
    run_script(checked, Options, HELP)
