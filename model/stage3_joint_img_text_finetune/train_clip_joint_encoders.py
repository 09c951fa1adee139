"""Stage 3: fine-tune both encoders of CLIP together, images and prompts of one identity drawn to each other.

    python model/stage3_joint_img_text_finetune/train_clip_joint_encoders.py
    python model/stage3_joint_img_text_finetune/train_clip_joint_encoders.py --dataset inshop --model ViT-B/16 \\
        --init_ckpt stage2 --p 16 --k 4 --epochs 20

Four variants, from the naive one to the one to use (config/v1.yaml to v4.yaml say what each changes):
    v1  InfoNCE on random batches with raw prompts
    v2  SupCon on P x K batches with filtered prompts
    v3  v2 continued from its BEST with a higher learning rate
    v4  SupCon on P x K batches, token-safe prompts, warm-up then cosine, early stopping (default)

BEST is chosen on the val identities, by the mean of mAP between photos and mAP with prompts as queries. Values
are read from config/default.yaml, for the models of stage 0 then small_clip.yaml or tiny.yaml, then the variant's file
and the model's own of the variant (small_clip_v4.yaml: distillation beside SupCon), then the files of --config; flags
win.

Reads:   metadata/<dataset>/ (scripts 00 to 04)
Writes:  checkpoints/<run>_BEST.pth, checkpoints/<run>_LAST.pth, logs/<run>/ beside this script,
         with <run> = clip_joint_YYYYMMDD_HHMMSS
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
from dataset import Batch, TrainPairs
from loss import TERMS, JointLoss, parse_terms
from start_weights import SOURCES, start_weights
from torch import Tensor, nn

from clipfh.core.cli import option, run_script, section
from clipfh.core.config_file import IN_FILE, flag_value, parse_with_files
from clipfh.core.errors import InputError
from clipfh.core.processes import gather_rows, world_size
from clipfh.core.run import autocast
from clipfh.models.clip import encode_texts
from clipfh.models.gradient_cache import Tower, cached_backward
from clipfh.models.image_layers import follows_batch
from clipfh.models.settings import Start
from clipfh.models.text_layers import hold_text_blocks
from clipfh.tables.prepared import CLEAN_PROMPTS, RAW_PROMPTS, TOKEN_SAFE_PROMPTS
from clipfh.training.computing import Computing
from clipfh.training.data import made_ahead
from clipfh.training.few_identities import lines_on_few, source_for
from clipfh.training.identities import load_identities, load_source
from clipfh.training.interpolation import Interpolation, choose_between
from clipfh.training.layers import Layers
from clipfh.training.loop import Loop
from clipfh.training.runs import prepare_run, start_run
from clipfh.training.sampler import PKSampler, RandomBatchSampler
from clipfh.training.settings import Optimisation, Run, Source, Views, recipe_files, shrunk
from clipfh.training.state import decay_groups

STAGE = 3
VARIANTS = ("v1", "v2", "v3", "v4")
PROMPT_FILES = {"raw": RAW_PROMPTS, "filtered": CLEAN_PROMPTS, "token_safe": TOKEN_SAFE_PROMPTS}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command line: the groups of flags that trainings share, and what is this stage's own."""

    variant: str = option("v4", "see above", choices=VARIANTS)
    source: Source = section()
    prompts: str = option(IN_FILE, "which prompts of the metadata folder", choices=tuple(PROMPT_FILES))
    start: Start = section()
    init_ckpt: str | None = option(
        None, f"start from this checkpoint, or from the newest BEST of {', '.join(SOURCES)} on the dataset"
    )
    loss: str = option(IN_FILE, f"sum of {', '.join(TERMS)}")
    distill_weight: float = option(IN_FILE, "of the term distill, where --loss has it", above=0)
    batches: str = option(IN_FILE, "pk: P identities x K photos; random: P*K photos", choices=("pk", "random"))
    temperature: float | None = option(
        IN_FILE, "first value of the learned temperature; null: that of the weights", above=0
    )
    p: int = option(IN_FILE, "identities a batch", at_least=1)
    k: int = option(IN_FILE, "photos of each identity", at_least=1)
    min_batches: int = option(
        IN_FILE,
        "fewest batches of an epoch: where a pass over all photos makes fewer, it is several whole passes",
        at_least=1,
    )
    lr: float = option(IN_FILE, "peak learning rate", above=0)
    schedule: str = option(IN_FILE, "of the learning rate, by step", choices=("constant", "cosine"))
    grad_cache_chunk: int = option(
        IN_FILE,
        "photos that go through the encoder at once, for batches larger than memory, with the gradients of the whole "
        "batch (batch norms that learn, as in tiny-rn, normalise by the chunk); 0: all",
        at_least=0,
    )
    optimisation: Optimisation = section()
    views: Views = section()
    layers: Layers = section()
    interpolation: Interpolation = section()
    computing: Computing = section()
    freeze_text_blocks: bool = option(
        IN_FILE, "hold the embeddings and blocks of the text encoder; its last norm and projection learn"
    )
    text_lr_scale: float = option(IN_FILE, "learning rate of the text encoder, relative to --lr", above=0)
    run: Run = section()


