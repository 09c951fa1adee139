from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipfh.core.errors import InputError
from clipfh.training.schedule import cosine_with_warmup


def test_hand_written_table():
    factors = [cosine_with_warmup(step, total_steps=8, warmup_steps=4, final_fraction=0.2) for step in range(10)]
    middle = 0.2 + 0.8 * 0.5
    quarter = 0.5**0.5  # cos(pi / 4)
    expected = [0.25, 0.5, 0.75, 1, 1, 0.6 + 0.4 * quarter, middle, 0.6 - 0.4 * quarter, 0.2, 0.2]
    assert factors == pytest.approx(expected)


@given(st.integers(1, 200), st.data(), st.floats(0, 1))
def test_rises_then_falls_within_its_bounds(total_steps, data, final_fraction):
    warmup_steps = data.draw(st.integers(0, total_steps - 1))
    factor = partial(
        cosine_with_warmup, total_steps=total_steps, warmup_steps=warmup_steps, final_fraction=final_fraction
    )
    factors = [factor(step) for step in range(total_steps + 2)]
    rising, falling = factors[: warmup_steps + 1], factors[warmup_steps:]
    assert factors[warmup_steps] == pytest.approx(1)
    assert factors[0] > 0
    assert all(a < b for a, b in pairwise(rising[:-1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert factors[-2:] == pytest.approx([final_fraction, final_fraction])


def test_works_with_lambda_lr():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(cosine_with_warmup, total_steps=4, warmup_steps=2))
    rates = []
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.0])
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"total_steps": 0, "warmup_steps": 0}, "at least one"),
        ({"total_steps": 5, "warmup_steps": 5}, "0 to 4 steps of warm-up"),
        ({"total_steps": 5, "warmup_steps": -1}, "warm-up"),
        ({"total_steps": 5, "warmup_steps": 1, "final_fraction": 1.5}, "final fraction"),
    ],
)
def test_impossible_schedules_say_the_way_out(wrong, message):
    with pytest.raises(InputError, match=message):
        cosine_with_warmup(0, **wrong)


def test_negative_steps_are_an_error():
    with pytest.raises(ValueError, match="from 0"):
        cosine_with_warmup(-1, total_steps=3, warmup_steps=1)
