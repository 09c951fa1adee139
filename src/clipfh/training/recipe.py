"""What a training was made by, apart from its seed: trainings of one recipe are repetitions, and may be averaged."""

from collections.abc import Sequence
from typing import Any

from clipfh.core.cli import jsonable
from clipfh.tables.digest import SHORT, digest_of

# What does not decide what is learned: the seed, and where things are. Data, prompts and first weights are known by
# their content, which `origin` gives.
_NO_PART = {
    *("verify", "grad_checkpointing", "compile"),
    *("seed", "device", "save_path", "log_dir", "resume_ckpt", "skip_unreadable", "unrelated_ids"),
    *("dataset", "metadata_dir", "image_dir", "image_meta", "prompt_json", "data_root", "checkpoint_dir"),
    *("pretrained", "init_ckpt"),
}


def recipe_digest(config: Any, origin: Sequence[str]) -> str:
    """A short digest of a run's flags without seed and paths, and of what it was trained from.

    Args:
        config: all flags of the training, a dataclass. Flags that a version adds make another recipe.
        origin: digests of the data, the prompts and the first weights; of first weights that are a training's, its
            recipe, so that a stage is repeated with another seed from the stage before with that seed. And what else
            makes a difference, such as how BEST is chosen.
    """
    flags = [(name, value) for name, value in jsonable(config).items() if name not in _NO_PART]
    return digest_of([*flags, ("origin of the run", *origin)])[:SHORT]
