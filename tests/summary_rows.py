"""Rows of `results/summary.csv`."""


def make_row(**changes):
    row = dict.fromkeys(("rank1", "rank5", "rank10", "mAP", "mINP"), 0.5)
    row |= {"time": "2026-03-01T09:30:00Z", "dataset": "synthetic", "data_digest": "5a", "model": "tiny-vit"}
    row |= {"stage": 2, "variant": "", "seed": None, "recipe": "", "run": ""}
    row |= {
        "checkpoint": "run_BEST.pth",
        "protocol": "official",
        "split": None,
        "detail": "",
        "num_query": 9,
        "num_gallery": 20,
    }
    return row | {"seconds": 1.25} | changes


def random_rows(values, **changes):
    return [make_row(protocol="random", split=i, mAP=value, **changes) for i, value in enumerate(values)]
