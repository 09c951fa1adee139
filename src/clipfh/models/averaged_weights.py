"""An exponential moving average of a model's weights: what is validated and saved."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

STEPS_AT_ONCE = 4


class AveragedWeights(AveragedModel):
    """The average of the weights and running statistics of `model`, with `decay` a step; `module` holds it.

    It generalises better than the last step's weights, and its val figure is steadier, so that BEST is less a matter of
    luck (Izmailov et al. 2018; Morales-Brotons et al. 2024). Counters, and values that are not finite, are copied.
    Frozen parameters stay bit-identical. A decay of 0 follows the model itself.

    `keep_start` is the share of the model's first weights in the average: what was fine-tuned, and between it and the
    start, is often better on what was not seen than what was fine-tuned alone (WiSE-FT, Wortsman et al. 2022). With
    `remember_start` they are at hand for `move_between` without a share in the average.

    `refresh` brings `model` up to date before the average follows it, where its weights are made of others
    (`clipfh.models.lora`).
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        keep_start: float = 0.0,
        *,
        remember_start: bool = False,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(model, use_buffers=True)
        self._refresh = refresh or (lambda: None)
        self._keep_start = keep_start
        learning = self._learning(model) if keep_start or remember_start else []
        # among what is saved: a continued run needs it again
        self.start = nn.ParameterList(nn.Parameter(value.detach().clone(), requires_grad=False) for value in learning)
        self._decay, self._steps = decay, 0  # steps since the average was brought up to date
        # filled by the first update: walking through a large model's modules takes longer than its average
        self._averaged: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._copied: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, *, now: bool = True) -> None:
        """Count one step of `model`, and bring the average up to date.

        Without `now`, the average follows `STEPS_AT_ONCE` steps at once, by their decay: it is memory-bound and takes a
        fiftieth of a small model's step, and of a half-life of 69 steps (decay 0.99) a few more or less do not matter.
        """
        self._steps += 1
        if not self._averaged:  # the first call, of a new run or of a continued one
            self._pair_up(model)
            if self.n_averaged == 0:
                self._steps = 0
                self._refresh()
                super().update_parameters(model)  # copies everything
                self._move(1.0)
                return
        if not now and self._steps < STEPS_AT_ONCE:
            return
        steps, self._steps = self._steps, 0
        self._refresh()
        self._move(1 - self._decay**steps)  # as torch's get_ema_multi_avg_fn does
        for mine, its in self._copied:
            mine.copy_(its)
        self.n_averaged += steps

    def _move(self, share: float) -> None:
        """Bring the average nearer to the model, or to what lies between it and the start."""
        ours, theirs = zip(*self._averaged, strict=True)
        if self._keep_start:
            theirs = torch._foreach_lerp(theirs, list(self.start), self._keep_start)
        torch._foreach_lerp_(ours, theirs, share)

    @torch.no_grad()
    def move_between(self, end: dict[str, torch.Tensor], alpha: float) -> None:
        """Give `module` the weights at `alpha` of the way from the first ones to `end`, a state of it.

        Of 1 and 0 they are those of the ends to the bit. Running statistics lie between, too; counters are the end's.

        Raises:
            ValueError: the first weights were not kept.
        """
        self.module.load_state_dict(end)
        ours = self._learning(self.module)
        if len(ours) != len(self.start):
            raise ValueError("the first weights were not kept: make it with remember_start")
        if alpha != 1:
            torch._foreach_lerp_(ours, list(self.start), 1 - alpha)

    def _pair_up(self, model: nn.Module) -> None:
        self._averaged = list(zip(self._learning(self.module), self._learning(model), strict=True))
        counters = (
            [buffer for buffer in module.buffers() if not _has_average(buffer)] for module in (self.module, model)
        )
        self._copied = list(zip(*counters, strict=True))

    def _learning(self, model: nn.Module) -> list[torch.Tensor]:
        """The parameters that learn and the running statistics of `model`."""
        # whether a parameter ever learns, the average's copy knows: the model's may be held for some epochs
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        learning: list[torch.Tensor] = [theirs for ours, theirs in pairs if ours.requires_grad]
        return learning + [buffer for buffer in model.buffers() if _has_average(buffer)]


def _has_average(buffer: torch.Tensor) -> bool:
    """Buffers also hold counters, and constants such as the causal mask, whose -inf has no average."""
    return buffer.is_floating_point() and bool(buffer.isfinite().all())
