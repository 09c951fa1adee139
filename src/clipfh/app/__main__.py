"""The search page: find photos of a dataset by a photo, by a description, or by both, in a browser.

    python -m clipfh.app
    python -m clipfh.app --dataset my_photos --photos all
    python -m clipfh.app --ckpt model/stage2_img_encoder_finetune/checkpoints/<run>_BEST.pth

Without --ckpt the stages that are there stand beside each other: the weights of stage 1, and the newest BEST of stages
2 and 3 on the dataset. The page is served to this machine alone, unless --host says otherwise, and sends nothing
anywhere.

Reads:   metadata/<dataset>/ (scripts 00 to 05), checkpoints
Writes:  data/processed/<dataset>/ (decoded photos and features, those of an evaluation are reused)
"""

import importlib.util
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clipfh.app.loading import load_gallery
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.run import pick_device

HOW_TO_GET = "the page needs gradio; install it with: bash set_up.sh app, or pip install -e '.[app]'"


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str | None = option(
        None, "name of the prepared dataset (default: synthetic where it is prepared, else the one prepared last)"
    )
    ckpt: tuple[Path, ...] = option((), "checkpoints of stages 2 and 3, in columns side by side (default: see above)")
    photos: str = option(
        "test",
        "which to search: those of the test identities, which no stage has learned from, or all",
        choices=("test", "all"),
    )
    host: str = option("127.0.0.1", "address to listen on; with 0.0.0.0 all on the network can see the photos")
    port: int = option(7860, "port to listen on; 0: any free one", at_least=0, at_most=65535)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")


def main(config: Config) -> None:
    """Load the photos' features, then serve the page until it is stopped."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError(HOW_TO_GET)  # before the features, which may take minutes
    device = pick_device(config.device)
    gallery = load_gallery(config.dataset, config.ckpt, device, with_training_photos=config.photos == "all")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by `kill`, it tidies up as after Ctrl+C
    with tempfile.TemporaryDirectory(prefix="clipfh_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what people bring along goes with the page
        from clipfh.app.page import serve  # gradio: takes seconds, and reads that variable

        serve(gallery, config.host, config.port)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
