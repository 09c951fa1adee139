"""Exact Rank-1/5/10, mAP and mINP at In-Shop's size, beside the bare matrix product and the peers.

    python benchmarks/bench_retrieval_metrics.py [--quick]

14,218 queries x 12,612 gallery images, 512-d, 3,985 identities. The limit is the product of queries and gallery, in
numpy or in torch, whichever is faster in this run. Figures are first compared with a sort of every row.
"""

from collections.abc import Sequence

from harness import Case, available, bar, median, row, run_benchmark, run_in_turn, save_results
from retrieval_contestants import (  # noqa: F401  (the cases name them)
    FIGURES,
    every_row_sorted,
    open_metric_learning,
    ours,
    product_in_blocks,
    product_numpy,
    product_torch,
    pytorch_metric_learning,
    torchmetrics,
)

PRODUCTS = ("product_numpy", "product_torch", "product_in_blocks")


def check_figures(kinds: Sequence[str], scale: float) -> dict[str, dict[str, float]]:
    """Compare with every row sorted; a peer's figures that are not the exact ones are returned, not refused."""
    for kind in kinds:
        arguments = {"kind": kind, "scale": scale}
        cases = [Case(name, name, arguments, warmup=0) for name in ("every_row_sorted", "ours")]
        values = {name: samples[0].value for name, samples in run_in_turn(cases, rounds=1).items()}
        worst = max(abs(values["ours"][name] - values["every_row_sorted"][name]) for name in FIGURES)
        print(f"{kind}: largest difference to every row sorted {worst:.1e}")
        if worst > 1e-9:
            raise SystemExit(f"{kind}: the figures differ: {values}")
    cases = peers("even", min(scale, 0.1))
    cases.append(Case("every row sorted", "every_row_sorted", {"kind": "even", "scale": min(scale, 0.1)}, warmup=0))
    values = {name: samples[0].value for name, samples in run_in_turn(cases, rounds=1).items()}
    exact = values.pop("every row sorted")
    for name, figures in values.items():
        print(f"{name}: Rank-1 {figures['rank1']:.6f}, mAP {figures['mAP']:.6f} (exact: {exact['mAP']:.6f})")
        if abs(figures["rank1"] - exact["rank1"]) > 1e-6:
            raise SystemExit(f"{name}: Rank-1 is {figures['rank1']}, not {exact['rank1']}")
    return {name: {"mAP_minus_exact": round(value["mAP"] - exact["mAP"], 6)} for name, value in values.items()}


def peers(kind: str, scale: float) -> list[Case]:
    """The peers that are installed."""
    arguments = {"kind": kind, "scale": scale}
    cases = [
        Case("pytorch-metric-learning", "pytorch_metric_learning", arguments, warmup=0),
        Case("torchmetrics", "torchmetrics", arguments, warmup=0),
        Case("torchmetrics, similarities + 2", "torchmetrics", {**arguments, "shift": 2.0}, warmup=0),
        Case("open-metric-learning, full ranking", "open_metric_learning", {**arguments, "retrieve": 0}, "oml", 0),
        Case("open-metric-learning, top 100", "open_metric_learning", {**arguments, "retrieve": 100}, "oml", 0),
    ]
    return [case for case in cases if available(case.environment)]


def beside_the_product(kinds: Sequence[str], scale: float, *, rounds: int, threads: int) -> tuple[list, list]:
    """Rows and bars of the time."""
    cases = [Case(f"{name}, even", name, {"kind": "even", "scale": scale}) for name in PRODUCTS]
    cases += [Case(f"ours, {kind}", "ours", {"kind": kind, "scale": scale}) for kind in kinds]
    times = run_in_turn(cases, rounds=rounds, threads=threads)
    limit = min(median(times["product_numpy, even"]), median(times["product_torch, even"]))
    most, suffix = (1.35 if threads == 1 else 1.5), f"{threads} thread{'s'[: threads > 1]}"
    bars = []
    for kind in kinds:
        what, slack = f"{kind} identities, {suffix}: time over the bare product's", 1 if kind == "even" else 1.1
        bars.append(bar(what, median(times[f"ours, {kind}"]) / limit, at_most=round(most * slack, 3), unit="x"))
    return [row(f"{name}, {suffix}", samples) for name, samples in times.items()], bars


def memory_of_a_first_run(kinds: Sequence[str], scale: float) -> tuple[list, list]:
    """Rows and bars of fresh processes that rank once: no memory of an earlier run is there to be used, uncounted."""
    rows, bars = [], []
    for threads in (1, 2):
        cases = [Case(f"ours, {kind}", "ours", {"kind": kind, "scale": scale}, warmup=0) for kind in kinds]
        for name, samples in run_in_turn(cases, rounds=1, threads=threads).items():
            rows.append(row(f"{name}, {threads} thread{'s'[: threads > 1]}, first run", samples))
            if threads == 1:  # every thread has a chunk of its own
                what = f"{name}, 1 thread: memory over the features'"
                bars.append(bar(what, median(samples, "peak_mib"), at_most=40, unit="MiB"))
    return rows, bars


def growth(scale: float) -> tuple[list, list]:
    """Rows and bars of five times the queries and the gallery."""
    cases = [Case(f"ours, {n} x", "ours", {"kind": "even", "scale": n * scale}, warmup=0) for n in (1, 5)]
    times = run_in_turn(cases, rounds=1)
    small, large = times["ours, 1 x"], times["ours, 5 x"]
    what = "5 x the queries and the gallery"
    bars = [
        bar(f"{what}: time over 1 x", median(large) / median(small), at_most=26, unit="x"),
        bar(f"{what}: memory over the features'", median(large, "peak_mib"), at_most=40, unit="MiB"),
    ]
    return [row(f"{name}, 1 thread", samples) for name, samples in times.items()], bars


def main(quick: bool) -> None:
    """Check, then time: the limit, ours, ours on other inputs, the peers."""
    if quick:
        check_figures(("tied",), 0.05)
        save_results("retrieval_metrics", *beside_the_product(("even", "tied"), 0.1, rounds=1, threads=1), quick=True)
        return
    kinds = ("even", "skewed", "tied")
    differences = check_figures(kinds, 0.2)
    parts = [beside_the_product(kinds, 1.0, rounds=5, threads=threads) for threads in (1, 2)]
    parts += [memory_of_a_first_run(kinds, 1.0), growth(1.0)]
    rows, bars = ([entry for part in parts for entry in part[which]] for which in (0, 1))
    # tens of seconds each: once is enough to tell 10 from 100
    slow = [case for case in peers("even", 1.0) if case.name != "torchmetrics, similarities + 2"]
    for name, samples in run_in_turn(slow, rounds=1).items():
        rows.append(row(f"{name}, 1 thread", samples, **differences[name]))
    save_results("retrieval_metrics", rows, bars, quick=False)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
