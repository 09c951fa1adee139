"""The search page: find photos of a dataset by a photo, by a description, or by both, in a browser.

    python -m clipfh.app
    python -m clipfh.app --dataset my_photos --photos all
    python -m clipfh.app --ckpt model/stage2_img_encoder_finetune/checkpoints/<run>_BEST.pth
    python -m clipfh.app --index shop_index

Without --ckpt the stages that are there stand beside each other: the weights of stage 1, and the newest BEST of stages
2 and 3 on the dataset. An index (`python -m clipfh.index`) is searched with the weights that made it, which are looked
for among the checkpoints of the stages. The page is served to this machine alone, unless --host says otherwise, and
sends nothing anywhere.

Reads:   metadata/<dataset>/ (scripts 00 to 05), checkpoints; or an index, and its photos where they lie
Writes:  data/processed/<dataset>/ (decoded photos and features, those of an evaluation are reused)
"""

import importlib.util
import os
import signal
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from clipfh.app.indexed import IndexFlags, load_index
from clipfh.app.loading import load_gallery
from clipfh.app.search import Gallery
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.run import pick_device

HOW_TO_GET = "the page needs gradio; install it with: bash set_up.sh app, or pip install -e '.[app]'"


@dataclass(frozen=True)
class Config(IndexFlags):
    """The command line."""

    dataset: str | None = option(
        None, "name of the prepared dataset (default: synthetic where it is prepared, else the one prepared last)"
    )
    ckpt: tuple[Path, ...] = option(
        (),
        "checkpoints of stages 2 and 3, in columns side by side; with --index, the one that made it (default: above)",
    )
    photos: str | None = option(
        None,
        "of a dataset: those of the test identities, which no stage has learned from, or all (default: test)",
        choices=("test", "all"),
    )
    host: str = option("127.0.0.1", "address to listen on; with 0.0.0.0 all on the network can see the photos")
    port: int = option(7860, "port to listen on; 0: any free one", at_least=0, at_most=65535)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")


def main(config: Config) -> None:
    """Load the photos' features, then serve the page until it is stopped."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError(HOW_TO_GET)  # before the features, which may take minutes
    gallery = _gallery(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by `kill`, it tidies up as after Ctrl+C
    with tempfile.TemporaryDirectory(prefix="clipfh_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what people bring along goes with the page
        from clipfh.app.page import serve  # gradio: takes seconds, and reads that variable

        serve(gallery, config.host, config.port)


def _gallery(config: Config) -> Gallery:
    """What the flags say is searched.

    Raises:
        InputError: they contradict each other; and what the galleries raise.
    """
    if config.index is None:
        if any(getattr(config, field.name) is not None for field in fields(IndexFlags)):
            raise InputError("--image_dir, --prompt_json, --model and --pretrained are of an index: add --index")
        device = pick_device(config.device)
        return load_gallery(config.dataset, config.ckpt, device, with_training_photos=config.photos == "all")
    if config.dataset is not None or config.photos is not None:
        raise InputError("--index names all that is searched: leave --dataset and --photos out")
    if len(config.ckpt) > 1:
        raise InputError("an index is of one checkpoint: give one --ckpt, or none")
    return load_index(config, config.ckpt[0] if config.ckpt else None, config.device)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
