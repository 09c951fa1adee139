"""A folder that onnxruntime runs: `image_encoder.onnx` and `text_encoder.onnx`, and how to feed them.

Shapes: B batch, of any size, H x W photos, L context length, D embedding.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.files import write_json
from clipfh.export.source import Source
from clipfh.export.token_files import TOKENIZER, write_tokenizer
from clipfh.images.transforms import height_and_width, to_input
from clipfh.models.clip import LoadedClip
from clipfh.models.pretrained import silenced

from open_clip.hf_model import HFTextEncoder  # isort: skip

IMAGE, TEXT = "image_encoder.onnx", "text_encoder.onnx"
IMAGE_INT8, TEXT_INT8 = "image_encoder_int8.onnx", "text_encoder_int8.onnx"
PREPROCESSING = "preprocessing.json"
MAX_BYTES = 1_900_000_000  # of weights inside a file of ONNX: protobuf's limit is 2 GiB; larger ones lie beside it
_TRACED = 2  # B while tracing: torch takes a 1 as fixed

_LOADING = '''\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

FOLDER = {folder!r}  # where this folder lies
image_encoder = onnxruntime.InferenceSession(f"{{FOLDER}}/{image}")
text_encoder = onnxruntime.InferenceSession(f"{{FOLDER}}/{text}")
tokenizer = Tokenizer.from_file(f"{{FOLDER}}/tokenizer.json")
with open(f"{{FOLDER}}/preprocessing.json", encoding="utf-8") as file:
    of_photos = json.load(file)["image_encoder"]


def to_input(path):
    """A photo file as (3, H, W) float32."""
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = (of_photos["width"], of_photos["height"])
    photo = {resize}
    pixels = np.asarray(photo, dtype=np.float32) / 255
    return ((pixels - of_photos["mean"]) / of_photos["std"]).astype(np.float32).transpose(2, 0, 1)


def encode_photos(paths):
    """Unit-length features of photo files: (N, D)."""
    return image_encoder.run(None, {{"pixel_values": np.stack([to_input(path) for path in paths])}})[0]


def encode_texts(texts):
    """Unit-length features of texts: (N, D)."""
    token_ids = np.array([found.ids for found in tokenizer.encode_batch(texts)], dtype=np.int64)
    return text_encoder.run(None, {{"input_ids": token_ids}})[0]
'''
_RESIZE = {
    "shortest": "ImageOps.fit(photo, size, Image.Resampling.BICUBIC)  # shorter side, centre crop",
    "squash": "photo.resize(size, Image.Resampling.BICUBIC)",
    "pad": 'ImageOps.pad(photo, size, Image.Resampling.BICUBIC, color="white")',
}


def loading_code(source: Source, folder: str, image: str = IMAGE, text: str = TEXT) -> str:
    """Python that runs the folder with onnxruntime, tokenizers, NumPy and PIL alone: for the card and the check."""
    return _LOADING.format(folder=folder, image=image, text=text, resize=_RESIZE[source.clip.resize_mode])


class ImageEncoder(nn.Module):
    """(B, 3, H, W) normalised pixels to (B, D) unit-length features."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__()
        self.visual = clip.model.visual

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The features of photos."""
        return F.normalize(self.visual(pixel_values), dim=-1)


class TextEncoder(nn.Module):
    """(B, L) token ids to (B, D) unit-length features."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__()
        tower = getattr(clip.model, "text", None)
        # called past its hook, which cuts padding off: the length would depend on the texts that are traced
        self.encode = tower.forward if isinstance(tower, HFTextEncoder) else clip.model.encode_text
        self.owner = tower if isinstance(tower, HFTextEncoder) else clip.model

    def forward(self, input_ids: Tensor) -> Tensor:
        """The features of texts."""
        return F.normalize(self.encode(input_ids), dim=-1)


