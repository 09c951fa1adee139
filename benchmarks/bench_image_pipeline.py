"""From photo files to a model's input: open_clip's evaluation transform against ours, one thread, CPU time.

Photographs of 750 x 1101 pixels are made, decoded, reduced to 224 x 224 and normalised: by open_clip's transform, by
ours with exact pixels, by ours with `fast_decode`, and read from the cache of decoded pixels in random order, as in
second and later epochs. Before that, the pixels are compared.

    python benchmarks/bench_image_pipeline.py [--quick]
"""

import tempfile
from pathlib import Path

from harness import Case, bar, median, row, run_benchmark, run_in_turn, save_results

IMAGE_SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH_SIZE = 32
EPOCHS = 20  # of the loader, in one run: an epoch takes milliseconds


def make_photo(path, seed, width=750, height=1101):
    """Smooth shades and shapes with soft edges, texture, and mild noise, as a JPEG of quality 90."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    generator = np.random.default_rng(seed)
    shades = generator.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    photo = Image.fromarray(shades).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    for _ in range(12):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        rx, ry = generator.uniform(20, width / 3), generator.uniform(20, height / 4)
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=tuple(generator.integers(0, 256, 3).tolist()))
    photo = photo.filter(ImageFilter.GaussianBlur(1.5))
    texture = Image.fromarray(generator.normal(0, 6, (height // 3, width // 3)).astype(np.float32))
    texture = np.asarray(texture.resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.asarray(photo) + texture[..., None] + generator.normal(0, 2, (height, width, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def prepare_open_clip(folder):
    """File by file through open_clip's transform."""
    from PIL import Image

    from clipfh.models.clip import open_clip

    transform = open_clip.image_transform(IMAGE_SIZE, is_train=False, mean=MEAN, std=STD, interpolation="bicubic")
    files = sorted(Path(folder).glob("*.jpg"))

    def run():
        for file in files:
            with Image.open(file) as photo:
                transform(photo)

    return run


def prepare_ours(folder, fast_decode):
    """File by file through ours."""
    from clipfh.core.freed_memory import keep_freed_memory
    from clipfh.images.transforms import decode, to_input

    keep_freed_memory()  # as the cache does before it decodes

    files = sorted(Path(folder).glob("*.jpg"))

    def run():
        for file in files:
            to_input(decode(file, IMAGE_SIZE, fast_decode=fast_decode)[None], MEAN, STD, "cpu")

    return run


def prepare_cache(folder):
    """Batches in random order from the cache, which the warm-up of a first process has made."""
    import numpy as np

    from clipfh.images.pixels import load_pixels
    from clipfh.images.transforms import to_input

    files = [file.name for file in sorted(Path(folder).glob("*.jpg"))]
    pixels = load_pixels(Path(folder), files, IMAGE_SIZE, Path(folder) / "cache")
    orders = [np.random.default_rng(epoch).permutation(len(files)) for epoch in range(EPOCHS)]

    def run():
        for order in orders:
            for start in range(0, len(order), BATCH_SIZE):
                to_input(pixels.array[order[start : start + BATCH_SIZE]], MEAN, STD, "cpu")

    return run


def prepare_differences(folder):
    """Grey levels off open_clip's transform: the largest of exact decoding, the mean of fast decoding."""
    import numpy as np
    from PIL import Image

    from clipfh.images.transforms import decode
    from clipfh.models.clip import open_clip

    transform = open_clip.image_transform(
        IMAGE_SIZE, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"
    )

    def run():
        largest, mean = [], []
        for file in sorted(Path(folder).glob("*.jpg")):
            with Image.open(file) as photo:
                expected = transform(photo).permute(1, 2, 0).mul(255).round().numpy()
            largest.append(float(np.abs(decode(file, IMAGE_SIZE) - expected).max()))
            mean.append(float(np.abs(decode(file, IMAGE_SIZE, fast_decode=True) - expected).mean()))
        return {"largest_exact": max(largest), "mean_fast": sum(mean) / len(mean), "worst_mean_fast": max(mean)}

    return run


def main(quick: bool) -> None:
    """Compare, then time."""
    num_images = 12 if quick else 64
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_images):
            make_photo(Path(folder) / f"{number:03}.jpg", seed=number)
        files = {"folder": folder}
        times = {"warmup": 2, "repeats": 3}  # memory takes its final arrangement in the first runs
        compared = run_in_turn([Case("differences", "prepare_differences", files, warmup=0)], rounds=1)
        differences = compared["differences"][0].value
        if differences["largest_exact"] > 1 or differences["mean_fast"] >= 1:
            raise RuntimeError(f"the pixels are not those of open_clip's transform: {differences}")
        cases = [
            Case("open_clip's transform", "prepare_open_clip", files, **times),
            Case("ours, exact pixels", "prepare_ours", {**files, "fast_decode": False}, **times),
            Case("ours, fast_decode", "prepare_ours", {**files, "fast_decode": True}, **times),
            Case("ours, from the cache", "prepare_cache", files, **times),
        ]
        samples = run_in_turn(cases, rounds=1 if quick else 5)
    images = {case.name: num_images * (EPOCHS if case.prepare == "prepare_cache" else 1) for case in cases}
    rate = {name: images[name] / median(measured, "cpu_seconds") for name, measured in samples.items()}
    rows = [
        row(name, measured, images=images[name], images_per_cpu_second=round(rate[name], 1))
        for name, measured in samples.items()
    ]
    rows[1]["largest_difference"] = differences["largest_exact"]
    rows[2]["mean_difference"] = round(differences["mean_fast"], 3)
    reference, exact, fast, cache = rate.values()
    bars = [
        bar("largest difference of exact pixels to open_clip's", differences["largest_exact"], at_most=1, unit="level"),
        bar("images per CPU s, exact pixels, against open_clip's", exact / reference, at_least=1.4, unit="x"),
        bar("mean difference of fast_decode", differences["mean_fast"], at_most=1, unit="level"),
        bar("images per CPU s, fast_decode, against open_clip's", fast / reference, at_least=2.5, unit="x"),
        bar("images per CPU s, cache against exact decoding", cache / exact, at_least=20, unit="x"),
        bar("images per CPU s, cache against open_clip's", cache / reference, at_least=20, unit="x"),
    ]
    save_results("image_pipeline", rows, bars, quick=quick)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