def recipe(arguments: Sequence[str], variant: str = "v4") -> list[Path]:
    """The YAML files of the variant that `arguments` name."""
    given = flag_value(arguments, "--variant", default=variant)
    return recipe_files(Path(__file__).parent / "config", arguments, variant=given if given in VARIANTS else variant)


def make_step(
    config: Config, model: nn.Module, pairs: TrainPairs, objective: JointLoss
) -> Callable[[Batch], dict[str, Tensor]]:
    """The step on one batch: forward and backward, at once or, with `--grad_cache_chunk`, chunk by chunk."""
    device, size = pairs.photos.device, config.grad_cache_chunk

    def encode_image(images: Tensor) -> Tensor:  # (n, 3, S, S) to (n, D)
        with autocast(device, config.run.precision):
            return model.encode_image(images)

    def encode_text(tokens: Tensor) -> Tensor:  # (n, L) to (n, D)
        with autocast(device, config.run.precision):
            return model.encode_text(tokens)

    def step(batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}

        def loss_of(own_images: Tensor, own_texts: Tensor) -> Tensor:  # of this process's rows of the B and the U
            image_features = gather_rows(own_images, len(batch.indices))  # (B, D)
            text_features = gather_rows(own_texts, batch.num_texts)  # (U, D)
            labels = batch.image_labels, batch.text_labels, batch.prompt_of_image, batch.image_groups, batch.own_prompts
            texts = text_features[batch.token_row]  # (T, D)
            anchored = batch.indices, batch.prompt_rows
            terms.update(objective(image_features, texts, *labels, model.logit_scale.exp(), *anchored))
            return sum(terms.values()) / config.optimisation.accumulate

        if size == 0:
            loss_of(encode_image(batch.images), encode_text(batch.tokens)).backward()
        else:
            images = Tower(encode_image, lambda: made_ahead(pairs.image_chunks(batch, size), device))
            texts = Tower(encode_text, lambda: batch.tokens.split(size))
            cached_backward([images, texts], loss_of, modules=[model], device=device)
        return {name: value.detach() for name, value in terms.items()}

    return step


