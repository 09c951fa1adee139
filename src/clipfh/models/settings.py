"""The flags that say which CLIP a script starts from."""

from dataclasses import dataclass

from clipfh.core.cli import image_size, option
from clipfh.core.paths import DEFAULT_MODEL
from clipfh.images.transforms import RESIZE_MODES


@dataclass(frozen=True)
class Start:
    """Which CLIP, from which weights, and what it sees."""

    model: str = option(DEFAULT_MODEL, "CLIP architecture, such as ViT-B/16", aliases=("--model_arch",))
    pretrained: str | None = option(
        None,
        "open_clip tag, weights file, TAG=FILE or stage4 (default: openai; for models that stage 0 makes its newest)",
    )
    image_size: int | tuple[int, int] | None = option(
        None,
        "input size in pixels, 224 or height x width as 256x128 (default: the weights' own)",
        parse=image_size,
    )
    resize_mode: str | None = option(
        None,
        "how a photo fills it: shortest side and crop, squash, or pad (default: as the weights' fine-tuning, else the "
        "dataset's protocol, else the weights say)",
        choices=RESIZE_MODES,
    )
