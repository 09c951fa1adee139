from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clipfh.core.cli import option, section
from clipfh.training.recipe import recipe_digest
from clipfh.training.settings import Run, Source

ORIGIN = ["data", "prompts", "weights"]


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Source = section()
    lr: float = option(1e-4, "peak")
    init_ckpt: str | None = option(None, "start")
    run: Run = section()


CONFIG = Config(source=Source(dataset="shop"), run=Run())


def test_seeds_and_places_are_no_part_of_a_recipe():
    recipe = recipe_digest(CONFIG, ORIGIN)
    assert len(recipe) == 12
    for run in (
        Run(seed=7),
        Run(device="cpu"),
        Run(save_path=Path("x"), log_dir=Path("y")),
        Run(resume_ckpt=Path("z")),
    ):
        assert recipe_digest(replace(CONFIG, run=run), ORIGIN) == recipe
    moved = replace(CONFIG, source=replace(CONFIG.source, image_dir=Path("elsewhere")), init_ckpt="stage2_BEST.pth")
    assert recipe_digest(moved, ORIGIN) == recipe


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, lr=2e-4),
        replace(CONFIG, run=Run(smoke=True)),
        replace(CONFIG, run=Run(precision="float32")),
        replace(CONFIG, source=replace(CONFIG.source, final_fit=True)),
    ],
)
def test_what_decides_what_is_learned_is_part_of_it(config):
    assert recipe_digest(config, ORIGIN) != recipe_digest(CONFIG, ORIGIN)


@pytest.mark.parametrize("place", range(3))
def test_other_data_prompts_or_weights_are_another_recipe(place):
    other = ["other" if i == place else name for i, name in enumerate(ORIGIN)]
    assert recipe_digest(CONFIG, other) != recipe_digest(CONFIG, ORIGIN)
