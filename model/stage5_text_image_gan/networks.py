"""The four networks of stage 5.

Shapes: B batch, C channels (1 grey, 3 colour), S image size in pixels (64, 128 or 256), E caption embedding, Z noise,
F features. Images lie in -1..1, embeddings have unit length.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

IMAGE_SIZES = (64, 128, 256)
MAX_WIDTH = 8  # of a layer, in units of the first one's width
SLOPE = 0.2  # of LeakyReLU, as in DCGAN


def widths(image_size: int, first: int) -> list[int]:
    """Channels after each halving of S down to 4 px: first, twice that, ... up to `MAX_WIDTH` times that."""
    halvings = image_size.bit_length() - 3  # 64 = 4 * 2^4
    return [first * min(2**number, MAX_WIDTH) for number in range(halvings)]


class _Standardized(nn.Module):
    """Each image to mean 0 and deviation 1: expressions do not depend on the light."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, deviation = images.mean(dim=(1, 2, 3), keepdim=True), images.std(dim=(1, 2, 3), keepdim=True)
        return (images - mean) / (deviation + 0.1)


def _convolutions(image_size: int, channels: int, width: int) -> nn.Sequential:
    """Convolutions with batch norm: (B, C, S, S) to (B, 16 * the last width). The first has a stride, others a pool."""
    first, *others = widths(image_size, width)
    stem = nn.Conv2d(channels, first, 5, stride=2, padding=2, bias=False)
    layers: list[nn.Module] = [_Standardized(), stem, nn.BatchNorm2d(first), nn.ReLU()]
    before = first
    for after in others:
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        before = after
    return nn.Sequential(*layers, nn.Flatten())


class Img2TextGenerator(nn.Module):
    """An image to the embedding of its caption: (B, C, S, S) to (B, E) of unit length.

    Args:
        latent_dim: E.
        image_size: S.
        channels: C.
        width: channels of the first convolution.
        dropout: before the last layer.
    """

    def __init__(self, latent_dim: int, image_size: int, channels: int, width: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.trunk = _convolutions(image_size, channels, width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths(image_size, width)[-1] * 16, latent_dim))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) to (B, E)."""
        return F.normalize(self.head(self.trunk(images)).float(), dim=1)


class _ImageFeatures(nn.Sequential):
    """Strided convolutions as in DCGAN: (B, C, S, S) to (B, F, 4, 4). Spectral norm, or batch norm but in the first."""

    def __init__(self, image_size: int, channels: int, width: int, spectral: bool) -> None:
        layers: list[nn.Module] = []
        before = channels
        for after in widths(image_size, width):
            normed = not spectral and bool(layers)
            convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not normed)
            layers += [_maybe_spectral(convolution, spectral), *([nn.BatchNorm2d(after)] if normed else [])]
            layers.append(nn.LeakyReLU(SLOPE))
            before = after
        super().__init__(*layers)
        self.num_features = before


def _maybe_spectral(layer: nn.Module, spectral: bool) -> nn.Module:
    """Spectral normalisation bounds a discriminator's slope (Miyato et al. 2018)."""
    return spectral_norm(layer) if spectral else layer


