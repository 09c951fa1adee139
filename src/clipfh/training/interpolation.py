"""Weights between those that a run began with and those of its best epoch (WiSE-FT, Wortsman et al. 2022).

Fine-tuning moves a pretrained model towards the train identities and away from what it knew; somewhere between the two
is often better at both. It costs no training: each point of the line is measured once on val.
"""

from dataclasses import dataclass

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE
from clipfh.core.processes import rank, wait_for_all
from clipfh.models.checkpoint import read_stage_checkpoint, write_checkpoint
from clipfh.training.loop import Loop, Validate
from clipfh.training.runs import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """The flag that says how closely the line is looked at."""

    wise_ft: int = option(
        IN_FILE,
        "steps from the weights that the run began with to the best epoch's; val is measured after each, and the best "
        "is BEST; 0, and with --final_fit: the best epoch's",
        at_least=0,
        at_most=100,
    )


def choose_between(loop: Loop, run: TrainingRun, validate: Validate | None, steps: int) -> None:
    """Measure the weights at alpha = 0, 1 / steps, ..., 1 on val; the best of them becomes the run's BEST.

    alpha is the share of the best epoch's weights; at 0 are those that the run began with, so that what is chosen is
    never worse on val than they are. Equal figures: the larger alpha. The checkpoint records `alpha` and
    `interpolation`, {alpha: figure}; `interpolation.png` beside the log shows it. A run that is continued after this is
    left as it is.

    Args:
        loop: after `fit`; made with `remember_start`.
        run: whose BEST is read, and written again.
        validate: measures `loop.average.module`, by what BEST was chosen by; None, as there is no val: nothing is
            done then.
        steps: from 0 to 1; with 0 nothing is done.

    Raises:
        InputError: BEST is missing, or cannot be written.
    """
    if validate is None or steps == 0:
        return
    wait_for_all()  # the first process has written it
    best = read_stage_checkpoint(run.best, run.place.stage)
    wait_for_all()  # and writes it again
    if "alpha" in best:
        return
    figures: dict[float, dict[str, float]] = {1.0: loop.recorded(best)}
    if loop.best.start:
        figures[0.0] = loop.recorded(loop.best.start)
    points = [step / steps for step in range(steps + 1)]
    for alpha in points:
        if alpha not in figures:
            loop.average.move_between(best["state_dict"], alpha)
            figures[alpha] = loop.recorded(validate().figures)
    curve = {alpha: figures[alpha][loop.chosen_by] for alpha in points}
    alpha = max(curve, key=lambda alpha: (curve[alpha], alpha))
    run.log.say(
        "weights between those it began with (0) and the best epoch's (1), on val: "
        + ", ".join(f"{at:.3g}: {100 * value:.1f}" for at, value in curve.items())
        + f"; BEST is now {alpha:.3g}"
        + (", the weights it began with: what was learned does not help on val" if alpha == 0 else "")
    )
    loop.average.move_between(best["state_dict"], alpha)
    if rank() == 0:
        recorded = {**best, **figures[alpha], "alpha": alpha, "interpolation": curve}
        write_checkpoint(run.best, {**recorded, "state_dict": loop.average.module.state_dict()})
        from clipfh.reports.charts import interpolation_figure  # matplotlib: --help needs none

        interpolation_figure(run.log.folder / "interpolation.png", curve, title=run.name)
