"""What the summary says of each stage: its newest evaluation, on what the dataset holds now."""

import re
from dataclasses import dataclass

import pandas as pd

from clipfh.metrics.statistics import MeanStd, mean_and_std
from clipfh.reports.summary import FRACTIONS, PROTOCOLS

EVALUATION = ["dataset", "model", "stage", "variant"]  # what an evaluation is of
_STAGE_NAMES = {
    0: "small CLIP",
    1: "zero-shot",
    2: "image encoder",
    3: "joint",
    4: "frozen text",
    5: "GAN",
}


@dataclass(frozen=True)
class StageResult:
    """The newest evaluation of one stage (and variant); a protocol that was not run has an empty dictionary.

    Attributes:
        dataset: its name.
        data_digest: of what it held then, see `clipfh.tables.digest`.
        model: the architecture.
        stage: as written in the summary.
        variant: of the training, such as "v4"; may be empty.
        time: of the evaluation.
        num_random: how many random splits were evaluated.
        random: figure to mean and standard deviation over the random splits, fractions 0..1.
        official: figure to value on the official split.
        text_to_image: figure to value with prompts as queries.
        reranked: figure to value on the official split after re-ranking.
    """

    dataset: str
    data_digest: str
    model: str
    stage: str
    variant: str
    time: str
    num_random: int
    random: dict[str, MeanStd]
    official: dict[str, float]
    text_to_image: dict[str, float]
    reranked: dict[str, float]


def of_present_data(summary: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each dataset that were measured on what it held at its newest evaluation.

    A dataset that was prepared again, or another folder of the same name, is not compared with what was there before.
    """
    latest = summary.sort_values("time", kind="stable").groupby("dataset")["data_digest"].last()
    return summary[summary["data_digest"] == summary["dataset"].map(latest)]


def latest_rows(summary: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of the newest evaluation of each dataset, model, stage and variant, in the order of the file."""
    summary = of_present_data(summary)
    newest = summary.groupby(EVALUATION)["time"].transform("max")
    rows = summary[summary["time"] == newest]
    # Two evaluations of one thing within the same second share their time; the later row stands.
    return rows.drop_duplicates([*EVALUATION, "protocol", "split"], keep="last").reset_index(drop=True)


def stage_results(summary: pd.DataFrame) -> list[StageResult]:
    """The newest evaluation of each stage, sorted by dataset, model, stage and variant."""
    results = []
    for (dataset, model, stage, variant), rows in latest_rows(summary).groupby(EVALUATION, sort=False):
        by_protocol = {name: rows[rows["protocol"] == name] for name in PROTOCOLS}
        random = by_protocol["random"]
        results.append(
            StageResult(
                dataset=dataset,
                data_digest=rows["data_digest"].iloc[0],
                model=model,
                stage=stage,
                variant=variant,
                time=rows["time"].iloc[0],
                num_random=len(random),
                random={name: mean_and_std(random[name].to_numpy()) for name in FRACTIONS} if len(random) else {},
                official=_mean_figures(by_protocol["official"]),
                text_to_image=_mean_figures(by_protocol["text_to_image"]),
                reranked=_mean_figures(by_protocol["official_reranked"]),
            )
        )
    return sorted(results, key=lambda r: (r.dataset, r.model, stage_number(r.stage), r.stage, r.variant))


def _mean_figures(rows: pd.DataFrame) -> dict[str, float]:
    return {name: float(rows[name].mean()) for name in FRACTIONS} if len(rows) else {}


def stage_number(stage: str) -> int:
    """3 for "3", "stage3" or "stage3_joint_img_text_finetune"; -1 where there is no number. Sorts stages."""
    digits = re.search(r"\d+", stage)
    return int(digits.group()) if digits else -1


def stage_label(stage: str) -> str:
    """What tables and figures call a stage, such as "1 zero-shot"."""
    number = stage_number(stage)
    return f"{number} {_STAGE_NAMES[number]}" if number in _STAGE_NAMES else stage
