"""Figures of groups of queries: where a mean hides that some kinds are found and others not."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipfh.metrics.retrieval import RetrievalFigures


class QueryGroup(NamedTuple):
    """The queries of one group that have a match in the gallery: their number, and their figures as fractions."""

    name: Any
    num_query: int
    rank1: float
    mAP: float  # noqa: N815  (the field's spelling)


def figures_by_group(groups: Sequence[Hashable], figures: RetrievalFigures) -> list[QueryGroup]:
    """The figures of each group, in the order of its first query; groups of queries without a match are left out.

    Args:
        groups: (Q,) the group of each query.
        figures: of the Q queries.

    Raises:
        ValueError: not one group a query.
    """
    groups, rank = np.asarray(groups, dtype=object), figures.first_match_rank
    if len(groups) != len(rank):
        raise ValueError(f"{len(groups)} groups for {len(rank)} queries")
    result = []
    for name in dict.fromkeys(groups[rank > 0].tolist()):
        of_group = (groups == name) & (rank > 0)
        precision = figures.average_precision[of_group]
        hits = (rank[of_group] == 1).mean()
        result.append(QueryGroup(name, int(of_group.sum()), float(hits), float(precision.mean())))
    return result
