"""What the GANs of stage 5 minimise. Shapes: B batch, E embedding, S image size in pixels.

| term | of | from |
|---|---|---|
| adversarial, bce | both | Goodfellow et al. 2014, the non-saturating form for the generator |
| adversarial, hinge | both | Lim, Ye 2017 |
| mismatched pairs | discriminators: a real image with another emotion's caption is a fake | Reed et al. 2016 |
| R1 | discriminators: squared gradient at real images | Mescheder et al. 2018 |
| matching | image-to-text generator: the right caption is the nearest | InfoNCE, van den Oord et al. 2018 |
"""

import torch
import torch.nn.functional as F

LOSSES = ("bce", "hinge")
MATCHING_SCALE = 10.0  # of cosine similarities: temperature 0.1


def discriminator_loss(
    kind: str, real: torch.Tensor, fake: torch.Tensor, mismatched: torch.Tensor | None = None
) -> torch.Tensor:
    """Real logits up, all others down.

    Args:
        kind: of `LOSSES`.
        real, fake: (B,) logits.
        mismatched: (B,) logits of real images with wrong captions; they and the generated ones share the weight.
    """
    loss = _against(kind, fake)
    if mismatched is not None:
        loss = (loss + _against(kind, mismatched)) / 2
    return loss + (F.softplus(-real).mean() if kind == "bce" else F.relu(1 - real).mean())


def _against(kind: str, logits: torch.Tensor) -> torch.Tensor:
    return F.softplus(logits).mean() if kind == "bce" else F.relu(1 + logits).mean()


def generator_loss(kind: str, fake: torch.Tensor) -> torch.Tensor:
    """(B,) logits of what the generator made, up."""
    return F.softplus(-fake).mean() if kind == "bce" else -fake.mean()


def r1_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Half the mean squared gradient norm of the logits (B,) at the real images, which require a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2


def matching_loss(embeddings: torch.Tensor, captions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the emotions, whose logits are the mean similarities to their captions.

    Args:
        embeddings: (B, E) unit vectors of the generator.
        captions: (emotions, K, E) unit vectors.
        labels: (B,) emotions.
    """
    logits = MATCHING_SCALE * torch.einsum("be,cke->bck", embeddings, captions).mean(dim=2)
    return F.cross_entropy(logits, labels)
