"""An exponential moving average of a model's weights: what is validated and saved."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

STEPS_AT_ONCE = 4


class AveragedWeights(AveragedModel):
    """The average of the weights and running statistics of `model`, with `decay` a step; `module` holds it.

    It generalises better than the last step's weights, and its val figure is steadier, so that BEST is less a matter of
    luck (Izmailov et al. 2018; Morales-Brotons et al. 2024). Counters, and values that are not finite, are copied.
    Frozen parameters stay bit-identical. A decay of 0 follows the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
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
                super().update_parameters(model)  # copies everything
                return
        if not now and self._steps < STEPS_AT_ONCE:
            return
        steps, self._steps = self._steps, 0
        ours, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(ours, theirs, 1 - self._decay**steps)  # as torch's get_ema_multi_avg_fn does
        for mine, its in self._copied:
            mine.copy_(its)
        self.n_averaged += steps

    def _pair_up(self, model: nn.Module) -> None:
        parameters = zip(self.module.parameters(), model.parameters(), strict=True)
        self._averaged = [(ours, theirs) for ours, theirs in parameters if theirs.requires_grad]
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            # buffers also hold counters, and constants such as the causal mask, whose -inf has no average
            has_average = theirs.is_floating_point() and bool(theirs.isfinite().all())
            (self._averaged if has_average else self._copied).append((ours, theirs))
