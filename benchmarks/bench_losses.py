"""Batch-hard triplet and SupCon, forward and backward, beside pytorch-metric-learning's, on one thread.

Unit features of 512 dimensions, B = 256 and 4096 images, 4 an identity. Loss and gradients of both must agree before
anything is timed: in float32 and float64, to 1e-6 of the loss and of the gradient's largest entry. A run makes a copy
of the features, the loss and its gradient. The peer's triplet loss is set up for the very same loss: distances of the
features as given, and the mean over all anchors. InfoNCE, which the peer does not have in this form, is timed alone.

    python benchmarks/bench_losses.py [--quick]
"""

from collections.abc import Callable
from typing import Any

from harness import Case, bar, median, row, run_benchmark, run_in_turn, save_results

DIM = 512
IMAGES_PER_IDENTITY = 4
TEMPERATURE = 0.07
MARGIN = 0.3
TOLERANCE = 1e-6
OURS, PEER = "clipfh", "pytorch-metric-learning"
TITLES = {"triplet": "batch-hard triplet", "supcon": "SupCon", "infonce": "InfoNCE"}


def make_inputs(batch: int, dtype: str = "float32") -> tuple[Any, Any]:
    """Unit features (B, D) that gather around their identity's center, and labels (B,), in no order."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(batch)[torch.randperm(batch, generator=generator)] // IMAGES_PER_IDENTITY
    centers = torch.randn(batch // IMAGES_PER_IDENTITY, DIM, generator=generator)
    features = centers[labels] + 2 * torch.randn(batch, DIM, generator=generator)
    return torch.nn.functional.normalize(features, dim=1).to(getattr(torch, dtype)), labels


def make_loss(loss: str, library: str, labels: Any) -> Callable[[Any], Any]:
    """The loss as a function of features alone."""
    if library == OURS:
        from clipfh.losses import batch_hard_triplet_loss, info_nce_loss, supcon_loss

        return {
            "triplet": lambda features: batch_hard_triplet_loss(features, labels, MARGIN),
            "supcon": lambda features: supcon_loss(features, labels, 1 / TEMPERATURE),
            "infonce": lambda features: info_nce_loss(features, features.detach().roll(1, 0), 1 / TEMPERATURE),
        }[loss]
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    if loss == "supcon":
        supcon = SupConLoss(temperature=TEMPERATURE)
        return lambda features: supcon(features, labels)
    distance = LpDistance(normalize_embeddings=False)
    miner = BatchHardMiner(distance=distance)
    triplet = TripletMarginLoss(margin=MARGIN, distance=distance, reducer=MeanReducer())
    return lambda features: triplet(features, labels, miner(features, labels))


def prepare(loss: str, library: str, batch: int) -> Callable[[], float]:
    """One loss of one library, forward and backward, from a copy of the features."""

    def make_step(batch: int) -> Callable[[], float]:
        features, labels = make_inputs(batch)
        loss_of = make_loss(loss, library, labels)

        def step() -> float:
            leaf = features.clone().requires_grad_()
            value = loss_of(leaf)
            value.backward()
            return value.item()

        return step

    make_step(64)()  # loads what the libraries load late, so that it does not count as memory of the loss
    return make_step(batch)


def prepare_comparison(loss: str, batch: int, dtype: str) -> Callable[[], tuple[float, float]]:
    """How far ours is from the peer: of the loss, and the largest of the gradient's entry, both relative."""
    import torch

    features, labels = make_inputs(batch, dtype)

    def compare() -> tuple[float, float]:
        results = []
        for library in (OURS, PEER):
            leaf = features.clone().requires_grad_()
            # the peer's SupCon normalises by itself, which is part of its gradient
            unit = torch.nn.functional.normalize(leaf, dim=1) if (loss, library) == ("supcon", OURS) else leaf
            value = make_loss(loss, library, labels)(unit)
            value.backward()
            results.append((value.item(), leaf.grad))
        (ours, our_gradient), (peer, peer_gradient) = results
        largest = peer_gradient.abs().max()
        return abs(ours / peer - 1), ((our_gradient - peer_gradient).abs().max() / largest).item()

    return compare


def check_agreement(batches: list[int]) -> float:
    """The largest relative difference of a loss or gradient; all are printed.

    Raises:
        SystemExit: one is larger than the tolerance.
    """
    cases = [
        Case(
            f"{loss} B={batch} {dtype}", "prepare_comparison", {"loss": loss, "batch": batch, "dtype": dtype}, warmup=0
        )
        for loss in ("triplet", "supcon")
        for batch in batches
        for dtype in ("float32", "float64")
    ]
    largest = 0.0
    for name, samples in run_in_turn(cases, rounds=1).items():
        of_loss, of_gradient = samples[0].value
        print(f"{name}: relative difference of the loss {of_loss:.1e}, of the gradient {of_gradient:.1e}")
        largest = max(largest, of_loss, of_gradient)
    if not largest <= TOLERANCE:
        raise SystemExit(f"the losses differ by {largest:.1e}, more than {TOLERANCE:.0e}: see above")
    return largest


def main(quick: bool) -> None:
    """Check that the libraries agree, time them in turn, keep rows and bars."""
    batches = [256] if quick else [256, 4096]
    difference = check_agreement(batches)
    contestants = [
        (loss, library, batch)
        for batch in batches
        for loss, library in [*((a, b) for a in ("triplet", "supcon") for b in (OURS, PEER)), ("infonce", OURS)]
    ]
    cases = [
        Case(
            f"{TITLES[loss]}, {library}, B={batch}",
            "prepare",
            {"loss": loss, "library": library, "batch": batch},
            # a large batch is not warmed up: memory that a first run leaves to the next would not count as its peak
            **({"warmup": 20, "repeats": 50} if batch == 256 else {"warmup": 0, "repeats": 3}),
        )
        for loss, library, batch in contestants
    ]
    samples = run_in_turn(cases, rounds=1 if quick else 5)
    rows = [
        row(case.name, samples[case.name], loss=loss, library=library, batch=batch)
        for case, (loss, library, batch) in zip(cases, contestants, strict=True)
    ]

    def ratio(loss: str, batch: int, figure: str = "seconds") -> float:
        """The peer's figure over ours."""
        ours, peer = (samples[f"{TITLES[loss]}, {library}, B={batch}"] for library in (OURS, PEER))
        return median(peer, figure) / median(ours, figure)

    limits = {("triplet", 256): 2.0, ("triplet", 4096): 3.0, ("supcon", 256): 1.4, ("supcon", 4096): 1.5}
    bars = [
        bar(f"{TITLES[loss]}, B={batch}: times as fast as {PEER}", ratio(loss, batch), at_least=limit, unit="x")
        for (loss, batch), limit in limits.items()
        if batch in batches
    ]
    if not quick:
        memory = ratio("supcon", 4096, "peak_mib")
        bars.append(bar(f"SupCon, B=4096: {PEER}'s peak memory over ours", memory, at_least=2.0, unit="x"))
    bars.append(bar("loss and gradients: largest relative difference", difference, at_most=TOLERANCE))
    save_results("losses", rows, bars, quick=quick)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
