"""A CLIP of two unlike halves: an image encoder that learns, and a pretrained text encoder that never moves.

    from clipfh.models.frozen_text_clip import create_clip_model
    model = create_clip_model(device="cuda")         # ResNet50 (IMAGENET1K_V2) beside the text tower of ViT-B/32
    model.print_parameter_summary()

Weights that cannot be downloaded are given as files (`image_weights=PATH`, `text_weights=PATH`), or left out on purpose
with "random". Shapes: B batch, S image size, L context length, F backbone features, D embedding.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.run import pick_device
from clipfh.models.backbones import build_backbone, load_backbone_weights, normalisation_of
from clipfh.models.checkpoint import weights_digest
from clipfh.models.clip import MEAN, STD, LoadedClip, first_weights_of, load_clip

HEAD_NORMS = ("none", "batchnorm")
OWN = "clip"  # as the name of an image encoder: the one that the text tower was trained with


class CLIPImageEncoder(nn.Module):
    """A convolutional or other backbone without its classifier, and a projection head into the text encoder's space.

    Args:
        name: a torchvision ResNet or any model of timm.
        embed_dim: D, of the text encoder.
        head_layers: linear layers of the head; between them are F units and a GELU.
        head_norm: `batchnorm` puts a BatchNorm before each GELU.
        head_dropout: probability, after each GELU.
        image_size: S; only models of a fixed input size need it.

    Attributes:
        backbone: images (B, 3, S, S) to (B, F).
        head: (B, F) to (B, D), not yet of unit length.
        mean, std: of the normalisation, on 0..1 RGB.
        image_size: S that it was built for.
        resize_mode: how photos become squares, see `clipfh.images.transforms`.
    """

    mean, std = MEAN, STD
    resize_mode = "shortest"
    _backbone_is_held = False

    def __init__(
        self,
        name: str = "resnet50",
        embed_dim: int = 512,
        *,
        head_layers: int = 2,
        head_norm: str = "none",
        head_dropout: float = 0.0,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.backbone, num_features = build_backbone(name, image_size)
        self.image_size = image_size
        self.head = projection_head(num_features, embed_dim, head_layers, head_norm, head_dropout)
        self.backbone.to(memory_format=torch.channels_last)

    @classmethod
    def of(cls, clip: LoadedClip) -> "CLIPImageEncoder":
        """The image encoder of a CLIP, with its weights: what timm built and the projection behind it.

        Of other architectures all is backbone, and the head does nothing.
        """
        encoder, visual = cls.__new__(cls), clip.model.visual
        nn.Module.__init__(encoder)
        is_timm = hasattr(visual, "trunk")
        encoder.backbone, encoder.head = (visual.trunk, visual.head) if is_timm else (visual, nn.Identity())
        encoder.mean, encoder.std = clip.mean, clip.std
        encoder.image_size, encoder.resize_mode = clip.image_size, clip.resize_mode
        return encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length features in float32: (B, 3, S, S) to (B, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._backbone_is_held):
            features = self.backbone(images)  # (B, F)
        return F.normalize(self.head(features).float(), dim=1)

    def hold_backbone(self, held: bool) -> None:
        """While held, the backbone gets no gradients and its BatchNorm statistics stay: the head trains alone."""
        self._backbone_is_held = held
        self.train(self.training)

    def train(self, mode: bool = True) -> "CLIPImageEncoder":
        """Set the mode; a held backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and not self._backbone_is_held)
        return self


