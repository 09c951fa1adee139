"""Stage 2: fine-tune CLIP's image encoder for identity retrieval; the text encoder is frozen, and used.

    python model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py
    python model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py --dataset inshop --model ViT-B/16 \\
        --loss triplet+center+id+i2t --p 16 --k 4 --epochs 20

Each batch holds P identities with K photos each. With the image-to-text term, the prompts of the train identities go
through the frozen text encoder once; their features are its classes, or with --text learned those of texts that are
learned first (learned_prompts.py). BEST is chosen by mAP on the val identities.

Values are read from config/default.yaml, for the models of stage 0 then small_clip.yaml or tiny.yaml, then from the
files of --config; flags win.

Reads:   metadata/<dataset>/ (scripts 00 to 04)
Writes:  checkpoints/<run>_BEST.pth, checkpoints/<run>_LAST.pth, logs/<run>/ beside this script,
         with <run> = clip_img_encoder_YYYYMMDD_HHMMSS
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
from dataset import Batch, class_text_features, make_batches
from learned_prompts import ClassTexts, LearnedPrompts, learn
from loss import WEIGHTS, ImageEncoderLoss, parse_terms
from torch import Tensor, nn

from clipfh.core.cli import option, run_script, section
from clipfh.core.config_file import IN_FILE, parse_with_files
from clipfh.core.processes import gather_rows
from clipfh.core.run import autocast
from clipfh.models.clip import LoadedClip, freeze_text_encoder
from clipfh.models.settings import Start
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS
from clipfh.training.computing import Computing
from clipfh.training.data import TrainPhotos
from clipfh.training.few_identities import lines_on_few, source_for
from clipfh.training.identities import load_identities, load_source
from clipfh.training.interpolation import Interpolation, choose_between
from clipfh.training.layers import Layers
from clipfh.training.loop import Loop
from clipfh.training.runs import Place, prepare_run, start_run
from clipfh.training.sampler import PKSampler
from clipfh.training.settings import Optimisation, Run, Source, Views, recipe_files, shrunk
from clipfh.training.state import decay_groups

STAGE = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command line: the groups of flags that trainings share, and what is this stage's own."""

    source: Source = section()
    start: Start = section()
    loss: str = option(IN_FILE, f"sum of {', '.join(WEIGHTS)}")
    texts: ClassTexts = section()
    p: int = option(IN_FILE, "identities a batch", at_least=1)
    k: int = option(IN_FILE, "photos of each identity", at_least=1)
    min_batches: int = option(
        IN_FILE,
        "fewest batches of an epoch: where a pass over all photos makes fewer, it is several whole passes",
        at_least=1,
    )
    lr: float = option(IN_FILE, "peak learning rate", above=0)
    center_lr: float = option(
        IN_FILE, "rate at which a center follows its photos, alpha of Wen et al.", above=0, at_most=1
    )
    i2t_weight: float = option(IN_FILE, "of the term i2t, where --loss has it", above=0)
    distill_weight: float = option(IN_FILE, "of the term distill, where --loss has it", above=0)
    optimisation: Optimisation = section()
    views: Views = section()
    layers: Layers = section()
    interpolation: Interpolation = section()
    computing: Computing = section()
    run: Run = section()


def make_step(config: Config, model: nn.Module, objective: ImageEncoderLoss) -> Callable[[Batch], dict[str, Tensor]]:
    """The step on one batch: forward, the terms of the loss, backward; then the centers follow their photos."""

    def step(batch: Batch) -> dict[str, Tensor]:
        with autocast(batch.images.device, config.run.precision):
            own_features = model.encode_image(batch.images)  # of this process's rows
        features = gather_rows(own_features, len(batch.indices))  # (P*K, D)
        terms = objective(features, batch.labels, model.logit_scale.exp(), batch.indices)
        (sum(terms.values()) / config.optimisation.accumulate).backward()
        objective.update_centers(features, batch.labels, config.center_lr)
        return {name: value.detach() for name, value in terms.items()}

    return step


def remember_first_weights(
    config: Config, clip: LoadedClip, photos: TrainPhotos, place: Place, objective: ImageEncoderLoss
) -> list[str]:
    """Give the objective what it takes of the first weights; lines for the log. A continued run has it in its state."""
    learns_texts, said = config.texts.text == "learned", []
    if config.run.resume_ckpt or not (learns_texts or objective.anchors is not None):
        return said
    features = photos.features(clip)  # (N, D), of the whole photos
    if learns_texts:
        prompts = LearnedPrompts(clip, len(photos.item_ids), config.texts.learned_tokens, place.seed)
        labels = torch.from_numpy(photos.labels).to(place.device)
        texts, line = learn(prompts, features, labels, config.texts, precision=config.run.precision, seed=place.seed)
        objective.text_features.copy_(texts)
        said.append(line)
    if objective.anchors is not None:
        objective.anchors.copy_(features)
    return said


