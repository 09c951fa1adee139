"""Sweeps: what is trained, which figures a recipe gets, what the table says."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from clipfh.core.cli import parse_config
from clipfh.core.errors import InputError
from clipfh.models.pretrained import FoundWeights
from clipfh.pipeline import sweep
from clipfh.pipeline.steps import Step
from clipfh.pipeline.sweep import BEGIN, END, Config, changed, measured, verdict, write_into


def rows(*figures: float, text: float | None = None) -> list[dict]:
    """The lines of a run whose val mAP was `figures`, from epoch 0 on."""
    more = {} if text is None else {"val_text_mAP": text}
    return [{"epoch": epoch, "val_mAP": mAP, "seconds": 2.0, **more} for epoch, mAP in enumerate(figures)]


def test_the_epoch_is_the_one_that_is_best_on_average():
    found = measured("a", [rows(0.9, 0.5, 0.8, 0.2), rows(0.1, 0.6, 0.4, 0.7)], ["val_mAP"], 2)
    assert found["epoch"] == 2 and found["value"] == [0.8, 0.4]  # each run's own best would be .8 and .7
    assert found["figures"] == {"val_mAP": pytest.approx(0.6)}
    assert found["start"] == {"val_mAP": 0.5} and found["seconds"] == 8.0  # never an epoch to choose


def test_of_runs_that_ended_early_the_common_epochs_count():
    assert measured("a", [rows(0, 0.1, 0.2, 0.9), rows(0, 0.3, 0.2)], ["val_mAP"], 2)["epoch"] == 1


def test_a_folds_figure_is_the_mean_of_its_seeds():
    of_seed_0, of_seed_1 = [rows(0, 0.5), rows(0, 0.2)], [rows(0, 0.7), rows(0, 0.1)]  # two folds each
    found = measured("a", [*of_seed_0, *of_seed_1], ["val_mAP"], 2)
    assert found["value"] == [pytest.approx(0.6), pytest.approx(0.15)]


def test_it_is_judged_by_the_mean_of_the_figures_that_there_are():
    both = ["val_mAP", "val_text_mAP"]
    assert measured("a", [rows(0, 0.5, text=0.3)] * 2, both, 2)["value"] == [pytest.approx(0.4)] * 2
    assert measured("a", [rows(0, 0.5)] * 2, both, 2)["value"] == [0.5] * 2


def recipe(name: str, *values: float) -> dict:
    return {"name": name, "value": list(values)}


def test_the_verdict_needs_more_than_chance():
    default = recipe("default", 0.5, 0.6, 0.7)
    clear = recipe("clear", 0.52, 0.63, 0.72)
    noisy = recipe("noisy", 0.9, 0.5, 0.6)
    mean, error = sweep.difference(clear, default)
    assert mean == pytest.approx(0.07 / 3)
    assert error == pytest.approx(statistics.stdev([0.02, 0.03, 0.02]) / 3**0.5)
    assert "val prefers clear: +2.3 ± 0.3" in verdict([default, clear])  # 7 standard errors
    assert "above 4.3 standard errors" in verdict([default, clear])  # t of 2 degrees of freedom, 2.5%
    others = [recipe(name, 0.1, 0.1, 0.1) for name in "abc"]
    assert "not the 8.9 standard errors" in verdict([default, clear, *others])  # the same, 2.5% / 4
    assert "noisy is highest" in verdict([default, noisy]) and "own stays" in verdict([default, noisy])
    assert "prefers the stage's own" in verdict([default, recipe("low", 0.1, 0.1, 0.1)])


def test_a_recipe_that_is_higher_by_chance_is_not_in_the_way_of_one_that_is_above_it():
    default = recipe("default", 0.5, 0.6, 0.7)
    lucky, steady = recipe("lucky", 0.6, 0.58, 0.74), recipe("steady", 0.52, 0.6205, 0.7195)
    assert "val prefers steady: +2.0 ± 0.0" in verdict([default, lucky, steady])
    assert "lucky is highest" in verdict([default, lucky])


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_of_equal_recipes_val_rarely_prefers_another(num_seeds):
    random = np.random.default_rng(0)
    of_fold = random.normal(size=(1000, 5, 1, 3))  # how well a recipe suits a fold, whatever the seed
    drawn = 0.5 + 0.01 * (of_fold + 0.5 * random.normal(size=(1000, 5, num_seeds, 3)))

    def told(recipes: np.ndarray) -> str:
        runs = [[rows(0, value) for value in recipe.flat] for recipe in recipes]  # all folds of a seed, then the next
        named = zip("dabce", runs, strict=True)
        return verdict([measured(name, its, ["val_mAP"], num_folds=3) for name, its in named])

    preferred = sum(" above " in told(recipes) for recipes in drawn)
    assert 0 < preferred < 40  # at most 25 are expected; two standard errors let about 210 through


def test_it_trains_each_recipe_in_each_fold(tmp_path, monkeypatch, capsys):
    taken: list[Step] = []

    def run_step(step: Step) -> int:
        taken.append(step)
        run = Path(step.command[step.command.index("--save_path") + 1]) / "run"
        run.mkdir(parents=True, exist_ok=True)
        better = 0.1 if "better.yaml" in str(step.command) else 0.0
        lines = rows(0.1, 0.2 + better, 0.3 + better + len(taken) / 1000)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        run.with_name("run_BEST.pth").write_text("weights")
        run.with_name("run_LAST.pth").write_text("more weights")
        return 0

    monkeypatch.setattr(sweep, "run_step", run_step)
    monkeypatch.setattr(sweep, "recorded", lambda log, pattern: [str(path) for path in log.parent.glob(pattern)])
    monkeypatch.setattr(sweep, "end_on_signals", lambda: None)
    monkeypatch.setattr(sweep, "first_weights", lambda config: [])
    monkeypatch.setattr(sweep, "require_readable", lambda config, recipes, stage: None)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("better.yaml").write_text("lr: 0.1   # a reason\nloss: supcon  # another\n")
    flags = ("--dataset", "shop", "--recipes", "better.yaml", "--val_folds", "2", "--flags", "--epochs 2")
    sweep.main(parse_config(Config, None, [*flags, "--stage", "2", "--seeds", "0,3"]))
    commands = [" ".join(step.command) for step in taken]
    assert len(commands) == 8 and all("--wise_ft 0" in command for command in commands)
    assert all(command.endswith("--epochs 2") for command in commands)
    assert ["better.yaml" in command for command in commands] == [False, True] * 4
    for command, fold, seed in zip(commands[::2], (0, 1, 0, 1), (0, 0, 3, 3), strict=True):
        assert f"--val_fold {fold}/2 --seed {seed} " in command
    folder = tmp_path / "results" / "sweeps" / "shop_small-clip_stage2"
    assert not list(folder.glob("*/*_LAST.pth")) and len(list(folder.glob("*/*_BEST.pth"))) == 8
    said, written = capsys.readouterr().out, (folder / "table.md").read_text()
    assert "| better | `lr: 0.1`, `loss: supcon` |" in written and "val prefers better" in written
    assert "| *start* |  | 10.0 |" in written and written in said
    table = json.loads((folder / "table.json").read_text())["recipes"]
    assert [row["name"] for row in table] == ["default", "better"] and table[1]["epoch"] == 2

    taken.clear()
    sweep.main(parse_config(Config, None, ["--stage", "3", *flags]))
    starts = [command for command in (" ".join(step.command) for step in taken) if "stage3" in command]
    assert len(starts) == 4 and all("--init_ckpt" in command and "default_fold" in command for command in starts)

    taken.clear()
    Path("words.yaml").write_text("loss: i2t\n")
    sweep.main(parse_config(Config, None, ["--stage", "3", "--start_recipe", "words.yaml", *flags]))
    commands = [" ".join(step.command) for step in taken]
    starts = [command for command in commands if "stage3" in command]
    assert len(commands) - len(starts) == 2 and all("words.yaml" in command for command in set(commands) - set(starts))
    assert len(starts) == 4 and all("/words_fold" in start and "_from_words_fold" in start for start in starts)
    assert "from stage 2 with `loss: i2t`" in capsys.readouterr().out
    folder = tmp_path / "results" / "sweeps" / "shop_small-clip_stage3"
    assert "from stage 2" in (folder / "table_from_words.md").read_text()
    assert "from stage 2" not in (folder / "table.md").read_text()


TRAINS = """
import sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--save_path") + 1])
(folder / "run").mkdir(parents=True, exist_ok=True)
for path in (folder / "run" / "metrics.jsonl", folder / "run_BEST.pth"):
    path.write_text("made")
