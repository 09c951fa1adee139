"""Learning rate by step: linear warm-up, then a cosine."""

import math

from clipfh.core.errors import InputError


def cosine_with_warmup(step: int, *, total_steps: int, warmup_steps: int, final_fraction: float = 0.0) -> float:
    """The factor on the peak learning rate at optimiser step `step`, counted from 0.

        step < warmup_steps:   (step + 1) / warmup_steps          (the first step already trains)
        then, with t = (step - warmup_steps) / (total_steps - warmup_steps):
                               final_fraction + (1 - final_fraction) * (1 + cos(pi t)) / 2

    The peak, 1, is at `warmup_steps` (and at the step before); at `total_steps` and after it, the factor is
    `final_fraction`. Use it as `LambdaLR(optimizer, partial(cosine_with_warmup, total_steps=..., warmup_steps=...))`
    and step the scheduler after every optimiser step.

    Raises:
        InputError: no steps, warm-up as long as the run or negative, or a final fraction outside 0..1.
        ValueError: a negative step.

    Source: Loshchilov, Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5, one period.
    """
    if total_steps < 1:
        raise InputError(f"the run has {total_steps} steps; train for at least one epoch on at least one batch")
    if not 0 <= warmup_steps < total_steps:
        raise InputError(
            f"a warm-up of {warmup_steps} steps does not fit into a run of {total_steps}; "
            f"choose 0 to {total_steps - 1} steps of warm-up, or train for more epochs"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise InputError(f"the final fraction of the learning rate is {final_fraction}; choose 0 to 1")
    if step < 0:
        raise ValueError(f"steps count from 0, not {step}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
