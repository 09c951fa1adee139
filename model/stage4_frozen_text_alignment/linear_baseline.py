"""The baseline of stage 4: a linear head on the frozen backbone, which keeps the weights that the run starts from.

Same images, same captions, same loss, same number of steps, its own best epoch chosen on val. The backbone's features
are computed once: a frozen backbone needs no more, and the head gets so many more steps a second.
Shapes: N images, F backbone features, D embedding, B batch.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from dataset import CaptionedPixels, draw_captions, encode_pixels
from loss import caption_info_nce_loss, is_caption_of
from settings import Config
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from clipfh.captions.retrieval import CaptionRecall, caption_recall
from clipfh.core.processes import rank
from clipfh.images.augment import view_generator
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import MAX_LOGIT_SCALE
from clipfh.models.frozen_text_clip import CLIP, CLIPImageEncoder
from clipfh.training.runs import TrainingRun
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.schedule import cosine_with_warmup

LR, WEIGHT_DECAY = 3e-3, 1e-4
ENOUGH_CAPTIONS = 1000  # to tell the epochs of a run apart


def mean_recall(both_ways: tuple[CaptionRecall, CaptionRecall]) -> float:
    """The mean of Recall@1, 5 and 10 both ways, by which BEST is chosen (the field's rsum, divided by 6)."""
    return sum(sum(figures.recall.values()) for figures in both_ways) / 6


def val_recall(
    features: torch.Tensor, val: CaptionedPixels, train: CaptionedPixels
) -> tuple[CaptionRecall, CaptionRecall]:
    """Image to text and text to image, of the val images' `features` (N, D) against all val captions.

    Of few val captions alone, nearly every model finds the right one; so train captions, up to `ENOUGH_CAPTIONS` in
    all, are in the way of image to text. What was learned by heart draws unseen images to them.
    """
    known = set(val.texts)
    others = [number for number, text in enumerate(train.texts) if text not in known]
    count = min(len(others), max(0, ENOUGH_CAPTIONS - len(val.texts)))
    others = [others[place * len(others) // count] for place in range(count)]  # evenly, the same ones every time
    texts, other_texts = (torch.from_numpy(np.array(part)) for part in (val.text_features, train.text_features[others]))
    return caption_recall(features, texts, val.captions_of_image, other_texts=other_texts)


def train_linear_head(
    backbone: nn.Module,
    train: CaptionedPixels,
    val: CaptionedPixels,
    *,
    epochs: int,
    batch_size: int,
    temperature: float,
    further: int,
    seed: int,
    device: torch.device,
) -> tuple[nn.Linear, float, int]:
    """Train the head; the backbone is only looked through.

    Returns:
        The head (F to D), the mean recall on val of its best epoch, and that epoch.
    """
    features, val_features = (encode_pixels(backbone, data, device) for data in (train, val))  # (N, F)
    mean, std = features.mean(dim=0), features.std(dim=0) + 1e-6
    inputs, val_inputs = (((part - mean) / std).to(device) for part in (features, val_features))
    with torch.random.fork_rng(devices=[]):  # the same head whatever was drawn before
        torch.manual_seed(seed)
        head = nn.Linear(inputs.shape[1], val.text_features.shape[1]).to(device)
    logit_scale = nn.Parameter(torch.tensor(1 / temperature, device=device).log())
    sampler = RandomBatchSampler(len(inputs), batch_size, seed)
    optimizer = AdamW([*head.parameters(), logit_scale], lr=LR, weight_decay=WEIGHT_DECAY)
    total = epochs * len(sampler)
    scheduler = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, total_steps=total, warmup_steps=total // 20))
    best, best_epoch, best_state = -1.0, 0, head.state_dict()
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        for number, indices in enumerate(sampler):
            generator = view_generator(seed, epoch, number, 1)
            drawn, numbers, captions = draw_captions(train, indices, generator, device, further)
            out = F.normalize(head(inputs[indices]), dim=1)
            loss = caption_info_nce_loss(out, drawn, logit_scale.exp(), is_caption_of(captions, numbers))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))  # as the run's
        with torch.inference_mode():
            out = F.normalize(head(val_inputs), dim=1).cpu()
        value = mean_recall(val_recall(out, val, train))
        if value > best:
            best, best_epoch = value, epoch
            best_state = {name: part.detach().clone() for name, part in head.state_dict().items()}
    head.load_state_dict(best_state)
    return unstandardised(head, mean.to(device), std.to(device)), best, best_epoch


def unstandardised(head: nn.Linear, mean: torch.Tensor, std: torch.Tensor) -> nn.Linear:
    """The same head for features that are not standardised: W x / std - W mean / std + b."""
    with torch.no_grad():
        head.bias -= head.weight @ (mean / std)
        head.weight /= std
    return head


def with_linear_head(encoder: CLIPImageEncoder, head: nn.Linear) -> dict[str, torch.Tensor]:
    """The state of an image encoder of one layer that has the backbone of `encoder` and the head."""
    backbone = {f"backbone.{name}": value for name, value in encoder.backbone.state_dict().items()}
    return {**backbone, "head.0.weight": head.weight.detach().cpu(), "head.0.bias": head.bias.detach().cpu()}


def full_state(model: CLIP, image_encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of the whole model with the given one of the image encoder."""
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("image_encoder.")}
    return {**rest, **{f"image_encoder.{name}": value for name, value in image_encoder.items()}}


def train_baseline(config: Config, model: CLIP, train: CaptionedPixels, val: CaptionedPixels, run: TrainingRun) -> None:
    """Train a linear head on the backbone as it is now, and save both as a model of their own."""
    started = time.perf_counter()
    head, value, epoch = train_linear_head(
        model.image_encoder.backbone,
        train,
        val,
        epochs=config.optimisation.epochs,
        batch_size=config.batch_size,
        temperature=config.temperature,
        further=config.further_captions,
        seed=run.place.seed,
        device=run.place.device,
    )
    state = full_state(model, with_linear_head(model.image_encoder, head))
    content = {**run.recorded, "head_layers": 1, "head_norm": "none", "head_dropout": 0.0, "variant": "linear"}
    path = run.place.checkpoints / f"{run.name}_LINEAR.pth"
    if rank() == 0:
        write_checkpoint(path, {**content, "epoch": epoch, "val_recall": value, "state_dict": state})
    seconds = time.perf_counter() - started
    run.log.say(f"baseline, a linear head on the frozen backbone: val recall {100 * value:.1f}  {seconds:.1f} s")
