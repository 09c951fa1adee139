"""Gradients of a loss on a batch that is larger than memory: features first, then one chunk at a time.

Shapes: N rows of a batch, n rows of a chunk, D embedding.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Tower(NamedTuple):
    """An encoder and its share of the batch."""

    encode: Callable[[Any], Tensor]  # inputs of a chunk to their features (n, D); enters autocast by itself
    chunks: Callable[[], Iterable[Any]]  # the inputs, chunk after chunk: the same ones whenever it is called


def cached_backward(
    towers: Sequence[Tower],
    objective: Callable[..., Tensor],
    *,
    modules: Sequence[nn.Module],
    device: torch.device,
) -> Tensor:
    """Add the gradients of `objective(features of each tower)` to the parameters, as its `backward` would.

    1. Every chunk is encoded without gradient. Its random state is kept: what it draws (dropout) is drawn again later.
    2. The loss on all features gives its gradients with respect to the features, and to what else it depends on.
    3. Every chunk is encoded again, and the gradients of its features go backward through it.

    The gradients are those of the whole batch, but for rounding, where an encoder treats rows independently. Batch
    normalisation does not: it normalises by the chunk. Its running statistics follow each chunk once.

    Args:
        towers: with the same parameters or other ones.
        objective: (N, D) features of each tower, in order, to a scalar. Leaves no tensor of size N behind.
        modules: all that the encoders run; their buffers are put back after the first pass.
        device: of the encoders.

    Returns:
        The loss, detached.

    Source: Gao, Zhang, Han, Callan 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    features, states = zip(*[_encode(tower, device) for tower in towers], strict=True)
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
    loss = objective(*features)
    loss.backward()
    gradients = [whole.grad for whole in features]
    del features
    for tower, gradient, tower_states in zip(towers, gradients, states, strict=True):
        if gradient is not None:  # the objective used these features
            _backward(tower, gradient, tower_states, device)
    return loss.detach()


@torch.no_grad()
def _encode(tower: Tower, device: torch.device) -> tuple[Tensor, list[list[Tensor]]]:
    """The features of all chunks (N, D), to take gradients with respect to, and the random states before each chunk."""
    parts, states = [], []
    for inputs in tower.chunks():
        states.append(_random_states(device))
        parts.append(tower.encode(inputs))
    return torch.cat(parts).requires_grad_(), states


def _backward(tower: Tower, gradient: Tensor, states: list[list[Tensor]], device: torch.device) -> None:
    """Encode each chunk once more, as the first time, and send its rows of `gradient` (N, D) backward."""
    start, chunks = 0, iter(tower.chunks())
    with _keeping_random_states(device):
        for state in states:
            _set_random_states(device, state)
            features = tower.encode(next(chunks))  # (n, D); a name for the inputs would keep them for another turn
            features.backward(gradient[start : start + len(features)])
            start += len(features)


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the generators that an encoder on `device` may draw from: the CPU's, and the device's own."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *own]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)


@contextlib.contextmanager
def _keeping_random_states(device: torch.device) -> Iterator[None]:
    """Draws after the block go on as if there had been none in it."""
    states = _random_states(device)
    try:
        yield
    finally:
        _set_random_states(device, states)
