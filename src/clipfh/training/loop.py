"""The one loop of stages 2, 3 and 4: epochs of steps, validation, BEST and LAST, early stop, resume, log, curves.

A stage hands it the parts that learn, the batches of an epoch, and two functions: its step, and how it validates. In
several processes (`clipfh.core.processes`) all run it, from the same weights, and move by the same gradients; a step
takes the rows of its own process, and the loss of the features of all.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.core.processes import average_gradients, rank, same_everywhere
from clipfh.core.run import random_state, restore_random_state
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.clip import clamp_logit_scale
from clipfh.models.image_layers import require_shared_statistics, share_batch_norm_statistics
from clipfh.training.data import made_ahead
from clipfh.training.planned_batches import PlannedBatches
from clipfh.training.runs import TrainingRun
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.settings import Optimisation
from clipfh.training.state import (
    BestSoFar,
    Validation,
    epoch_line,
    load_states,
    require_finite,
)


class Batch(Protocol):
    """What the loop knows of a stage's batch."""

    indices: list[int]  # of its images


Step = Callable[[Any], Mapping[str, torch.Tensor]]  # adds a batch's gradients; returns its loss terms, detached
Batches = Callable[[int], Iterable[Batch]]  # of an epoch, counted from 1
Validate = Callable[[], Validation]


