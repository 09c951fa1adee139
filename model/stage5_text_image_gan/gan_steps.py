"""What the two GANs of stage 5 do in a step. Shapes: B batch, C channels, S image size in pixels, E embedding."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from captions import CaptionSpace
from checkpoints import build_networks
from diff_augment import diff_augment, parse_policy
from loss import discriminator_loss, generator_loss, matching_loss, r1_penalty
from settings import Config
from torch import nn
from torch.optim import Adam
from unfrozen import JointClip

from clipfh.core.run import autocast, seed_everything
from clipfh.datasets.fer2013 import EMOTIONS
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.clip import LoadedClip, clamp_logit_scale
from clipfh.training.schedule import cosine_with_warmup


@dataclass(frozen=True)
class Gan:
    """One of the two, with all that a step of it needs."""

    name: str
    config: Config
    space: CaptionSpace
    policy: tuple[str, ...]
    generator: nn.Module
    discriminator: nn.Module
    average: AveragedWeights  # of the generator: what is validated and saved
    optimizers: dict[str, Adam]
    joint: JointClip | None  # a CLIP that is trained along
    reader: nn.Module | None  # the finished generator of the first GAN, which reads what the second one draws

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint has to hold, by name."""
        found = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        return {**found, **({"joint": self.joint} if self.joint else {})}


def make_gan(
    name: str, config: Config, clip: LoadedClip, space: CaptionSpace, reader: nn.Module | None, device: torch.device
) -> Gan:
    """Seed, build, and give every network its optimiser."""
    seed_everything(config.seed)  # each GAN on its own: the second does not depend on how long the first was trained
    generator, discriminator = (network.to(device) for network in build_networks(name, config, space.dim))
    lr = config.img2text.lr if name == "img2text" and config.img2text.lr else config.lr
    adam = {"betas": (config.beta1, config.beta2), "fused": True}
    optimizers = {"generator": Adam(generator.parameters(), lr=lr, **adam)}
    optimizers["discriminator"] = Adam(discriminator.parameters(), lr=config.lr_discriminator or lr, **adam)
    joint = None
    if config.clip == "joint" and name == "text2img":
        joint = JointClip(clip, space, device)
        optimizers["joint"] = Adam(joint.parameters(), lr=config.clip_lr, betas=(0.9, 0.98), fused=True)
    average = AveragedWeights(generator, config.ema_decay)
    policy = parse_policy(config.augment)
    return Gan(name, config, space, policy, generator, discriminator, average, optimizers, joint, reader)


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the modules, and none is computed for their weights."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def update(optimizer: Adam, loss: torch.Tensor) -> None:
    """One step down the gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def set_learning_rates(gan: Gan, step: int, total_steps: int) -> None:
    """A function of the step alone, so that a continued run needs no scheduler's state."""
    factor = cosine_with_warmup(step, total_steps=total_steps, warmup_steps=0) if gan.config.lr_decay else 1.0
    for optimizer in gan.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def wrong_captions(gan: Gan, labels: torch.Tensor) -> torch.Tensor | None:
    """Embeddings (B, E) of captions of other emotions, where mismatched pairs are to be refused."""
    if not (gan.config.mismatch and gan.config.conditional):
        return None
    others = torch.randint(1, len(EMOTIONS), labels.shape).to(labels.device)
    return gan.space.draw((labels + others) % len(EMOTIONS), gan.config.embedding_noise)


def img2text_step(gan: Gan, images: torch.Tensor, labels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
    """The image (B, C, S, S) is given, its caption's embedding (B, E) is what is real or generated."""
    config, judge = gan.config, gan.discriminator
    precision = autocast(images.device, config.precision)
    captions, wrong = gan.space.draw(labels, config.embedding_noise), wrong_captions(gan, labels)
    with precision:
        made = gan.generator(diff_augment(images, gan.policy))
        features = judge.features(diff_augment(images, gan.policy))
        real, fake = judge.logits(features, captions), judge.logits(features, made.detach())
        refused = None if wrong is None else judge.logits(features, wrong).float()
    loss_d = discriminator_loss(config.loss, real.float(), fake.float(), refused)
    if config.r1 and number % config.r1_interval == 0:
        captions.requires_grad_(True)
        logits = judge(images, captions)
        loss_d = loss_d + config.r1 * config.r1_interval * r1_penalty(logits, captions)
    update(gan.optimizers["discriminator"], loss_d)

    with frozen(judge), precision:
        with torch.no_grad():
            features = judge.features(diff_augment(images, gan.policy))
        fake = judge.logits(features, made)
    loss_g = generator_loss(config.loss, fake.float())
    matching = matching_loss(made, gan.space.features, labels)
    update(gan.optimizers["generator"], loss_g + config.img2text.matching * matching)
    return {"loss_discriminator": loss_d, "loss_generator": loss_g, "loss_matching": matching}


def text2img_step(gan: Gan, images: torch.Tensor, labels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
    """The caption's embedding (B, E) is given, the image (B, C, S, S) is what is real or generated."""
    config, judge = gan.config, gan.discriminator
    precision = autocast(images.device, config.precision)
    captions, wrong = gan.space.draw(labels, config.embedding_noise), wrong_captions(gan, labels)
    noise = torch.randn(len(labels), config.text2img.noise_dim).to(images.device)
    with precision:
        made = gan.generator(captions, noise)
        of_real = judge.features(diff_augment(images, gan.policy))  # apart, for their batch norms, where there are some
        of_fake = judge.features(diff_augment(made.detach(), gan.policy))
        real, fake = judge.logits(of_real, captions), judge.logits(of_fake, captions)
        refused = None if wrong is None else judge.logits(of_real, wrong).float()
    loss_d = discriminator_loss(config.loss, real.float(), fake.float(), refused)
    if config.r1 and number % config.r1_interval == 0:
        inputs = diff_augment(images, gan.policy).requires_grad_(True)
        loss_d = loss_d + config.r1 * config.r1_interval * r1_penalty(judge(inputs, captions), inputs)
    update(gan.optimizers["discriminator"], loss_d)
    losses = {"loss_discriminator": loss_d}
    if gan.joint:
        with precision:
            losses["loss_clip_real"] = gan.joint.pair_loss(images, labels)
        update(gan.optimizers["joint"], losses["loss_clip_real"])
        clamp_logit_scale(gan.joint.model)

    with frozen(judge, *([gan.joint] if gan.joint else [])), precision:
        seen = diff_augment(made, gan.policy)
        fake = judge(seen, captions)
        loss = losses["loss_generator"] = generator_loss(config.loss, fake.float())
        if gan.reader:
            with torch.no_grad():
                of_photos = matching_loss(gan.reader(images), gan.space.features, labels)
            losses["loss_cycle"] = matching_loss(gan.reader(seen), gan.space.features, labels)
            # no clearer than photographs are: what goes beyond makes all faces of an emotion alike
            beyond = F.relu(losses["loss_cycle"] - config.text2img.cycle_floor * of_photos)
            loss = loss + config.text2img.cycle * beyond
        if gan.joint:
            losses["loss_clip_generated"] = gan.joint.judgement(made, labels)
            loss = loss + config.clip_weight * losses["loss_clip_generated"]
    update(gan.optimizers["generator"], loss)
    return losses


STEPS = {"img2text": img2text_step, "text2img": text2img_step}