def main(config: Config) -> None:
    """Data, model, objective, the loop."""
    if config.run.smoke:  # without interpolation: after one short epoch it would often take the first weights
        few = replace(config.texts, learned_epochs=1)
        config = shrunk(config, p=4, k=2, min_batches=1, texts=few, interpolation=Interpolation(wise_ft=0))
    terms = parse_terms(config.loss, config.p, config.k)
    config.texts.require(terms)
    place = prepare_run(config.run, STAGE)

    # ---- data: photos and prompts of the train identities, in P x K batches; a run to continue knows its image size
    data, asked = load_source(config.source), config
    config = replace(config, source=source_for(config.source, data))
    weights = str(config.run.resume_ckpt) if config.run.resume_ckpt else config.start.pretrained
    identities = load_identities(
        data, config.source, config.start, config.views, place, weights=weights, prompts=TOKEN_SAFE_PROMPTS
    )
    clip, photos = identities.clip, identities.photos
    config = replace(config, p=min(config.p, len(photos.item_ids)))
    sampler = PKSampler(photos.labels, config.p, config.k, place.seed, min_batches=config.min_batches)

    # ---- model and objective: the text encoder is frozen; the features of prompts, which i2t reads, are computed once.
    # With LoRA `model` is a twin whose adapters learn, and `merge` brings up to date what is validated and saved: the
    # weights of `clip`
    clip.model.train()
    freeze_text_encoder(clip.model)
    config.layers.hold(clip.model)
    model, merge = config.layers.adapt(clip.model)
    config.layers.hold(model)  # beside adapters, all batch norms of the blocks are held
    config.computing.prepare(model)
    prompts = [identities.prompts[item_id] for item_id in photos.item_ids]
    learns_texts = config.texts.text == "learned"  # in the place of the prompts' features, each identity its own
    are_read = "i2t" in terms and not learns_texts
    texts, same_text = class_text_features(clip, prompts, place.device, are_read=are_read)
    objective = ImageEncoderLoss(
        terms,
        texts,
        same_text,
        keep_texts=learns_texts,
        num_photos=len(photos.labels),
        distill_weight=config.distill_weight,
        i2t_weight=config.i2t_weight,
    ).to(place.device)
    said = remember_first_weights(config, clip, photos, place, objective)

    # ---- the loop: AdamW, cosine with warm-up by step; the centers follow by themselves
    groups = config.layers.groups(model, config.lr, config.optimisation.weight_decay)
    groups += decay_groups(objective, config.lr, config.optimisation.weight_decay)
    loop = Loop(
        model,
        groups,
        {"clip": model, "objective": objective},
        sampler,
        photos.images,
        config.optimisation,
        lr=config.lr,
        averaged=clip.model,
        refresh=merge,
        remember_start=config.interpolation.wise_ft > 0 and not config.source.final_fit,
    )
    recorded = identities.record(config.loss)
    origin = identities.origin()
    run = start_run(place, config, recorded, prefix="clip_img_encoder", restore=loop.load_state, origin=origin)
    run.log.say(
        f"{run.name}: {identities}; {len(sampler)} batches of {config.p} x {config.k}, loss {config.loss}, "
        f"lr {config.lr:g}"
    )
    few = lines_on_few(asked.source, asked.p, config.source, config.p)
    for line in filter(None, (*few, config.layers.told(model), *said)):
        run.log.say(line)
    if "i2t" in terms and len(objective.text_features) == 1:
        run.log.say("all identities have the same prompt: the term i2t teaches nothing here")

    def batches(epoch: int) -> Iterator[Batch]:
        config.layers.hold(model, epoch)
        return make_batches(photos, sampler, place.seed, epoch)

    validate = None if config.source.final_fit else partial(identities.validate, loop.average.module)
    loop.fit(run, batches, make_step(config, model, objective), validate)
    choose_between(loop, run, validate, config.interpolation.wise_ft)
    run.log.close()


if __name__ == "__main__":
    files = partial(recipe_files, Path(__file__).parent / "config")
    run_script(main, Config, __doc__, partial(parse_with_files, files=files), in_processes=True)