class Loop:
    """Trains `model` by AdamW with a warm-up and a moving average of the weights, which is validated and saved.

    Args:
        model: is put into train mode, and its `logit_scale` kept in CLIP's range.
        groups: AdamW's parameter groups, with their peak learning rates; named ones are logged by their names.
        lr: the peak rate, which unnamed groups have or a multiple of; what it is at a step is logged as `lr`.
        modules: what a continued run needs, by name; what learns is among it.
        sampler: of the batches.
        images: names of the images that a batch's `indices` stand for.
        settings: how long, how fast, what is kept.
        averaged: what has an average, a part of `model` or what is made of it; default: all of it.
        refresh: brings `averaged` up to date with `model`, where it is made of it; called when the average moves.
        constant_lr: stay at the peak instead of warming up and falling along a cosine.
        remember_start: keep the first weights of what learns, for `clipfh.training.interpolation`.
        chosen_by: which of val's figures decides about BEST.

    Attributes:
        chosen_by: the same.
        average: the moving average; `average.module` is what is validated.
        epoch, step: finished so far.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        modules: dict[str, nn.Module],
        sampler: PlannedBatches,
        images: Sequence[str],
        settings: Optimisation,
        *,
        lr: float | None = None,
        averaged: nn.Module | None = None,
        refresh: Callable[[], None] | None = None,
        constant_lr: bool = False,
        remember_start: bool = False,
        chosen_by: str = "val_mAP",
    ) -> None:
        self.model, self.settings, self.sampler, self.images = model, settings, sampler, images
        self.chosen_by = chosen_by
        same_everywhere([model, *modules.values()])
        share_batch_norm_statistics(model)
        self._averaged = model if averaged is None else averaged
        self.average = AveragedWeights(
            self._averaged,
            settings.ema_decay,
            settings.keep_start,
            remember_start=remember_start,
            refresh=refresh,
        )
        self._modules = {**modules, "ema": self.average}
        self.optimizer = AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        total_steps = settings.epochs * -(-len(sampler) // settings.accumulate)
        warmup_steps = int(settings.warmup_fraction * total_steps)
        cosine = partial(cosine_with_warmup, total_steps=total_steps, warmup_steps=warmup_steps)
        self._peak_lr, self._schedule = lr, (lambda step: 1.0) if constant_lr else cosine
        self.scheduler = LambdaLR(self.optimizer, self._schedule)
        self.best = BestSoFar(settings.patience)
        self.epoch, self.step = 0, 0

    def fit(
        self,
        run: TrainingRun,
        batches: Batches,
        step: Step,
        validate: Validate | None,
        weights: Callable[[], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        """Train to the last epoch, or until `patience` epochs have brought no better val figure.

        Args:
            run: takes the log and the checkpoints.
            batches, step, validate: see above; without `validate` the last epoch is BEST.
            weights: the state that a checkpoint holds; default: the average's.
        """
        epochs = self.settings.epochs
        if self.sampler.note:
            run.log.say(self.sampler.note)
        if self.epoch == 0 and validate:  # where it starts from
            start = validate()
            self.best.start = start.figures
            run.log.epoch({"epoch": 0, **start.figures})
            run.log.say(f"before training  {start.text}")
        for epoch in range(self.epoch + 1, epochs + 1):
            if validate and self.best.should_stop(epoch - 1):  # also where the run that is continued had stopped
                run.log.say(
                    f"no better {self.chosen_by.replace('_', ' ')} for {self.settings.patience} epochs: stopped early"
                )
                break
            started = time.perf_counter()
            row = {"epoch": epoch, **self.train_one_epoch(run, epoch, batches, step)}
            val = validate() if validate else None
            is_best = self.best.update(val.figures[self.chosen_by], epoch) if val else epoch == epochs
            row |= val.figures if val else {}
            row |= {"logit_scale": self.model.logit_scale.exp().item()}
            row["seconds"] = round(time.perf_counter() - started, 2)
            content = {"epoch": epoch, **(self.recorded(val.figures) if val else {})}
            content["state_dict"] = weights() if weights else self.average.module.state_dict()
            run.save(content, {**self.state(), "row": row}, is_best=is_best)
            run.log.epoch(row)  # after the checkpoint: a run that is continued has the lines of its epochs, once
            run.log.say(epoch_line(row, epochs, val, is_best=is_best))
        if run.log.is_writer and self.step:
            from clipfh.reports.charts import training_curves_figure  # matplotlib: --help needs none

            picture = run.log.folder / "training_curves.png"
            training_curves_figure(picture, run.log.epochs(), title=run.name, best_by=self.chosen_by)
        figure = f"epoch {self.best.epoch}, {self.chosen_by.replace('_', ' ')} {100 * self.best.value:.1f}"
        run.log.say(f"BEST: {figure if validate else 'the last epoch'}: {display(run.best)}")

    def recorded(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Of val's figures those that a checkpoint holds: what it was chosen by, and mAP between photos if measured."""
        between_photos = {"val_mAP": figures["val_mAP"]} if "val_mAP" in figures else {}
        return {self.chosen_by: figures[self.chosen_by], **between_photos}

    def learning_rates(self) -> dict[str, float]:
        """Those of the next step, as they are logged: `lr`, and `lr_<name>` of groups with a name."""
        rates = {f"lr_{group['name']}": group["lr"] for group in self.optimizer.param_groups if "name" in group}
        return rates if self._peak_lr is None else {"lr": self._peak_lr * self._schedule(self.step), **rates}

    def train_one_epoch(self, run: TrainingRun, epoch: int, batches: Batches, step: Step) -> dict[str, float]:
        """One pass: the mean of each loss term, and the learning rates that it began with."""
        lr = self.learning_rates()
        sums: dict[str, torch.Tensor] = {}
        count = len(self.sampler)
        self.model.train()  # before `batches`, which may hold a part of it
        self.sampler.set_epoch(epoch)
        hidden = None if rank() == 0 else True  # None: where nobody watches
        bar = tqdm(total=count, desc=f"epoch {epoch}", unit="batch", disable=hidden, leave=False)
        generator = (batch for batch in batches(epoch))  # has an end that can be forced, whatever it runs over
        require_shared_statistics(self.model)
        with contextlib.closing(made_ahead(generator, run.place.device)) as ready, bar:
            for number, batch in enumerate(ready, start=1):
                terms = step(batch)
                where = {"epoch": epoch, "batch": number, "images": [self.images[i] for i in batch.indices]}
                require_finite(terms, **where)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                bar.update()
                pending = (number - 1) % self.settings.accumulate + 1
                if pending == self.settings.accumulate or number == count:
                    self._update(run, terms, pending, where, now=number == count)
        self.epoch = epoch
        return {**{f"loss_{name}": total.item() / count for name, total in sums.items()}, **lr}

    def _update(
        self, run: TrainingRun, terms: Mapping[str, torch.Tensor], pending: int, where: dict[str, Any], *, now: bool
    ) -> None:
        """One step of the optimiser on the gradients of `pending` batches; `now`: the average is brought up to date."""
        values = {"loss": sum(terms.values()), **self.learning_rates()}
        values["logit_scale"] = self.model.logit_scale.detach().exp()  # of this batch: before the step
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average_gradients(learning)
        if pending < self.settings.accumulate:  # the last of an epoch: their mean, too
            gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
            torch._foreach_mul_(gradients, self.settings.accumulate / pending)
        values["grad_norm"] = clip_grad_norm_(learning, self.settings.clip_grad)
        require_finite({"norm of the gradient": values["grad_norm"]}, **where)  # or the weights would be lost
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clamp_logit_scale(self.model)
        run.log.step(self.step, values)
        self.average.update_parameters(self._averaged, now=now)
        self.scheduler.step()
        self.step += 1

    def state(self) -> dict[str, Any]:
        """All that continues the run after this epoch as if it had not stopped, as plain values and tensors."""
        # the factor's function is made again from the flags; the counter is all that it needs
        scheduler = {key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"}
        return {
            "modules": {name: self._without_copies(module.state_dict()) for name, module in self._modules.items()},
            "optimizers": {"model": self.optimizer.state_dict()},
            "scheduler": scheduler,
            "sampler": self.sampler.state_dict(),
            "random": random_state(),
            "best": {
                "value": self.best.value,
                "epoch": self.best.epoch,
                "chosen_by": self.chosen_by,
                "start_figures": self.best.start,
            },
            "epoch": self.epoch,
            "step": self.step,
        }

    def _without_copies(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`state` with the average's tensors where they are equal, as what is frozen is: a file has them once then."""
        averaged = self.average.module.state_dict()
        return {
            name: averaged[name] if name in averaged and torch.equal(averaged[name], value) else value
            for name, value in state.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put everything that `state` saved back in place.

        Raises:
            InputError: the run that is resumed had other losses, parameters or sampler settings, or chose its BEST by
                another figure.
        """
        best = state["best"]
        if (before := best.get("chosen_by", "val_mAP")) != self.chosen_by:
            now, before = (name.replace("_", " ") for name in (self.chosen_by, before))
            raise InputError(f"the run to resume chose its BEST by {before}; now it is {now}: start it anew")
        load_states(self._modules, state["modules"])
        load_states({"model": self.optimizer}, state["optimizers"])
        lambdas = [None] * len(self.scheduler.lr_lambdas)
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": lambdas})
        self.sampler.load_state_dict(state["sampler"])
        self.best.value, self.best.epoch, self.best.start = best["value"], best["epoch"], best.get("start_figures")
        restore_random_state(state["random"])
        self.epoch, self.step = state["epoch"], state["step"]
