"""Stage 5: two GANs around CLIP, one after the other: image to text embedding, then text embedding to image.

    python model/stage5_text_image_gan/train.py
    python model/stage5_text_image_gan/train.py --dataset PATH/fer2013 --text2img.image_size 64
    python model/stage5_text_image_gan/train.py --config model/stage5_text_image_gan/config/plain.yaml

The settings are in config/default.yaml; on a machine without a GPU config/small.yaml goes over it, then the file of
--config, then flags. `null: ...` below says what holds where neither a file nor a flag gives a value. Without arguments
it trains on generated faces, where there is no data/fer2013.

Reads:   faces of seven emotions (folders or CSV), a CLIP
Writes:  {img2text,text2img}_{generator,discriminator}_epoch_N.pth and LAST.pth in --checkpoint_dir (default:
         checkpoints/<run>/ beside this script), logs/<run>/ (train.log, metrics.jsonl, config.json, TensorBoard, grids)
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
from captions import CaptionSpace, caption_space, require_latent_dim
from checkpoints import GANS, STAGE, clip_record, fresh_folder, load_generator, newest_epoch, read_state
from dataset import dataset_name, describe_faces, find_dataset, load_faces
from gan_steps import make_gan
from gan_training import Run, train_gan
from settings import Config, complete, parse_settings
from torch import nn
from unfrozen import finetuned

from clipfh.core.cli import run_script
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import display, stage_dir
from clipfh.core.run import new_run_folder, pick_device, seed_everything
from clipfh.core.run_log import RunLog
from clipfh.datasets.fer2013 import Faces
from clipfh.models.checkpoint import weights_digest
from clipfh.models.clip import LoadedClip, load_clip
from clipfh.tables.prepared import prepare_weights

SMOKE_FACES = 18  # of each emotion and split


@dataclass(frozen=True)
class Data:
    """The faces of a run.

    Attributes:
        splits: `train`, `val`, and `test` where there is one.
        recorded: what checkpoints say of them.
        account: where they come from and how many they are, for people.
        repeated: train faces that were left out, as they are in another split too.
    """

    splits: dict[str, Faces]
    recorded: dict[str, Any]
    account: str
    repeated: int


def load_data(config: Config, resumed: dict[str, Any] | None) -> Data:
    """The configured faces, or generated ones where the default ones are absent; few of them with --smoke.

    Raises:
        InputError: they cannot be used; or the run to continue was trained on others.
    """
    source = find_dataset(config.dataset, config.smoke)
    origin = {"data_seed": config.data_seed, "val_fraction": config.val_fraction}
    size = config.text2img.image_size
    splits, repeated = load_faces(source, size, **origin, skip_unreadable=config.skip_unreadable)
    described = describe_faces(splits)
    if resumed and resumed["data_digest"] != described["data_digest"]:
        raise InputError(f"{config.resume_ckpt} was trained on other faces or splits than {display(source)} holds now")
    recorded = {"dataset": dataset_name(source), **described, "faces": {"source": display(source), **origin}}
    if config.smoke:
        splits = {name: faces.first_of_each_emotion(SMOKE_FACES) for name, faces in splits.items()}
    counts = ", ".join(f"{len(faces):,} {name}" for name, faces in splits.items())
    return Data(splits, recorded, f"{display(source)} ({counts}) at {size} px", repeated)


def load_frozen_clip(config: Config, device: torch.device) -> tuple[LoadedClip, CaptionSpace]:
    """CLIP, frozen, and its embeddings of the captions.

    Raises:
        InputError: there are no such weights; or `latent_dim` contradicts them.
    """
    prepare_weights(config.model, config.pretrained)
    clip = load_clip(config.model, config.pretrained, device=str(device))
    clip.model.requires_grad_(False).eval()
    space = caption_space(clip, config.captions, device, center=config.center_captions)
    for gan in GANS:
        require_latent_dim(f"{gan}.latent_dim", getattr(config, gan).latent_dim, clip, space.dim)
    return clip, space


def default_folder(kind: str, config: Config) -> Path:
    """Of `logs` or `checkpoints`; a smoke run's are apart, so that it is never taken for the newest one."""
    return stage_dir(STAGE) / kind / ("smoke" if config.smoke else "")