class CLIPTextEncoder(nn.Module):
    """The text tower of a pretrained CLIP. Frozen: no gradients, no dropout, the same bits before and after training.

    Attributes:
        source: where its weights came from.
        quick_gelu: whether it uses QuickGELU, which no weight tells.
        tokenizer: open_clip's, of the model.
        seen_identities: whom the weights were fine-tuned on.
        first_weights: those that all fine-tuning began with.
    """

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__()
        self.tower, self.tokenizer = clip.model, clip.tokenizer
        transformers_tokenizer = getattr(clip.tokenizer, "tokenizer", None)  # inside of open_clip's, such as SigLIP's
        self._pad = None if transformers_tokenizer is None else transformers_tokenizer.pad_token_id
        self.source, self.quick_gelu, self.seen_identities = clip.pretrained, clip.quick_gelu, clip.seen_identities
        self.first_weights = first_weights_of(clip)
        for name in ("visual", "logit_scale", "logit_bias"):  # only the text tower stays
            if getattr(self.tower, name, None) is not None:
                setattr(self.tower, name, None)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "CLIPTextEncoder":
        """Stay in evaluation mode."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's own tokens, padded and truncated: ids (B, L) and mask (B, L), 1 for tokens, both int64."""
        input_ids = self.tokenizer(list(texts))
        places = torch.arange(input_ids.shape[1])
        # of CLIP's byte pairs, the end token has the highest id; they are padded with 0, which is a word, too
        scores = input_ids if self._pad is None else (input_ids != self._pad) * places
        last = scores.argmax(dim=1)
        return input_ids, (places <= last[:, None]).long()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Unit-length features in float32: ids (B, L) and mask (B, L) to (B, D).

        CLIP's tower reads up to the end token and attends backwards only, so that padding cannot change a feature;
        others, such as SigLIP's, read the padding, too. The mask makes it what the model was trained with, whatever a
        tokenizer padded with.

        Raises:
            ValueError: the mask has another shape, or zeros before ones.
        """
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(f"ids {tuple(input_ids.shape)} need a mask of that shape, not {attention_mask.shape}")
            if (attention_mask.diff(dim=1) > 0).any():
                raise ValueError("the attention mask has zeros before ones: only padding at the end can be masked")
            input_ids = input_ids.masked_fill(attention_mask == 0, self._pad or 0)
        with torch.no_grad():
            return F.normalize(self.tower.encode_text(input_ids).float(), dim=1)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit-length features (B, D), float32, on the encoder's device."""
        device = next(self.parameters()).device
        return self(*(part.to(device) for part in self.tokenize(texts)))

    def digest(self) -> str:
        """SHA-256 of all that features depend on: the weights and buffers, and the activation."""
        facts = f"quick_gelu={self.quick_gelu} {weights_digest(self.state_dict())}"
        return hashlib.sha256(facts.encode()).hexdigest()


class CLIP(nn.Module):
    """Both encoders and the learned temperature, `logit_scale` (the logarithm of its inverse)."""

    def __init__(
        self, image_encoder: CLIPImageEncoder, text_encoder: CLIPTextEncoder, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.logit_scale = nn.Parameter(torch.tensor(1 / temperature).log())

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) to unit-length (B, D)."""
        return self.image_encoder(images)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) to unit-length (B, D), without gradients."""
        return self.text_encoder(input_ids, attention_mask)

    def forward(
        self, images: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image features (B, D) and text features (B, D), unit length."""
        return self.encode_image(images), self.encode_text(input_ids, attention_mask)

    def as_clip(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state of this model, whose image encoder is the text tower's own, by the names of open_clip's model."""
        backbone = "visual." if isinstance(self.image_encoder.head, nn.Identity) else "visual.trunk."
        parts = {"image_encoder.backbone.": backbone, "image_encoder.head.": "visual.head.", "text_encoder.tower.": ""}
        renamed = {}
        for name, value in state.items():
            part = next((part for part in parts if name.startswith(part)), "")
            renamed[parts.get(part, "") + name.removeprefix(part)] = value
        return renamed

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimiser is given: never a parameter of the text encoder."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def parameter_summary(self) -> list[tuple[str, int, int]]:
        """(component, parameters, of these trainable), the total last."""
        image = self.image_encoder
        parts = [
            ("image backbone", image.backbone),
            ("projection head", image.head),
            ("text encoder", self.text_encoder),
        ]
        rows = [(name, _count(module.parameters()), _count(module.parameters(), True)) for name, module in parts]
        rows.append(("temperature", 1, int(self.logit_scale.requires_grad)))
        return [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))]

    def print_parameter_summary(self) -> None:
        """Print each component's parameters, whether they are trained, and their share of all."""
        rows = self.parameter_summary()
        total = rows[-1][1]
        print(f"{'component':<16} {'parameters':>12} {'share':>7}  state")
        for name, count, trainable in rows:
            partly = f"trainable {trainable:,}, frozen {count - trainable:,}"
            state = "trainable" if trainable == count else "frozen" if trainable == 0 else partly
            print(f"{name:<16} {count:>12,} {count / total:>7.1%}  {state}")


