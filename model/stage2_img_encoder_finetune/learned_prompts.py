"""Texts of the train identities, learned from their photos: what CLIP-ReID does before its image encoder learns.

In "a photo of a X X X X." the X are no words but vectors of the token embedding's space, M of them for each identity.
With both encoders frozen they are learned so that the feature of the whole finds the photos of its identity. These
features are then the classes of the term i2t, in place of those of written prompts: identities without description, or
with the same one, have classes of their own.

Source: Li, Sun, Li 2023, "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text
Labels", eqs. 1, 3, 4. Other than there, features have unit length and the CLIP's own temperature, an identity's text is
once in a batch, however many of its photos are, and no kind of thing ("person") is named.

Shapes: N train photos, C identities, B photos and T identities of a batch, D embedding, L tokens, W width of a token.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE
from clipfh.core.errors import InputError
from clipfh.core.processes import rank
from clipfh.core.run import autocast
from clipfh.features.extraction import rank_gallery
from clipfh.losses import image_to_text_loss, text_to_image_loss
from clipfh.models.clip import LoadedClip, token_embedding
from clipfh.training.schedule import cosine_with_warmup

TEMPLATE = "a photo of a {}."
PLACEHOLDERS = ("x", "y")  # words of one token; where it stands shows by what differs between the two
STD = 0.02  # of the first vectors, as CLIP's token embedding began
BATCH = 64  # photos; this and the warm-up (5 of 120 epochs) are CLIP-ReID's
WARMUP = 5 / 120


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """What the classes of i2t are."""

    text: str = option(
        IN_FILE,
        "classes of the term i2t: written prompts, or prompts learned from the photos first, as CLIP-ReID does",
        choices=("prompts", "learned"),
    )
    learned_tokens: int = option(IN_FILE, "learned vectors in the text of an identity", at_least=1)
    learned_epochs: int = option(IN_FILE, "passes over the features of the train photos to learn them", at_least=1)
    learned_lr: float = option(IN_FILE, "peak learning rate of Adam for them", above=0)

    def require(self, terms: tuple[str, ...]) -> None:
        """Raise an InputError where prompts would be learned for nothing: `terms` lack i2t, which alone takes them."""
        if self.text == "learned" and "i2t" not in terms:
            raise InputError(f"--text learned gives the term i2t its classes; --loss {'+'.join(terms)} has no i2t")


class LearnedPrompts:
    """A text for each of C identities, with M vectors `contexts`, (C, M, W), that learn in the place of words.

    Raises:
        InputError: the tokenizer of `clip` has no token for a placeholder, or the text is too long for it.
    """

    def __init__(self, clip: LoadedClip, num_classes: int, num_tokens: int, seed: int) -> None:
        self.clip, self._embedding = clip, token_embedding(clip.model)
        weight = self._embedding.weight.detach()  # (words, W)
        texts = [TEMPLATE.format(" ".join([word] * num_tokens)) for word in PLACEHOLDERS]
        tokens = clip.tokenizer(texts).to(weight.device)  # (2, L)
        self._tokens, self._places = tokens[:1], (tokens[0] != tokens[1]).nonzero().squeeze(1)  # (1, L), (M,)
        if len(self._places) != num_tokens:
            raise InputError(
                f"--text learned: the tokenizer of {clip.name} has {len(self._places)} tokens for the {num_tokens} "
                f"placeholders of {texts[0][:80]!r}; try another --learned_tokens, or --text prompts"
            )
        std = min(STD, weight.float().std().item())  # no louder than the words around them
        first = torch.randn(num_classes, num_tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed))
        self.contexts = nn.Parameter((std * first).to(weight.device))

    def features(self, labels: Tensor) -> Tensor:
        """Unit features (T, D) of the texts of the identities `labels` (T,), with a gradient to their vectors."""

        def put_in(module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:  # (T, up to L, W)
            return embedded.index_copy(1, self._places, self.contexts[labels].to(embedded.dtype))

        hook = self._embedding.register_forward_hook(put_in)
        try:
            encoded = self.clip.model.encode_text(self._tokens.expand(len(labels), -1))
        finally:
            hook.remove()
        return F.normalize(encoded.float(), dim=1)


def learn(
    prompts: LearnedPrompts, features: Tensor, labels: Tensor, settings: ClassTexts, *, precision: str, seed: int
) -> tuple[Tensor, str]:
    """Learn the vectors of `prompts`: photos find their text, and texts all of their photos, among those of a batch.

    Args:
        features, labels: (N, D) of the photos by the frozen image encoder, unit length; (N,) in 0..C-1.
        settings: how long and how fast; `seed` decides in which order.
        precision: of the text encoder, as `autocast` takes it.

    Returns:
        (C, D) unit features of the learned texts, and a line for the log.

    Raises:
        InputError: the loss is no longer a number.
    """
    model, generator, count = prompts.clip.model, torch.Generator().manual_seed(seed), len(labels)
    was_training, logit_scale = model.training, model.logit_scale.detach().exp()
    model.eval()
    steps = settings.learned_epochs * -(-count // BATCH)
    optimizer = Adam([prompts.contexts], lr=settings.learned_lr)
    factor = partial(cosine_with_warmup, total_steps=steps, warmup_steps=int(WARMUP * steps))
    scheduler = LambdaLR(optimizer, factor)
    means = []  # of the loss, by epoch
    hidden = None if rank() == 0 else True  # None: where nobody watches
    for _ in tqdm(range(settings.learned_epochs), "learn prompts", unit="epoch", disable=hidden, leave=False):
        total = torch.zeros((), device=features.device)
        for batch in torch.randperm(count, generator=generator).to(features.device).split(BATCH):
            images = features[batch]  # (B, D)
            identities, rows = labels[batch].unique(return_inverse=True)  # (T,), (B,)
            with autocast(features.device, precision):
                texts = prompts.features(identities)  # (T, D): of the batch alone, however many there are
            loss = image_to_text_loss(images, texts, rows, logit_scale)
            loss = loss + text_to_image_loss(texts, images, rows, logit_scale)
            optimizer.zero_grad()
            loss.backward(inputs=[prompts.contexts])
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(batch)
        means.append(total.item() / count)
    if not math.isfinite(means[-1]):
        raise InputError(f"the loss of the learned prompts is not finite (first {means[0]:.3f}); lower --learned_lr")
    classes = torch.arange(len(prompts.contexts), device=features.device)
    with torch.no_grad():
        texts = torch.cat([prompts.features(some) for some in classes.split(BATCH)])  # (C, D)
    model.train(was_training)
    nearest, _ = rank_gallery(texts, features, top_k=1)  # (C, 1)
    found = (labels.cpu()[nearest.squeeze(1)] == classes.cpu()).float().mean().item()
    line = f"learned prompts: loss {means[0]:.3f} to {means[-1]:.3f} in {settings.learned_epochs} epochs"
    return texts, f"{line}; Rank-1 of {len(texts):,} texts over their {count:,} train photos {100 * found:.1f}"
