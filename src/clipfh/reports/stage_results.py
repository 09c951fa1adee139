"""What the summary says of each stage: its newest evaluation of each training seed, on what the dataset holds now."""

import re
from dataclasses import dataclass

import pandas as pd

from clipfh.metrics.statistics import MeanStd, mean_and_std
from clipfh.reports.summary import FRACTIONS, PROTOCOLS

EVALUATION = ["dataset", "model", "stage", "variant"]  # what an evaluation is of
_PLAIN = ("official", "random", "text_to_image")  # whose detail is what was measured otherwise
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
    """One stage (and variant): the newest evaluation, with those of the same recipe's other training seeds.

    A protocol that was not run has an empty dictionary. Figures are fractions 0..1.

    Attributes:
        dataset: its name.
        data_digest: of what it held then, see `clipfh.tables.digest`.
        model: the architecture.
        stage: as written in the summary.
        variant: of the training, such as "v4"; may be empty.
        detail: what was measured otherwise than the prepared dataset says, such as "same camera counted"; may be empty.
        time: of the newest evaluation.
        runs: the folders of the evaluations, one a training seed, by seed.
        seeds: of the same; empty where it is not known, or nothing was trained.
        recipe: that they have in common, see `clipfh.training.recipe`; may be empty.
        num_random: how many random splits were evaluated.
        random: figure to mean and standard deviation over the random splits, each split's figure a mean over seeds.
        official: figure to mean and standard deviation over the seeds, on the official split.
        text_to_image: the same with prompts as queries.
        reranked: the same after re-ranking; only where all seeds were re-ranked alike.
        reranked_by: the method with its values; empty without one.
        probe: the same of zero-shot classification, rank1 being top-1, see `clipfh.evaluation.probe`.
        probe_name: of what; empty without one.
    """

    dataset: str
    data_digest: str
    model: str
    stage: str
    variant: str
    detail: str
    time: str
    runs: tuple[str, ...]
    seeds: tuple[str, ...]
    recipe: str
    num_random: int
    random: dict[str, MeanStd]
    official: dict[str, MeanStd]
    text_to_image: dict[str, MeanStd]
    reranked: dict[str, MeanStd]
    reranked_by: str
    probe: dict[str, MeanStd]
    probe_name: str


def of_present_data(summary: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each dataset that were measured on what it held at its newest evaluation.

    A dataset that was prepared again, or another folder of the same name, is not compared with what was there before.
    """
    latest = summary.sort_values("time", kind="stable").groupby("dataset")["data_digest"].last()
    return summary[summary["data_digest"] == summary["dataset"].map(latest)]


def details_of(summary: pd.DataFrame) -> pd.Series:
    """What the evaluation of each row measured otherwise than the prepared dataset says; of most nothing, empty."""
    of_evaluation = [summary[name] for name in (*EVALUATION, "recipe", "seed", "time", "run")]
    plain = summary["detail"].where(summary["protocol"].isin(_PLAIN))
    return plain.groupby(of_evaluation).transform("first").fillna("").rename("measured")


def latest_rows(summary: pd.DataFrame) -> pd.DataFrame:
    """Only the rows that count of each dataset, model, stage and variant, measured alike, in the order of the file.

    They are the newest evaluation of each training seed, among trainings of the recipe that was evaluated last: older
    seeds of another recipe are no repetitions of it. Where the recipe is unknown, the newest evaluation alone counts.
    """
    alike = [*EVALUATION, "measured"]
    rows = of_present_data(summary).sort_values("time", kind="stable")
    rows = rows.assign(measured=details_of(rows))
    rows = rows[rows["recipe"] == rows.groupby(alike)["recipe"].transform("last")]
    of_seed = rows.assign(seed=rows["seed"].where(rows["recipe"] != "", ""))
    of_seed = of_seed[of_seed["time"] == of_seed.groupby([*alike, "seed"])["time"].transform("max")]
    # Two evaluations of one thing within the same second share their time; the later row stands.
    kept = of_seed.drop_duplicates([*alike, "seed", "protocol", "split"], keep="last").index
    return summary.loc[kept.sort_values()].reset_index(drop=True)


def stage_results(summary: pd.DataFrame) -> list[StageResult]:
    """What counts of each stage, see `latest_rows`, sorted by dataset, model, stage, variant and detail."""
    latest, results = latest_rows(summary), []
    groups = latest.groupby([*EVALUATION, details_of(latest)], sort=False)
    for (dataset, model, stage, variant, detail), rows in groups:
        by_protocol = {name: rows[rows["protocol"] == name] for name in PROTOCOLS}
        random = by_protocol["random"].groupby("split")[list(FRACTIONS)].mean()
        of_seed = rows.drop_duplicates("seed", keep="last").sort_values("seed", key=pd.to_numeric)
        results.append(
            StageResult(
                dataset=dataset,
                data_digest=rows["data_digest"].iloc[0],
                model=model,
                stage=stage,
                variant=variant,
                detail=detail,
                time=rows["time"].max(),
                runs=tuple(of_seed["run"]),
                seeds=tuple(of_seed["seed"]),
                recipe=rows["recipe"].iloc[0],
                num_random=len(random),
                random={name: mean_and_std(random[name].to_numpy()) for name in FRACTIONS} if len(random) else {},
                official=_mean_figures(by_protocol["official"]),
                text_to_image=_mean_figures(by_protocol["text_to_image"]),
                reranked=_mean_of_like(by_protocol["official_reranked"], len(by_protocol["official"])),
                reranked_by=_detail(by_protocol["official_reranked"]),
                probe=_mean_of_like(by_protocol["probe"], len(by_protocol["official"])),
                probe_name=_detail(by_protocol["probe"]),
            )
        )
    return sorted(results, key=lambda r: (r.dataset, r.model, stage_number(r.stage), r.stage, r.variant, r.detail))


def _mean_figures(rows: pd.DataFrame) -> dict[str, MeanStd]:
    """Over the seeds, one row each."""
    return {name: mean_and_std(rows[name].to_numpy()) for name in FRACTIONS} if len(rows) else {}


def _detail(rows: pd.DataFrame) -> str:
    """What the rows have in common; empty where there are none, or they differ."""
    return rows["detail"].iloc[0] if rows["detail"].nunique() == 1 else ""


def _mean_of_like(rows: pd.DataFrame, num_seeds: int) -> dict[str, MeanStd]:
    """As `_mean_figures`, where every seed has a row, and all rows are of the same detail."""
    return _mean_figures(rows) if len(rows) == num_seeds and rows["detail"].nunique() == 1 else {}


def stage_number(stage: str) -> int:
    """3 for "3", "stage3" or "stage3_joint_img_text_finetune"; -1 where there is no number. Sorts stages."""
    digits = re.search(r"\d+", stage)
    return int(digits.group()) if digits else -1


def stage_label(stage: str) -> str:
    """What tables and figures call a stage, such as "1 zero-shot"."""
    number = stage_number(stage)
    return f"{number} {_STAGE_NAMES[number]}" if number in _STAGE_NAMES else stage


def evaluation_label(stage: str, variant: str, detail: str = "") -> str:
    """What texts call an evaluation, such as "3 joint v4 (same camera counted)"."""
    return " ".join(filter(None, (stage_label(stage), variant, detail and f"({detail})")))