class Img2TextDiscriminator(nn.Module):
    """Is this embedding a caption's, or a generator's? Conditional: a caption's of *this image*?

    A conditional one adds a projection of the embedding on features of the image (Miyato, Koyama 2018). The two steps
    are apart, so that one image is judged with several embeddings at the price of one.
    """

    def __init__(
        self, latent_dim: int, image_size: int, channels: int, width: int, *, conditional: bool, spectral: bool
    ) -> None:
        super().__init__()
        hidden = 256
        self.embedding = nn.Sequential(
            _maybe_spectral(nn.Linear(latent_dim, hidden), spectral), nn.LeakyReLU(SLOPE)
        )  # (B, E) to (B, hidden)
        self.judge = _maybe_spectral(nn.Linear(hidden, 1), spectral)
        self.trunk = self.projection = None
        if conditional:
            self.trunk = _ImageFeatures(image_size, channels, width, spectral)
            self.standardized = _Standardized()
            self.projection = _maybe_spectral(nn.Linear(self.trunk.num_features, hidden), spectral)

    def features(self, images: torch.Tensor) -> torch.Tensor | None:
        """What `logits` needs of the images: (B, hidden), or None where the discriminator does not see them."""
        if self.trunk is None:
            return None
        return self.projection(self.trunk(self.standardized(images)).mean(dim=(2, 3)))

    def logits(self, features: torch.Tensor | None, embeddings: torch.Tensor) -> torch.Tensor:
        """(B,) logits of embeddings (B, E) for images of these features."""
        # a unit vector's coordinates are of size 1 / sqrt(E): too small for layers that expect about 1
        hidden = self.embedding(embeddings * embeddings.shape[1] ** 0.5)
        logits = self.judge(hidden)[:, 0]
        return logits if features is None else logits + (features * hidden).sum(dim=1) / hidden.shape[1] ** 0.5

    def forward(self, images: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """(B,) logits."""
        return self.logits(self.features(images), embeddings)


class _ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias come from the condition (de Vries et al. 2017)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Linear(condition_dim, 2 * channels)
        nn.init.normal_(self.affine.weight, std=0.02)
        nn.init.zeros_(self.affine.bias)

    def forward(self, maps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gain, bias = self.affine(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(bias, self.norm(maps), 1 + gain)


class Text2ImageGenerator(nn.Module):
    """A caption's embedding and noise to an image: (B, E), (B, Z) to (B, C, S, S).

    Transposed convolutions from 4 x 4 px up, as in DCGAN (Radford et al. 2016); the embedding and the noise enter at
    the bottom and, by the gains of the batch norms, at every resolution.
    """

    def __init__(self, latent_dim: int, noise_dim: int, image_size: int, channels: int, ngf: int) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        sizes = widths(image_size, ngf)[::-1]  # widest first
        self.widest = sizes[0]
        condition_dim = 128
        self.text = nn.Sequential(nn.Linear(latent_dim, condition_dim), nn.LeakyReLU(SLOPE))
        condition_dim += noise_dim
        self.bottom = nn.Linear(condition_dim, self.widest * 16)
        self.norms = nn.ModuleList(_ConditionalNorm(size, condition_dim) for size in sizes)
        shapes = list(zip(sizes, [*sizes[1:], channels], strict=True))
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=number == len(shapes))
            for number, (before, after) in enumerate(shapes, start=1)  # but for the last, a norm with a bias follows
        )
        for layer in self.deconvolutions:
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(B, E), (B, Z) to (B, C, S, S)."""
        condition = torch.cat([self.text(embeddings), noise], dim=1)
        maps = self.bottom(condition).view(-1, self.widest, 4, 4).contiguous(memory_format=torch.channels_last)
        for norm, deconvolution in zip(self.norms, self.deconvolutions, strict=True):
            maps = deconvolution(F.relu(norm(maps, condition)))
        return torch.tanh(maps.float())


class Text2ImageDiscriminator(nn.Module):
    """Is this image a photograph, or a generator's? Conditional: a photograph of *this caption*?

    An unconditional one lets the generator ignore its text. `features` and `logits` as in `Img2TextDiscriminator`.
    """

    def __init__(
        self, latent_dim: int, image_size: int, channels: int, ndf: int, *, conditional: bool, spectral: bool
    ) -> None:
        super().__init__()
        self.trunk = _ImageFeatures(image_size, channels, ndf, spectral)
        self.judge = _maybe_spectral(nn.Linear(self.trunk.num_features * 16, 1), spectral)
        size = self.trunk.num_features
        self.projection = _maybe_spectral(nn.Linear(latent_dim, size), spectral) if conditional else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, F, 4, 4)."""
        return self.trunk(images)

    def logits(self, features: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """(B,) logits of images of these features with captions (B, E)."""
        logits = self.judge(features.flatten(1))[:, 0]
        if self.projection is None:
            return logits
        return logits + (self.projection(embeddings) * features.sum(dim=(2, 3))).sum(dim=1)

    def forward(self, images: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """(B,) logits."""
        return self.logits(self.features(images), embeddings)


class FaceClassifier(nn.Module):
    """The judge of `evaluate.py`, trained on real faces alone: (B, C, S, S) to logits of the emotions.

    `features` (B, F) are what FID and KID compare.
    """

    def __init__(self, num_classes: int, image_size: int, channels: int, width: int = 32) -> None:
        super().__init__()
        last = widths(image_size, width)[-1] * 16
        head = (nn.Dropout(0.3), nn.Linear(last, 128), nn.ReLU())
        self.trunk = nn.Sequential(*_convolutions(image_size, channels, width), *head)
        self.last = nn.Linear(128, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 128)."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes)."""
        return self.last(self.features(images))
