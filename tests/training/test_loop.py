"""The loop of stages 2 to 4: a run that was stopped goes on as if it had not."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from clipfh.core.errors import InputError
from clipfh.core.run import seed_everything
from clipfh.core.run_log import RunLog
from clipfh.models.checkpoint import read_checkpoint
from clipfh.training.loop import Loop
from clipfh.training.runs import Place, TrainingRun
from clipfh.training.sampler import PKSampler
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.settings import Optimisation
from clipfh.training.state import Validation, decay_groups

LABELS = [number % 6 for number in range(30)]
STOP_AFTER = 2
SETTINGS = Optimisation(
    epochs=5,
    weight_decay=0.1,
    warmup_fraction=0.2,
    clip_grad=1.0,
    accumulate=1,
    ema_decay=0.5,
    keep_start=0.0,
    patience=0,
)


class Model(nn.Sequential):
    def __init__(self, classes: int = 6) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, classes))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logit_scale * super().forward(images)

    def __iter__(self):
        return iter(module for module in self._modules.values())


@dataclass(frozen=True)
class Batch:
    indices: list[int]


def make_loop(
    seed: int, *, extra=(), sampler_seed: int = 7, classes: int = 6, settings=SETTINGS, groups=None, **more
) -> Loop:
    seed_everything(seed)
    model = Model(classes)
    modules = {"model": model, **{name: nn.Linear(2, 2) for name in extra}}
    groups = groups or decay_groups(model, 0.05, settings.weight_decay)
    sampler = PKSampler(LABELS, 3, 2, seed=sampler_seed)
    return Loop(model, groups, modules, sampler, [str(i) for i in range(30)], settings, **more)


def make_run(folder, **config) -> TrainingRun:
    folder.mkdir(exist_ok=True)
    place = Place(2, torch.device("cpu"), 0, folder, folder)
    return TrainingRun("run", place, {"stage": 2}, {}, RunLog(folder / "run", make_flags(), **config))


def make_flags():
    @dataclass(frozen=True)
    class Flags:
        seed: int = 0

    return Flags()


def fit(loop: Loop, run: TrainingRun, *, values=(0.1, 0.4, 0.3, 0.2, 0.1), stop_after: int | None = None) -> None:
    images = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))

    def batches(epoch: int):
        if stop_after and epoch > stop_after:
            raise KeyboardInterrupt
        return (Batch(indices) for indices in loop.sampler)

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        assert loop.model.training
        noisy = images[batch.indices] + 0.1 * torch.randn(len(batch.indices), 6)  # draws from the global generator
        loss = nn.functional.cross_entropy(loop.model(noisy), torch.tensor(LABELS)[batch.indices])
        (loss / loop.settings.accumulate).backward()
        return {"id": loss.detach()}

    def validate() -> Validation:
        value = values[max(loop.epoch - 1, 0)]
        return Validation({"val_mAP": value, "val_mean_mAP": 1 - value}, f"val mAP {100 * value:.1f}")

    loop.model.eval()  # whatever the mode that it comes in
    loop.fit(run, batches, step, validate if values else None)


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    whole, run = make_loop(0), make_run(tmp_path / "whole")
    fit(whole, run)
    part = make_loop(0)
    with pytest.raises(KeyboardInterrupt):
        fit(part, make_run(tmp_path / "part"), stop_after=STOP_AFTER)
    state = read_checkpoint(tmp_path / "part" / "run_LAST.pth")["training"]
    resumed = make_loop(99)  # other weights, other random numbers
    torch.rand(5)
    resumed.load_state(state)
    assert resumed.epoch == STOP_AFTER
    fit(resumed, make_run(tmp_path / "part", last_row=state["row"]))
    assert (resumed.epoch, resumed.step) == (whole.epoch, whole.step) == (5, 5 * len(whole.sampler))
    for module in ("model", "average"):
        theirs = getattr(whole, module).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(resumed, module).state_dict().items())
    assert resumed.best == whole.best and (whole.best.epoch, whole.best.value) == (2, 0.4)
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/run/metrics.jsonl"))
    ]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == [0, 1, 2, 3, 4, 5]
    assert rows[0][0] == {"epoch": 0, "val_mAP": 0.1, "val_mean_mAP": 0.9}  # what training began with
    assert read_checkpoint(tmp_path / "part" / "run_BEST.pth")["epoch"] == 2


def test_best_is_chosen_by_the_figure_that_the_stage_names(tmp_path, capsys):
    loop = make_loop(0, chosen_by="val_mean_mAP")
    fit(loop, make_run(tmp_path), values=(0.5, 0.6, 0.2, 0.3, 0.4))
    best = read_checkpoint(tmp_path / "run_BEST.pth")
    assert (best["epoch"], best["val_mean_mAP"], best["val_mAP"]) == (3, 0.8, 0.2)
    assert "BEST: epoch 3, val mean mAP 80.0: " in capsys.readouterr().out
    state = read_checkpoint(tmp_path / "run_LAST.pth")["training"]
    with pytest.raises(InputError, match="chose its BEST by val mean mAP; now it is val mAP"):
        make_loop(0).load_state(state)


def test_what_is_averaged_may_be_made_of_what_learns(tmp_path):
    seed_everything(0)
    model, made, calls = Model(), nn.Linear(8, 6), []

    def refresh() -> None:
        calls.append(loop.step)
        with torch.no_grad():
            made.weight.copy_(2 * model[3].weight)

    settings = replace(SETTINGS, epochs=2, ema_decay=0.0)
    sampler, images = PKSampler(LABELS, 3, 2, seed=7), [str(number) for number in range(30)]
    groups, modules = decay_groups(model, 0.05, 0.1), {"model": model}
    loop = Loop(model, groups, modules, sampler, images, settings, averaged=made, refresh=refresh)
    fit(loop, make_run(tmp_path), values=())
    assert torch.equal(loop.average.module.weight, 2 * model[3].weight)
    assert read_checkpoint(tmp_path / "run_BEST.pth")["state_dict"].keys() == {"weight", "bias"}
    assert len(sampler) == 6 and calls == [0, 4, 5, 9, 11]  # the first step, every fourth, the end of each epoch


def test_it_stops_early_and_says_what_is_best(tmp_path, capsys):
    settings = Optimisation(**{**vars(SETTINGS), "patience": 2})
    loop = make_loop(0, settings=settings)
    fit(loop, make_run(tmp_path))
    said = capsys.readouterr().out
    assert loop.epoch == 4 and "no better val mAP for 2 epochs: stopped early" in said
    assert "before training  val mAP 10.0" in said and "BEST: epoch 2, val mAP 40.0: " in said
    assert (tmp_path / "run" / "training_curves.png").is_file()


def test_without_val_the_last_epoch_is_best(tmp_path, capsys):
    fit(make_loop(0), make_run(tmp_path), values=())
    assert read_checkpoint(tmp_path / "run_BEST.pth")["epoch"] == 5
    assert "BEST: the last epoch" in capsys.readouterr().out


def test_a_run_that_had_stopped_early_does_not_go_on(tmp_path, capsys):
    settings = Optimisation(**{**vars(SETTINGS), "patience": 2})
    fit(make_loop(0, settings=settings), make_run(tmp_path))
    state = read_checkpoint(tmp_path / "run_LAST.pth")["training"]
    resumed = make_loop(0, settings=settings)
    resumed.load_state(state)
    capsys.readouterr()
    fit(resumed, make_run(tmp_path, last_row=state["row"]))
    assert resumed.epoch == 4 and "stopped early" in capsys.readouterr().out


def test_gradients_of_several_batches_make_one_step_of_their_mean(tmp_path, monkeypatch):
    settings = Optimisation(**{**vars(SETTINGS), "accumulate": 4, "epochs": 1})
    loop = make_loop(0, settings=settings)
    assert len(loop.sampler) % 4, "the last step is of fewer batches"
    norms = []

    def clip(parameters, largest):
        norms.append(torch.cat([parameter.grad.flatten() for parameter in parameters]).sum())
        return torch.tensor(1.0)

    monkeypatch.setattr("clipfh.training.loop.clip_grad_norm_", clip)
    learning = list(loop.model.parameters())

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        for parameter in learning:
            parameter.grad = (0 if parameter.grad is None else parameter.grad) + torch.ones_like(parameter) / 4
        return {"id": torch.tensor(0.0)}

    loop.fit(make_run(tmp_path), lambda epoch: [Batch(indices) for indices in loop.sampler], step, None)
    count = sum(parameter.numel() for parameter in learning)
    assert loop.step == len(norms) == -(-len(loop.sampler) // 4)
    assert norms == pytest.approx([count] * len(norms), rel=1e-5)


def test_a_gradient_that_is_no_number_stops_the_run_before_the_step(tmp_path):
    loop = make_loop(0)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        for parameter in loop.model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        return {"id": torch.tensor(1.0)}

    with pytest.raises(InputError, match=r"norm of the gradient\) in epoch 1, batch 1; its images: "):
        loop.fit(make_run(tmp_path), lambda epoch: [Batch(indices) for indices in loop.sampler], step, None)
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


@pytest.mark.parametrize(("saved", "here"), [((), ("center",)), (("center",), ())])
def test_a_run_with_other_losses_is_not_resumed(saved, here):
    state = make_loop(0, extra=saved).state()
    with pytest.raises(InputError, match=r"started with other flags .*its config.json has the ones to repeat"):
        make_loop(0, extra=here).load_state(state)


def test_a_run_with_other_parameters_is_not_resumed():
    state = make_loop(0).state()
    with pytest.raises(InputError, match="started with other flags"):
        make_loop(0, classes=7).load_state(state)
    with pytest.raises(InputError, match="started with other flags"):
        make_loop(0, groups=[{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}]).load_state(state)
    with pytest.raises(InputError, match="seed"):
        make_loop(0, sampler_seed=8).load_state(state)


def test_gradients_larger_than_clip_grad_are_scaled_down_before_the_step(tmp_path):
    loop = make_loop(0, settings=replace(SETTINGS, epochs=1, clip_grad=0.01))
    norms = []

    def remember(optimizer, arguments, keywords):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    loop.optimizer.register_step_pre_hook(remember)
    fit(loop, make_run(tmp_path))
    assert len(norms) == len(loop.sampler)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


def test_the_logged_rate_is_the_peak_by_the_schedule_whatever_groups_have(tmp_path):
    seed_everything(0)
    model = Model()
    first, *others = decay_groups(model, 0.05, 0.1)
    groups = [{**first, "lr": 0.5}, *({**other, "lr": 0.005} for other in others)]  # as LoRA's, and as a scaled head's
    sampler, images = PKSampler(LABELS, 3, 2, seed=7), [str(number) for number in range(30)]
    loop = Loop(model, groups, {"model": model}, sampler, images, SETTINGS, lr=0.05)
    run, logged = make_run(tmp_path), []
    run.log.step = lambda step, values: logged.append(values["lr"])
    fit(loop, run)
    total = 5 * len(sampler)
    expected = [0.05 * cosine_with_warmup(s, total_steps=total, warmup_steps=int(0.2 * total)) for s in range(total)]
    assert logged == expected
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows[1:]] == expected[:: len(sampler)]
    assert loop.optimizer.param_groups[0]["initial_lr"] == 0.5
    named = make_loop(0, groups=decay_groups(Model(), 0.3, 0.1, name="head"))
    assert named.learning_rates().keys() == {"lr_head"}
