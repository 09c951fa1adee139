"""Draw ranked results from the rankings that an evaluation wrote: the picture in the README.

    python -m clipfh.reports.picture --path docs/ranked_results.jpg

Takes the newest evaluation of the highest stage of the dataset, and queries evenly spaced from the best to the worst:
neither a showcase nor a pillory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError, printable, shortened, shown
from clipfh.core.paths import RESULTS_DIR, ROOT
from clipfh.core.values import leaves_root
from clipfh.reports.figures import RankedImage, RankedQuery, ranked_results_figure
from clipfh.tables.prepared import DEFAULT_DATASET, load_prepared

COLUMNS = {"query": str, "query_item_id": str, "rank": int, "image": str, "item_id": str, "similarity": float}
COLUMNS |= {"is_match": bool}


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option(DEFAULT_DATASET, "which dataset's results")
    run_dir: Path | None = option(None, "folder of an evaluation (default: the newest of the highest stage)")
    path: Path = option(ROOT / "docs" / "ranked_results.jpg", "the picture to write")
    num_queries: int = option(5, "queries to show", at_least=1)


def main(config: Config) -> None:
    """Choose queries, draw them."""
    run_dir = config.run_dir or newest_run(config.dataset)
    rankings = read_rankings(run_dir / "rankings.csv")
    queries = evenly_spaced(rankings, config.num_queries)
    if not queries:
        raise InputError(f"{run_dir / 'rankings.csv'} has no query with a match among its first images")
    rows = []
    for query in queries:
        ranking = rankings[rankings["query"] == query]
        gallery = [RankedImage(r.image, r.item_id, r.similarity, bool(r.is_match)) for r in ranking.itertuples()]
        item_id, is_match = ranking["query_item_id"].iloc[0], ranking["is_match"]
        rows.append(
            RankedQuery(item_id, gallery, image=query, first_match_rank=int(ranking.loc[is_match, "rank"].min()))
        )
    title = f"{config.dataset}: queries from the best to the worst"
    ranked_results_figure(config.path, load_prepared(config.dataset).image_dir, rows, title=title)
    print(f"wrote {config.path} from {run_dir.name}")


def evenly_spaced(rankings: pd.DataFrame, count: int) -> list[str]:
    """Queries from the best to the worst by the rank of their first match; none where no query has a match.

    Args:
        rankings: of `read_rankings`.
        count: of queries; fewer where there are fewer.
    """
    first = rankings[rankings["is_match"]].groupby("query")["rank"].min().sort_values(kind="stable")
    if first.empty:
        return []
    return first.index[np.unique(np.linspace(0, len(first) - 1, count).round().astype(int))].tolist()


def read_rankings(path: Path) -> pd.DataFrame:
    """The ranked gallery images of an evaluation's queries: a row a query and rank, with the columns of `COLUMNS`.

    Raises:
        InputError: it is missing or no such table, or an image lies outside the image root.
    """
    try:
        rankings = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, encoding="utf-8")
        rankings = rankings[list(COLUMNS)]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; --run_dir takes the folder of an evaluation") from None
    except (OSError, ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path} is no table of rankings ({shortened(error, 80)}); evaluate again") from None
    for image in {*rankings["query"], *rankings["image"]}:
        if leaves_root(image) or printable(image) != image:
            raise InputError(f"{path}: {shown(image)} is no image below the image root; evaluate again")
    return rankings


def newest_run(dataset: str) -> Path:
    """The folder of the newest evaluation of the highest stage of `dataset`.

    Raises:
        InputError: nothing was evaluated.
    """
    for stage in (3, 2, 1):
        found = sorted(RESULTS_DIR.glob(f"{dataset}_stage{stage}*/rankings.csv"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1].parent
    raise InputError(f"no evaluation of {dataset} in {RESULTS_DIR}. Make one with: bash run_all.sh --dataset {dataset}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