def open_run(config: Config, resumed: dict[str, Any] | None, logs: Path) -> tuple[RunLog, Path]:
    """The log of a new or continued run, below `logs`, and the folder of its checkpoints.

    Raises:
        InputError: they cannot be written; or the folder holds another run's checkpoints.
    """
    if resumed:
        return RunLog(logs / resumed["run"], config, last_row=resumed.get("row")), config.resume_ckpt.parent
    log_folder = new_run_folder(logs, "text_image_gan", "--log_dir")
    folder = fresh_folder(config.checkpoint_dir or default_folder("checkpoints", config) / log_folder.name)
    return RunLog(log_folder, config), folder


def load_reader(config: Config, run: Run) -> nn.Module | None:
    """The finished generator of the first GAN, which reads what the second one draws; None, and a note, without one.

    Raises:
        InputError: `img2text_ckpt` is no such file, or was trained around another CLIP than the run's.
    """
    path = config.img2text_ckpt
    if path is None and config.gans == "both":
        path = newest_epoch(run.folder, "img2text")
    if path is None:
        run.log.say(
            "note: no first GAN reads what this one draws; --img2text_ckpt names a img2text_generator_epoch_N.pth"
        )
        return None
    reader = load_generator(path, "img2text", run.device, image_size=config.text2img.image_size)
    clip = run.recorded["clip"]
    if reader.recorded["clip"]["digest"] != clip["digest"]:
        raise InputError(f"{path} was trained around other weights of CLIP than this run's ({clip['pretrained']})")
    return reader.network.requires_grad_(False)


def main(config: Config) -> None:
    """Faces, CLIP and captions; then one GAN after the other."""
    config = complete(config)
    seed_everything(config.seed)
    keep_freed_memory()
    device = pick_device(config.device)
    resumed = None
    if config.resume_ckpt:
        resumed = read_state(require_file(config.resume_ckpt, "--resume_ckpt"), config)
    logs = writable_folder(config.log_dir or default_folder("logs", config), "--log_dir")

    # ---- data and CLIP, before the run leaves a trace
    data = load_data(config, resumed)
    clip, space = load_frozen_clip(config, device)

    # ---- the run's log and folder of checkpoints
    log, folder = open_run(config, resumed, logs)
    log.say(f"{log.folder.name}: {data.account}, {clip.name} ({clip.pretrained}), {device}")
    if data.repeated:
        log.say(f"left out {data.repeated} train faces that are pixel for pixel in another split")

    # ---- the two GANs
    if config.clip == "finetuned":
        clip, space = finetuned(clip, space, data.splits["train"], config, folder, device, log)
    record, space = clip_record(clip), space.to(device)
    recorded = {"stage": STAGE, **data.recorded, "clip": record, "captions": space.state()}
    recorded |= {"variant": "conditional" if config.conditional else "unconditional"}
    run = Run(data.splits, recorded, folder, resumed, device, log)
    for name in GANS:
        if config.gans in ("both", name) and not (resumed and GANS.index(name) < GANS.index(resumed["gan"])):
            reader = load_reader(config, run) if name == "text2img" and config.text2img.cycle else None
            train_gan(make_gan(name, config, clip, space, reader, device), run)

    # ---- the end
    if weights_digest(clip.model.state_dict()) != record["digest"]:
        raise RuntimeError("the frozen CLIP has changed")
    log.say(f"CLIP is bit-identical to what it was before the GANs (SHA-256 {record['digest'][:12]})")
    log.say(f"wrote {display(folder)}")
    log.close()


if __name__ == "__main__":
    run_script(main, Config, __doc__, parse_settings)
