"""The two ways in which CLIP does not stay frozen: fine-tuned before the GANs, or trained along with the second one.

Both minimise CLIP's own contrastive loss on the real faces and their captions; the faces of one emotion are not each
other's negatives. Shapes: B batch, E embedding.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captions import CaptionSpace, caption_space
from dataset import for_clip, mirrored, to_signed
from settings import Config
from torch import nn
from torch.optim import AdamW

from clipfh.core.run import autocast
from clipfh.core.run_log import RunLog
from clipfh.datasets.fer2013 import Faces
from clipfh.losses import info_nce_loss
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import LoadedClip, clamp_logit_scale, load_clip
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.state import decay_groups

FINETUNED_CLIP = "clip_finetuned.pth"


def pair_loss(
    clip: LoadedClip, model: nn.Module, images: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """CLIP's loss of images (B, C, S, S) in -1..1 with captions (B, L) of the emotions (B,)."""
    image_features = F.normalize(model.encode_image(for_clip(images, clip)).float(), dim=1)  # (B, E)
    text_features = F.normalize(model.encode_text(tokens).float(), dim=1)
    return info_nce_loss(image_features, text_features, model.logit_scale.float().exp(), labels)


def caption_tokens(clip: LoadedClip, space: CaptionSpace, device: torch.device) -> torch.Tensor:
    """(C, K, L) token ids of the captions."""
    tokens = clip.tokenizer([text for texts in space.captions for text in texts]).to(device)
    return tokens.view(len(space.captions), len(space.captions[0]), -1)


def drawn_tokens(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A random caption's tokens for each emotion (B,): (B, L)."""
    choice = torch.randint(0, tokens.shape[1], labels.shape).to(labels.device)
    return tokens[labels, choice]


def finetune_clip(
    clip: LoadedClip, space: CaptionSpace, faces: Faces, config: Config, device: torch.device, log: RunLog
) -> None:
    """Option 1: train both encoders of `clip` on the faces and their captions, in place."""
    tokens = caption_tokens(clip, space, device)
    optimizer = AdamW(decay_groups(clip.model, config.clip_lr, 0.05), betas=(0.9, 0.98), eps=1e-6)
    sampler = RandomBatchSampler(len(faces), min(config.batch_size, len(faces)), config.seed)
    clip.model.train()
    for epoch in range(1, config.clip_epochs + 1):
        sampler.set_epoch(epoch)
        total = 0.0
        for rows in sampler:
            images = to_signed(faces[rows], config.text2img.channels, device)
            images = mirrored(images) if config.flip else images
            labels = torch.from_numpy(faces.labels[rows]).to(device)
            with autocast(device, config.precision):
                loss = pair_loss(clip, clip.model, images, drawn_tokens(tokens, labels), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clamp_logit_scale(clip.model)
            total += loss.item()
        log.say(f"clip epoch {epoch}/{config.clip_epochs}  infonce {total / len(sampler):.3f}")
    clip.model.eval()


class JointClip(nn.Module):
    """Option 2: a copy of CLIP that is trained along, and whose loss on generated faces the generator minimises.

    It is trained on real faces alone, so that it cannot come to terms with the generator; the captions' embeddings,
    which both GANs work with, stay those of the CLIP that the run began with.
    """

    def __init__(self, clip: LoadedClip, space: CaptionSpace, device: torch.device) -> None:
        super().__init__()
        self._clip = clip
        self.model = copy.deepcopy(clip.model).requires_grad_(True).train()
        self.register_buffer("tokens", caption_tokens(clip, space, device), persistent=False)

    def checkpoint(self) -> dict[str, Any]:
        """The copy as one of the house's checkpoints of CLIP, for `--pretrained`."""
        return {**self._clip.architecture(), "state_dict": self.model.state_dict()}

    def pair_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of images in -1..1 with random captions of their emotions."""
        return pair_loss(self._clip, self.model, images, drawn_tokens(self.tokens, labels), labels)

    def judgement(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The same of generated images, of which the batch norms keep no statistics."""
        self.model.eval()
        try:
            return self.pair_loss(images, labels)
        finally:
            self.model.train()


def finetuned(
    clip: LoadedClip, space: CaptionSpace, faces: Faces, config: Config, folder: Path, device: torch.device, log: RunLog
) -> tuple[LoadedClip, CaptionSpace]:
    """CLIP after its fine-tuning, which a continued run takes from its folder, and the captions as it sees them now."""
    path = folder / FINETUNED_CLIP
    if not path.is_file():
        clip.model.requires_grad_(True)
        finetune_clip(clip, space, faces, config, device, log)
        write_checkpoint(path, {"stage": 5, **clip.architecture(), "state_dict": clip.model.state_dict()})
    clip = load_clip(config.model, str(path), device=str(device))
    clip.model.requires_grad_(False).eval()
    return clip, caption_space(clip, config.captions, device, center=config.center_captions)