with open("runs.txt", "a") as runs:
    runs.write("run ")
"""


def test_a_finished_run_is_run_again_with_other_first_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "stage_dir", lambda stage: tmp_path / f"stage{stage}")
    monkeypatch.chdir(tmp_path)
    for stage, script in sweep.SCRIPTS.items():
        (tmp_path / f"stage{stage}").mkdir()
        (tmp_path / f"stage{stage}" / script).write_text(TRAINS)
    weights = tmp_path / "small.pth"
    monkeypatch.setattr(sweep, "prepare_weights", lambda *_: weights.exists() or weights.write_text("one"))
    monkeypatch.setattr(sweep, "find_weights", lambda *_: FoundWeights(str(weights), weights, {}, {}))

    def num_runs(stage: int, *start: str) -> int:
        sweep.train(Config(stage=stage, dataset="shop"), stage, sweep.Recipe("default"), 0, 0, start)
        return len(Path("runs.txt").read_text().split())

    assert [num_runs(2), num_runs(2)] == [1, 1]
    start = ("--init_ckpt", "stage2_BEST.pth")
    assert [num_runs(3, *start), num_runs(3, *start)] == [2, 2]
    weights.write_text("made again")
    assert [num_runs(2), num_runs(2), num_runs(3, *start)] == [3, 3, 3]


def test_default_is_what_run_all_trains(tmp_path):
    mine = sweep.Recipe("mine", tmp_path / "mine.yaml")
    garments, products = Config(dataset="synthetic"), Config(dataset="grocery")
    words = "model/stage2_img_encoder_finetune/config/words.yaml"
    assert sweep.over(garments, 2, sweep.Recipe("default")) == ["--config", words]
    assert sweep.over(garments, 2, mine) == ["--config", words, str(mine.file)]
    assert sweep.over(garments, 3, sweep.Recipe("default")) == sweep.over(products, 2, sweep.Recipe("default")) == []
    hands = sweep.over(Config(dataset="hands11k", model="ViT-B/16"), 2, sweep.Recipe("default"))
    assert hands == ["--config", "model/stage2_img_encoder_finetune/config/hands.yaml"]


def test_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_text("weights")
    assert sweep.start_of(Config(pretrained="w.pt")) == str(tmp_path / "w.pt")
    assert sweep.start_of(Config(pretrained="openai")) == "openai" and sweep.start_of(Config()) is None
    monkeypatch.setattr(sweep, "of_stage4", lambda model: f"stage 4's newest {model}")
    assert sweep.start_of(Config(pretrained="stage4", model="RN50")) == "stage 4's newest RN50"


def test_weights_of_a_tag_are_no_file():
    assert sweep.first_weights(Config(model="ViT-B/16", pretrained="openai")) == []


def test_what_stage_3_starts_from(tmp_path):
    with pytest.raises(InputError, match="--start_recipe"):
        sweep.recipe_of_stage2(Config(stage=3, start_recipe=str(tmp_path / "none.yaml")))
    for name in ("words", "default"):
        (tmp_path / f"{name}.yaml").write_text("loss: i2t\n")
    with pytest.raises(InputError, match="another name"):
        sweep.recipe_of_stage2(Config(stage=3, start_recipe=str(tmp_path / "default.yaml")))
    with pytest.raises(InputError, match="stage 2 starts from --pretrained"):
        sweep.recipe_of_stage2(Config(stage=2, start_recipe=str(tmp_path / "words.yaml")))


@pytest.mark.parametrize(
    ("recipes", "says"),
    [("none.yaml", "does not exist"), ("a.yaml,other/a.yaml", "called a"), ("default.yaml", "called default")],
)
def test_impossible_recipes(tmp_path, monkeypatch, recipes, says):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    for name in ("a.yaml", "other/a.yaml", "default.yaml"):
        Path(name).write_text("lr: 1\n")
    with pytest.raises(InputError, match=says):
        sweep.recipes_of(Config(recipes=recipes))


@pytest.mark.parametrize(
    ("recipe", "flags", "says"),
    [
        ("lr: 1e-4\nepoch: 3\n", "", "b.yaml: unknown key epoch"),
        ("lr: -1\n", "", "b.yaml: lr"),
        ("lr: 1e-4\n", "--epochs many", "--epochs"),
    ],
)
def test_a_recipe_that_no_training_can_read_is_told_before_the_first(tmp_path, monkeypatch, capfd, recipe, flags, says):
    monkeypatch.setattr(sweep, "run_step", lambda step: pytest.fail("a training began"))
    monkeypatch.setattr(sweep, "end_on_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text(recipe)
    with pytest.raises(SystemExit) as ended:
        sweep.main(Config(recipes=str(tmp_path / "b.yaml"), flags=flags))
    assert ended.value.code == 2 and says in capfd.readouterr().err


def test_every_ablation_of_the_stages_is_a_recipe():
    for stage in sweep.SCRIPTS:
        recipes = sweep.recipes_of(Config(stage=stage))
        assert recipes[0].name == "default"
        assert all(changed(recipe.file) for recipe in recipes[1:])


def test_the_table_goes_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(readme, "new\n")
    assert readme.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    readme.write_text("no markers\n")
    with pytest.raises(InputError, match="has no lines"):
        write_into(readme, "new\n")
