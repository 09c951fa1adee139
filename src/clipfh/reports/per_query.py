"""`results/<run>/per_query.csv`: what an evaluation gave for each query, so that two can be compared in pairs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clipfh.core.errors import InputError, shortened
from clipfh.core.files import replace_atomically
from clipfh.metrics.retrieval import RetrievalFigures

PER_QUERY = "per_query.csv"
_TYPES = {"protocol": str, "query": str, "item_id": str, "average_precision": float, "first_match_rank": int}


def per_query_rows(
    protocol: str, queries: Sequence[str], item_ids: Sequence[str], figures: RetrievalFigures
) -> pd.DataFrame:
    """One row for each of the Q queries of a protocol: images, or prompts."""
    values = (protocol, list(queries), list(item_ids), figures.average_precision, figures.first_match_rank)
    return pd.DataFrame(dict(zip(_TYPES, values, strict=True)))


def write_per_query(run_dir: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write the rows of several protocols into the folder of an evaluation.

    A query without a match in the gallery has an empty `average_precision` and a `first_match_rank` of 0.
    """
    with replace_atomically(run_dir / PER_QUERY) as temporary:
        pd.concat(tables).to_csv(temporary, index=False, float_format="%.9f")


def read_average_precision(run_dir: Path, protocol: str) -> pd.Series | None:
    """Average precision by query, item id and, for a query that an identity has several times, its number.

    Returns:
        The series, NaN for queries without a match; None without the file, or where it has no row of the protocol.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / PER_QUERY
    try:
        table = pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values={"average_precision": [""]})
        table = table[list(_TYPES)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({shortened(error)}); remove it: gains are shown without an interval then"
        ) from error
    table = table[table["protocol"] == protocol]
    if table.empty:
        return None
    number = table.groupby(["query", "item_id"]).cumcount().rename("number")
    return table.set_index(["query", "item_id", number])["average_precision"]


def mean_average_precision_of(run_dirs: Sequence[Path], protocol: str) -> pd.Series | None:
    """The mean over evaluations, of trainings with several seeds, of each query's average precision.

    Returns:
        As `read_average_precision`, NaN where one of them lacks the query; None where one of them has no file.
    """
    found = [read_average_precision(run_dir, protocol) for run_dir in run_dirs]
    if not found or any(values is None for values in found):
        return None
    return pd.concat(found, axis=1).mean(axis=1, skipna=False)