def main(config: Config) -> None:
    """Data, model, objective, the loop."""
    if config.run.smoke:  # without interpolation: after one short epoch it would often take the first weights
        config = shrunk(config, p=4, k=2, min_batches=1, interpolation=Interpolation(wise_ft=0))
    terms = parse_terms(config.loss)
    if config.p * config.k < 2:
        raise InputError("a contrastive loss needs at least two photos a batch; raise --p or --k")
    place = prepare_run(config.run, STAGE)

    # ---- data and model: photos with prompts of the train identities; stage 2's weights, or what the flags name
    data, asked = load_source(config.source), config
    config = replace(config, source=source_for(config.source, data))
    weights = start_weights(config.run.resume_ckpt, config.init_ckpt, config.start.pretrained, data)
    prompts = PROMPT_FILES[config.prompts]
    identities = load_identities(
        data, config.source, config.start, config.views, place, weights=weights, prompts=prompts
    )
    clip, photos = identities.clip, identities.photos
    pairs = TrainPairs(photos, identities.prompts, clip)
    if config.batches == "pk":
        config = replace(config, p=min(config.p, len(photos.item_ids)))
        sampler = PKSampler(photos.labels, config.p, config.k, place.seed, min_batches=config.min_batches)
    else:
        sampler = RandomBatchSampler(
            len(photos.labels), config.p * config.k, place.seed, min_batches=config.min_batches
        )

    # ---- objective
    if config.temperature:
        clip.model.logit_scale.data.fill_(torch.tensor(1 / config.temperature).log())
    embed_dim = encode_texts(clip, ["a photo"], place.device).shape[1]
    objective = JointLoss(
        terms,
        embed_dim,
        len(photos.item_ids),
        num_photos=len(photos.labels),
        num_prompts=len(pairs.prompts),
        distill_weight=config.distill_weight,
    ).to(place.device)

    # ---- the loop: AdamW for both encoders, by step. With LoRA `model` is a twin whose adapters learn, and `merge`
    # brings up to date what is validated and saved: the weights of `clip`
    def hold(model: nn.Module, epoch: int = 0) -> None:
        config.layers.hold(model, epoch)
        if config.freeze_text_blocks:
            hold_text_blocks(model)

    clip.model.train()
    hold(clip.model)
    model, merge = config.layers.adapt(clip.model)
    hold(model)  # beside adapters, all batch norms of the blocks are held
    config.computing.prepare(model)
    by_chunk = config.grad_cache_chunk > 0 and follows_batch(model)
    if by_chunk and world_size() > 1:  # whose chunks may be unequally many, and the processes would wait for each other
        raise InputError(
            "--grad_cache_chunk in several processes needs batch norms that keep their statistics: --hold_statistics"
        )
    decay = config.optimisation.weight_decay
    groups = config.layers.groups(model, config.lr, decay, text_lr_scale=config.text_lr_scale)
    groups += decay_groups(objective, config.lr, decay)
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
        constant_lr=config.schedule == "constant",
        remember_start=config.interpolation.wise_ft > 0 and not config.source.final_fit,
        chosen_by="val_mean_mAP",
    )
    recorded = identities.record(config.variant)
    origin = [*identities.origin(), loop.chosen_by]
    run = start_run(place, config, recorded, prefix="clip_joint", restore=loop.load_state, origin=origin)
    run.log.say(
        f"{run.name}: {config.variant}, {identities}; {len(sampler)} batches of {config.p} x {config.k} "
        f"({config.batches}), loss {config.loss}, {config.prompts} prompts, lr {config.lr:g} {config.schedule}"
    )
    few = lines_on_few(asked.source, asked.p, config.source, config.p)
    for told in filter(None, (*few, config.layers.told(model), pairs.say_what_prompts_tell_apart())):
        run.log.say(told)
    if by_chunk:
        chunk = f"by {config.grad_cache_chunk} photos"
        run.log.say(f"{clip.name} normalises by the batch: with --grad_cache_chunk, {chunk}")
    if "distill" in terms and loop.epoch == 0:  # a run to continue has those of its first weights in its state
        objective.image_anchors.copy_(photos.features(clip))
        objective.text_anchors.copy_(encode_texts(clip, pairs.prompts, place.device))

    def batches(epoch: int) -> Iterator[Batch]:
        hold(model, epoch)
        return pairs.batches(sampler, place.seed, epoch, with_images=not config.grad_cache_chunk)

    validate = None if config.source.final_fit else partial(identities.validate_both, loop.average.module)
    loop.fit(run, batches, make_step(config, model, pairs, objective), validate)
    choose_between(loop, run, validate, config.interpolation.wise_ft)
    run.log.close()


if __name__ == "__main__":
    run_script(main, Config, __doc__, partial(parse_with_files, files=recipe), in_processes=True)
