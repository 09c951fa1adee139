"""One process, and an environment that claims others; several at work: tests/scripts/test_processes.py."""

import pytest
import torch
from torch import nn

from clipfh.core import processes
from clipfh.core.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("rank", "world_size"), [("abc", "1"), ("0", ""), ("1.5", "2"), ("-1", "1"), ("1", "1"), ("9" * 5000, "1")]
)
def test_environment_variables_that_are_no_ranks(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(InputError, match="RANK") as refused:
        processes.join(CPU)
    assert len(str(refused.value)) < 300 or rank.isdigit()


def test_devices_that_several_cannot_use(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one GPU for 2 processes"):
        processes.join(torch.device("cuda:0"))
    with pytest.raises(InputError, match="mps"):
        processes.join(torch.device("mps"))
    with pytest.raises(InputError, match="torchrun"):  # nobody to meet: MASTER_ADDR is missing
        processes.join(CPU)


def test_the_end_of_another_process_is_told_and_an_own_failure_stays_what_it_is():
    with pytest.raises(InputError, match="another process of this run has ended"), processes._others():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3254")
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"), processes._others():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_one_process_has_all_rows_and_changes_nothing():
    features = torch.rand(5, 3, requires_grad=True)
    assert range(5)[processes.own_rows(5)] == range(5)
    assert processes.gather_rows(features, 5) is features
    layer = nn.Linear(3, 1)
    layer(features).sum().backward()
    before = layer.weight.grad.clone()
    processes.average_gradients(layer.parameters())
    processes.same_everywhere([layer])
    processes.wait_for_all()
    assert torch.equal(layer.weight.grad, before)
    assert processes.by_first(max, 3, 5) == 5 and processes.says_it_first("this")


@pytest.mark.parametrize(("count", "world_size"), [(8, 2), (7, 2), (7, 4), (4, 4), (3, 4), (1, 3)])
def test_rows_are_shared_without_overlap_or_loss(monkeypatch, count, world_size):
    monkeypatch.setattr(processes, "world_size", lambda: world_size)
    sizes, rows = processes._sizes(count), []
    for number in range(world_size):
        monkeypatch.setattr(processes, "rank", lambda number=number: number)
        own = range(count)[processes.own_rows(count)]
        assert len(own) == max(sizes[number], 1)
        rows += own[: sizes[number]]
    assert rows == list(range(count)) and max(sizes) - min(sizes) <= 1
