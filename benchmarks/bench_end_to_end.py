"""Feature extraction beside the bare forward pass, and a whole retrieval evaluation beside the straightforward one.

Extraction goes from the memory-mapped uint8 cache to unit-length features; the bare forward pass is `encode_image` on
the same batches, already normalised floats in memory. The straightforward evaluation reads JPEG files through
open_clip's transform in a DataLoader with two workers, encodes them, sorts the whole gallery for every query and reads
the figures off the sorted matches; ours runs three times: with nothing saved, with pixels saved, with features saved.

    python benchmarks/bench_end_to_end.py [--quick]
"""

import tempfile
from pathlib import Path
from typing import Any

from harness import Case, Sample, bar, median, row, run_benchmark, run_in_turn, save_results

IMAGES_PER_IDENTITY = 4  # half of them queries
JPEG_SIZE = 256  # pixels a side
BATCH_SIZE = 128


def build_clip(model: str) -> Any:
    """The model with random weights, the same in every process."""
    import torch

    from clipfh.models.clip import load_clip

    torch.manual_seed(0)
    clip = load_clip(model, "random")
    clip.model.eval()
    return clip


def random_pixels(num_images: int, image_size: int, folder: str) -> Any:
    """A memory map of random pixels, (N, S, S, 3) uint8, as the cache gives them."""
    import numpy as np

    path = Path(folder) / f"{num_images}x{image_size}.npy"
    if not path.exists():
        shape = (num_images, image_size, image_size, 3)
        np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return np.load(path, mmap_mode="r")


def bare_forward(model: str, num_images: int, batch_size: int, folder: str):
    """The image encoder alone."""
    import torch

    from clipfh.images.transforms import to_input

    clip = build_clip(model)
    pixels = random_pixels(num_images, clip.image_size, folder)
    batches = [
        to_input(pixels[start : start + batch_size], clip.mean, clip.std, "cpu")
        for start in range(0, num_images, batch_size)
    ]

    def run() -> float:
        with torch.inference_mode():
            features = [clip.model.encode_image(images) for images in batches]
        return float(torch.nn.functional.normalize(torch.cat(features), dim=1).abs().sum())

    return run


def extraction(model: str, num_images: int, batch_size: int, folder: str):
    """What an evaluation does: cached pixels to unit-length features."""
    from clipfh.features.extraction import extract_features

    clip = build_clip(model)
    pixels = random_pixels(num_images, clip.image_size, folder)

    def run() -> float:
        return float(extract_features(clip, pixels, "cpu", batch_size=batch_size, quiet=True).abs().sum())

    return run


def make_photos(folder: Path, num_identities: int) -> None:
    """JPEG files: a smooth pattern an identity, another light and noise in every photo."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir()
    for identity in range(num_identities):
        pattern = generator.integers(0, 256, (5, 5, 3))
        for number in range(IMAGES_PER_IDENTITY):
            cells = np.clip(pattern + generator.normal(0, 15, 3) + generator.normal(0, 15, (5, 5, 3)), 0, 255)
            photo = Image.fromarray(cells.astype(np.uint8)).resize((JPEG_SIZE, JPEG_SIZE), Image.Resampling.BICUBIC)
            noisy = np.clip(np.asarray(photo) + generator.normal(0, 10, (JPEG_SIZE, JPEG_SIZE, 3)), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{identity:04}_{number}.jpg", quality=90)


def listed(photos: str) -> tuple[list[str], Any, Any]:
    """The photos' names, their identities, and which of them are queries."""
    import numpy as np

    names = sorted(path.name for path in Path(photos).glob("*.jpg"))
    ids = np.array([name[:4] for name in names])
    is_query = np.array([int(name[5]) < IMAGES_PER_IDENTITY // 2 for name in names])
    return names, ids, is_query


def straightforward_evaluation(model: str, photos: str):
    """A DataLoader over JPEG files, floats through the model, a full sort of the gallery."""
    import numpy as np
    import torch
    from PIL import Image

    clip = build_clip(model)
    from open_clip.transform import image_transform  # after clipfh, which guards the import of torchvision

    clip.model.to(memory_format=torch.contiguous_format)  # as open_clip builds it
    transform = image_transform(clip.image_size, is_train=False, mean=clip.mean, std=clip.std)
    names, ids, is_query = listed(photos)

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(Path(photos) / names[index]))

    def run() -> dict[str, float]:
        loader = torch.utils.data.DataLoader(Photos(), batch_size=BATCH_SIZE, num_workers=2)
        with torch.inference_mode():
            features = np.concatenate([clip.model.encode_image(batch, normalize=True).numpy() for batch in loader])
        similarity = features[is_query] @ features[~is_query].T
        order = np.argsort(-similarity, axis=1)
        matches = ids[~is_query][order] == ids[is_query][:, None]
        precision = matches.cumsum(axis=1) / np.arange(1, matches.shape[1] + 1)
        average_precision = (precision * matches).sum(axis=1) / matches.sum(axis=1)
        return {"rank1": float(matches[:, 0].mean()), "mAP": float(average_precision.mean())}

    return run


def our_evaluation(model: str, photos: str, saved: str):
    """Ours, with nothing, `pixels`, or pixels and `features` saved by a run before."""
    import torch

    from clipfh.features.store import load_features
    from clipfh.images.pixels import load_pixels
    from clipfh.metrics.retrieval import evaluate_retrieval

    clip = build_clip(model)
    names, ids, is_query = listed(photos)
    device = torch.device("cpu")
    scratch = tempfile.TemporaryDirectory()  # lives as long as `run`

    def evaluate(pixels_folder: Path, features_folder: Path) -> dict[str, float]:
        pixels = load_pixels(Path(photos), names, clip.image_size, pixels_folder)
        features = load_features(clip, pixels, device, features_folder, batch_size=BATCH_SIZE)
        figures = evaluate_retrieval(features[is_query], features[~is_query], ids[is_query], ids[~is_query])
        return {"rank1": figures.rank1, "mAP": figures.mAP}

    kept = Path(scratch.name)
    if saved != "nothing":
        evaluate(kept, kept)

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=scratch.name) as fresh:
            return evaluate(
                Path(fresh) if saved == "nothing" else kept, kept if saved == "features" else Path(fresh) / "features"
            )

    return run


