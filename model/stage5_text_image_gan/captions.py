"""The captions of the seven emotions, and the space in which stage 5 works: CLIP's text embeddings without their mean.

Shapes: B batch, E embedding, C emotions, K captions of each.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError
from clipfh.datasets.fer2013 import EMOTIONS
from clipfh.models.clip import LoadedClip, encode_texts

# One wording for all emotions: what tells two captions apart is the emotion. Free paraphrases ("someone about to cry")
# lie further from their own emotion's captions than from others', with the text encoder of stage 0.
TEMPLATES = (
    "a photo of a {} face",
    "a {} face",
    "a face that looks {}",
    "the face of a {} person",
    "a {} person",
    "a person who looks {}",
)
WORDS = {
    "angry": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "happy": "happy",
    "neutral": "neutral",
    "sad": "sad",
    "surprise": "surprised",
}


@dataclass(frozen=True)
class CaptionSpace:
    """The captions' embeddings, and the way to put other texts and embeddings in their place.

    The embeddings of one CLIP lie in a narrow cone (Liang et al. 2022), those of seven similar captions in a narrower
    one. Their mean is taken off and what is left is scaled to unit length: then the emotions lie far apart.

    Attributes:
        captions: C tuples of K texts.
        mean: (E,), zero where the space is not centred.
        features: (C, K, E) unit vectors.
    """

    captions: tuple[tuple[str, ...], ...]
    mean: torch.Tensor
    features: torch.Tensor

    @property
    def dim(self) -> int:
        """E."""
        return len(self.mean)

    def embed(self, clip: LoadedClip, texts: list[str], device: torch.device) -> torch.Tensor:
        """Any texts in this space: (len(texts), E), on the CPU."""
        return F.normalize(encode_texts(clip, texts, device) - self.mean.cpu(), dim=1)

    def to(self, device: torch.device) -> "CaptionSpace":
        """The same on a device."""
        return CaptionSpace(self.captions, self.mean.to(device), self.features.to(device))

    def draw(self, labels: torch.Tensor, noise: float) -> torch.Tensor:
        """A random caption of each emotion (B,), with noise of that length, scaled to unit length: (B, E)."""
        _, K, E = self.features.shape
        choice = torch.randint(0, K, labels.shape).to(labels.device)
        embeddings = self.features[labels, choice]
        if noise:  # drawn on the CPU: the same on every device
            embeddings = embeddings + noise * torch.randn(len(labels), E).to(embeddings.device) / E**0.5
        return F.normalize(embeddings, dim=1)

    def nearest(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The emotion (B,) and the place among its captions (B,) of the caption nearest to each embedding (B, E)."""
        C, K, E = self.features.shape
        best = (embeddings @ self.features.view(C * K, E).T).argmax(dim=1)
        return best // K, best % K

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {
            "captions": [list(texts) for texts in self.captions],
            "mean": self.mean.cpu(),
            "features": self.features.cpu(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "CaptionSpace":
        """Undo `state`."""
        return cls(tuple(tuple(texts) for texts in state["captions"]), state["mean"], state["features"])


def caption_space(clip: LoadedClip, num_captions: int, device: torch.device, *, center: bool = True) -> CaptionSpace:
    """Encode the first `num_captions` captions of every emotion with the text encoder of `clip`."""
    templates = TEMPLATES[:num_captions]
    captions = tuple(tuple(template.format(WORDS[emotion]) for template in templates) for emotion in EMOTIONS)
    features = encode_texts(clip, [text for texts in captions for text in texts], device)  # (C * K, E)
    mean = features.mean(dim=0) if center else torch.zeros(features.shape[1])
    features = F.normalize(features - mean, dim=1)
    return CaptionSpace(captions, mean, features.view(len(captions), num_captions, -1))


def require_latent_dim(key: str, value: int | None, clip: LoadedClip, dim: int) -> None:
    """A configured embedding size must be the CLIP's.

    Raises:
        InputError: it is another; the message names the key.
    """
    if value is not None and value != dim:
        raise InputError(
            f"{key} is {value}, but {clip.name} embeds texts in {dim} dimensions; set --{key} {dim}, or null in the "
            "configuration file, or choose another --model"
        )
