"""What gives way where a dataset has few identities: P falls to their number, and none is held out as val."""

from dataclasses import replace

from clipfh.tables.prepared import PreparedDataset
from clipfh.training.settings import Source


def source_for(source: Source, data: PreparedDataset) -> Source:
    """The flags of a run on `data`: where it has no val identity, those of a final fit, which needs none."""
    return replace(source, final_fit=source.final_fit or data.rows("val").empty)


def lines_on_few(asked: Source, asked_p: int, source: Source, p: int) -> list[str]:
    """Lines for the log: what of the flags that were `asked` gave way."""
    lines = []
    if source.final_fit and not asked.final_fit:
        lines.append("no identity is held out as val: all epochs are trained, and the last is BEST (--final_fit)")
    if p < asked_p:
        lines.append(f"P is {p}, not {asked_p}: a batch holds all identities that there are to train on")
    return lines