def write_onnx(source: Source, folder: Path, texts: list[str]) -> list[str]:
    """Write both encoders, the tokenizer and how photos and texts become their inputs.

    Args:
        source: what to write.
        folder: an empty folder to write into.
        texts: on which the tokenizer is checked.

    Returns:
        the names of the files with weights.

    Raises:
        InputError: the tokenizer has no form that other libraries read.
    """
    clip = source.clip
    write_tokenizer(clip, folder, texts)
    height, width = height_and_width(clip.image_size)
    pixels = torch.zeros(_TRACED, 3, height, width)
    token_ids = clip.tokenizer(["a photo"] * _TRACED)  # (B, L)
    export_encoder(ImageEncoder(clip), pixels, "pixel_values", folder / IMAGE)
    export_encoder(TextEncoder(clip), token_ids, "input_ids", folder / TEXT)
    write_json(folder / PREPROCESSING, _description(clip, height, width))
    return sorted(path.name for path in folder.glob("*.onnx*"))


def export_encoder(encoder: nn.Module, example: Tensor, name: str, path: Path) -> None:
    """Write one encoder, whose input `name` is like `example` but of any batch size, and whose output is `features`."""
    num_bytes = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    with silenced(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's about torch's own insides
        torch.onnx.export(
            encoder.eval(),
            (example,),
            path,
            input_names=[name],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=num_bytes > MAX_BYTES,
            dynamo=True,
            verbose=False,
        )


def _description(clip: LoadedClip, height: int, width: int) -> dict[str, object]:
    return {
        "image_encoder": {
            "input": "pixel_values: (batch, 3, height, width) float32, RGB; (pixel / 255 - mean) / std",
            "height": height,
            "width": width,
            "resize": {
                "shortest": "shorter side to the frame, bicubic, then the centre crop",
                "squash": "to the frame, bicubic, whatever the aspect",
                "pad": "whole photo into the frame, bicubic, in the middle of white",
            }[clip.resize_mode],
            "orientation": "turned as EXIF says; transparent parts on white",
            "mean": list(clip.mean),
            "std": list(clip.std),
        },
        "text_encoder": {
            "input": "input_ids: (batch, context_length) int64",
            "context_length": clip.tokenizer.context_length,
            "tokenizer": f"{TOKENIZER}, which cuts and pads",
        },
        "output": "features: (batch, dimensions) float32 of unit length; similarity is their product",
        "logit_scale": clip.model.logit_scale.exp().item(),
    }


def write_int8(folder: Path) -> list[str]:
    """Quantise the matrices and embeddings of both encoders to 8 bits, beside the float32 ones.

    Activations are quantised as they come (dynamic). Convolutions stay float32: most of an EfficientNet. Each channel
    has its own scale: with one a matrix, small-clip's prompts of grocery came out at a least cosine of 0.940 to
    float32's, with one a channel at 0.992; its photos at 0.976 and 0.997.

    Returns:
        the names of the files.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silenced():
        for source, target in ((IMAGE, IMAGE_INT8), (TEXT, TEXT_INT8)):
            quantize_dynamic(
                folder / source,
                folder / target,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=(folder / f"{source}.data").exists(),
            )
    return sorted(path.name for path in folder.glob("*_int8.onnx*"))


def run_onnx(path: Path, inputs: Iterator[np.ndarray]) -> Tensor:
    """Features (N, D) of all batches of `inputs` by one of the encoders."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return torch.from_numpy(np.concatenate([session.run(None, {name: batch})[0] for batch in inputs]))


def photo_batches(clip: LoadedClip, pixels: np.ndarray, batch_size: int = 32) -> Iterator[np.ndarray]:
    """(N, H, W, 3) uint8 as inputs of the image encoder."""
    for start in range(0, len(pixels), batch_size):
        yield to_input(pixels[start : start + batch_size], clip.mean, clip.std, "cpu").contiguous().numpy()


def text_batches(clip: LoadedClip, texts: Sequence[str], batch_size: int = 64) -> Iterator[np.ndarray]:
    """Texts as inputs of the text encoder."""
    for start in range(0, len(texts), batch_size):
        yield clip.tokenizer(list(texts[start : start + batch_size])).numpy()