def check_agreement(photos: str, folder: str) -> None:
    """Ours and theirs give the same features and figures.

    Raises:
        RuntimeError: they do not.
    """
    arguments = {"model": "tiny-rn", "num_images": 64, "batch_size": 32, "folder": folder}
    bare, ours = bare_forward(**arguments)(), extraction(**arguments)()
    if abs(bare - ours) > 1e-4 * bare:
        raise RuntimeError(f"features differ: the sum of their sizes is {bare} and {ours}")
    theirs = straightforward_evaluation("tiny-rn", photos)()
    for saved in ("nothing", "pixels", "features"):
        agree(theirs, our_evaluation("tiny-rn", photos, saved)())


def agree(theirs: dict[str, float], ours: dict[str, float]) -> None:
    """Rank-1 and mAP within 0.002: a pixel may differ by a grey level, which moves a query or two.

    Raises:
        RuntimeError: they differ by more.
    """
    if any(abs(theirs[name] - ours[name]) > 0.002 for name in theirs):
        raise RuntimeError(f"figures differ: {theirs} and {ours}")


def time_extraction(
    arguments: dict[str, Any], *, threads: int, rounds: int, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the bare forward pass and of the extraction, which both take `arguments`, and the bar between them."""
    model, num_images = arguments["model"], arguments["num_images"]
    names = f"{model}: bare forward pass", f"{model}: extraction from the cache"
    cases = [
        Case(name, prepare, arguments, repeats=repeats)
        for name, prepare in zip(names, ("bare_forward", "extraction"), strict=True)
    ]
    bare, ours = run_in_turn(cases, rounds=rounds, threads=threads).values()
    label = f"{threads} thread{'s'[: threads > 1]}"
    rows = [
        row(f"{name}, {label}", samples, images_per_second=round(num_images / median(samples), 1))
        for name, samples in zip(names, (bare, ours), strict=True)
    ]
    what = f"{model}: throughput of extraction from the cache beside the bare forward pass's, {label}"
    return rows, bar(what, median(bare) / median(ours), at_least=0.95, unit="x")


def time_evaluation(photos: str, saved_before: tuple[str, ...], *, rounds: int) -> list[dict[str, Any]]:
    """Rows of the straightforward evaluation and of ours."""
    peer = "evaluation: JPEG files, DataLoader, full sort"
    arguments = {"model": "tiny-rn", "photos": photos}
    cases = [Case(peer, "straightforward_evaluation", arguments)]
    cases += [Case(f"evaluation: ours, {s} saved", "our_evaluation", {**arguments, "saved": s}) for s in saved_before]
    samples: dict[str, list[Sample]] = run_in_turn(cases, rounds=rounds, threads=2)
    for results in samples.values():
        agree(samples[peer][0].value, results[0].value)
    return [
        row(
            f"{name}, 2 threads",
            results,
            times_faster=round(median(samples[peer]) / median(results), 2),
            **{key: round(value, 4) for key, value in results[0].value.items()},
        )
        for name, results in samples.items()
    ]


def main(quick: bool) -> None:
    """Check, time, save."""
    shapes = [("tiny-rn", 256, BATCH_SIZE, 1)]  # model, images, batch size, runs in one process
    if not quick:
        shapes = [("tiny-rn", 1024, BATCH_SIZE, 3), ("ViT-B-32", 64, 32, 1)]
    rounds = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        make_photos(photos, 25 if quick else 500)
        check_agreement(str(photos), folder)
        rows, bars = [], []
        for threads in (1,) if quick else (1, 2):
            for model, num_images, batch_size, repeats in shapes:
                arguments = {"model": model, "num_images": num_images, "batch_size": batch_size, "folder": folder}
                timed, limit = time_extraction(arguments, threads=threads, rounds=rounds, repeats=repeats)
                rows += timed
                bars.append(limit)
        saved_before = ("nothing", "features") if quick else ("nothing", "pixels", "features")
        rows += time_evaluation(str(photos), saved_before, rounds=rounds)
    save_results("end_to_end", rows, bars, quick=quick)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