def _count(parameters: object, trainable_only: bool = False) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trainable_only)


def projection_head(num_features: int, embed_dim: int, layers: int, norm: str, dropout: float) -> nn.Sequential:
    """`layers` linear layers from F to D, all but the last F wide and followed by a norm, a GELU and dropout."""
    if layers < 1 or norm not in HEAD_NORMS:
        raise ValueError(
            f"a head has 1 layer or more and the norm {' or '.join(HEAD_NORMS)}, not {layers} and {norm!r}"
        )
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts.append(nn.Linear(num_features, num_features))
        parts += [nn.BatchNorm1d(num_features)] if norm == "batchnorm" else []
        parts.append(nn.GELU())
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts, nn.Linear(num_features, embed_dim))


def create_clip_model(
    device: str | torch.device = "auto",
    *,
    image_encoder: str = "resnet50",
    image_weights: str = "pretrained",
    text_model: str = "ViT-B/32",
    text_weights: str | None = None,
    quick_gelu: bool | None = None,
    image_size: int | None = None,
    head_layers: int = 2,
    head_norm: str = "none",
    head_dropout: float = 0.0,
    temperature: float = 0.07,
) -> CLIP:
    """Build both encoders with their weights.

    Args:
        device: where the model is put; `auto`, a name or a device.
        image_encoder: a torchvision ResNet, any model of timm, or `clip`: the image encoder of `text_model`, with its
            projection and weights; what says otherwise (`image_weights`, `head_...`) is not for it.
        image_weights: as of `load_backbone_weights`.
        text_model: the CLIP whose text tower is taken, in open_clip's spelling or OpenAI's.
        text_weights: as of `clipfh.models.clip.load_clip`: a tag, a file, `random`, or None: OpenAI's, and for the tiny
            models the newest checkpoint of stage 0.
        quick_gelu: of the text tower, where a checkpoint recorded it; None: as the weights were trained.
        image_size: S, pixels; None: the CLIP's own of `clip`, else 224.
        head_layers, head_norm, head_dropout: of the projection head.
        temperature: first value of the learned temperature.

    Raises:
        InputError: unknown models, or weights that cannot be had; the message names the way out.
    """
    own_size = image_size if image_encoder == OWN else None  # of another image encoder the text tower knows nothing
    clip = load_clip(text_model, text_weights, quick_gelu=quick_gelu, image_size=own_size)
    own = CLIPImageEncoder.of(clip) if image_encoder == OWN else None
    text_encoder = CLIPTextEncoder(clip)
    if own is not None:
        encoder = own
    else:
        encoder = CLIPImageEncoder(
            image_encoder,
            text_encoder.encode(["a photo"]).shape[1],
            head_layers=head_layers,
            head_norm=head_norm,
            head_dropout=head_dropout,
            image_size=image_size or 224,
        )
        load_backbone_weights(encoder.backbone, image_encoder, image_weights)
        encoder.mean, encoder.std = normalisation_of(image_encoder, image_weights)
    model = CLIP(encoder, text_encoder, temperature)
    return model.to(pick_device(device) if isinstance(device, str) else device)
