"""Where things live in a checkout. Every default path is anchored here, never at the current folder."""

from pathlib import Path

from clipfh.core.names import require_name

ROOT = Path(__file__).resolve().parents[3]
RESULTS_DIR = ROOT / "results"
SMALL_MODEL = "small-clip"  # of pretrained parts, which stage 0 puts together
TINY_MODELS = ("tiny-rn", "tiny-vit")  # which stage 0 trains on generated garments
DEFAULT_MODEL = SMALL_MODEL
STAGE0_SCRIPTS = {SMALL_MODEL: "make_small_clip.py", **dict.fromkeys(TINY_MODELS, "pretrain_tiny_clip.py")}
DATASETS = ("synthetic", "inshop", "hands11k", "hd", "market1501", "grocery", "folder")  # of run_all.sh
STAGES = {
    0: "stage0_pretrain",
    1: "stage1_zeroshot",
    2: "stage2_img_encoder_finetune",
    3: "stage3_joint_img_text_finetune",
    4: "stage4_frozen_text_alignment",
    5: "stage5_text_image_gan",
}


def metadata_dir(dataset: str) -> Path:
    """The folder of a dataset's table, prompts and splits.

    Raises:
        InputError: `dataset` is no name, but a path.
    """
    require_name(dataset, "--dataset")
    return ROOT / "metadata" / dataset


def processed_dir(dataset: str) -> Path:
    """The folder of what is computed from a dataset's images: decoded pixels."""
    return ROOT / "data" / "processed" / dataset


def stage_dir(stage: int) -> Path:
    """The folder of a stage: scripts, `logs/`, `checkpoints/`."""
    return ROOT / "model" / STAGES[stage]


def source_of(shown: str) -> str:
    """What `display` made of a path, as a path again, wherever the process was started; anything else as it is."""
    return str(ROOT / shown) if (ROOT / shown).is_file() else shown


def display(path: Path) -> str:
    """`path` as a reader knows it: below the checkout where it is, absolute elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
