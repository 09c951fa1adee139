"""Several processes that train one model together, as `torchrun` starts them; without it there is one.

They compute what one process computes on the same batches. A batch is planned for all: each process encodes the rows
that are its own (`own_rows`), all get the features of all (`gather_rows`) and take the same loss of them, and gradients
are averaged once an update (`average_gradients`). Losses that compare rows see the whole batch, and batches, views and
figures are the same on any number of processes, but for rounding.

Torch's own wrapper (DistributedDataParallel) averages in every backward: with chunks of a batch, or batches that are
added up, it would do so many times, and its forward has one way in where a CLIP has two.

What communicates is called by all processes in the same order, or they wait for each other. Where one ends, the others'
next call raises an InputError: at once on CPUs; GPUs wait for `PATIENCE`, unless torchrun ends them before.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfh.core.errors import InputError, shortened

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # one process decodes the photos while the others wait for it


def ranks_of_environment() -> tuple[int, int, int]:
    """This process's number, the count of all, and its number on its host, as `torchrun` sets them; else 0, 1, 0.

    Raises:
        InputError: the variables hold no such numbers.
    """
    try:
        rank, world_size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", os.environ.get("RANK", "0")))
        )
    except ValueError as error:
        raise InputError(
            f"RANK, WORLD_SIZE and LOCAL_RANK are whole numbers, as torchrun sets them ({shortened(error)})"
        ) from None
    if not 0 <= rank < world_size or local < 0:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {world_size}; unset both for a run in one process")
    return rank, world_size, local


def join(device: torch.device) -> torch.device:
    """Meet the other processes of the run, where there are any; the device that this one computes on.

    CUDA without a number is the GPU with the process's number on its host, see `claim_gpu`. Tensors on GPUs are
    exchanged by NCCL, all else by Gloo, which notices at once that a process has ended.

    Raises:
        InputError: a device that several processes cannot use, or the others cannot be reached.
    """
    rank, world_size, local = ranks_of_environment()
    if world_size == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        if device.index is not None:
            raise InputError(f"--device {device} is one GPU for {world_size} processes; give --device cuda")
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} of this host has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise InputError(f"--device {device} does not work in several processes; cuda and cpu do")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # MASTER_ADDR and its kind are missing or wrong
        raise InputError(
            f"process {rank} of {world_size} cannot reach the others ({shortened(error)}): start all with torchrun"
        ) from error
    return device


def claim_gpu() -> None:
    """Let CUDA without a number be this process's own GPU, before anything is put on the first one."""
    _, world_size, local = ranks_of_environment()
    if world_size > 1 and torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)


def leave() -> None:
    """End the exchange with the other processes, after a run that ended well; nothing where there are none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; the one with 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ---- rows of a batch


def own_rows(count: int) -> slice:
    """The rows of this process, of `count` rows of a batch.

    All have as many, or one less. Where there are more processes than rows, some have one that is another's as well,
    which `gather_rows` leaves out: an encoder need not know empty batches.
    """
    sizes = _sizes(count)
    start = sum(sizes[: rank()])
    stop = start + sizes[rank()]
    return slice(start, stop) if stop > start else slice(count - 1, count)


def gather_rows(own: Tensor, count: int) -> Tensor:
    """All `count` rows of a batch, in order, from what each process made of its `own_rows`: (n, ...) to (count, ...).

    Half precision becomes float32. The backward pass gives each process the gradient of its own rows times the number
    of processes: `average_gradients` divides by it. What all compute alike, as a temperature, has its gradient once.

    Raises:
        InputError: another process has ended.
    """
    if world_size() == 1:
        return own
    sizes = _sizes(count)
    own = own[: sizes[rank()]]
    return _GatherRows.apply(own.float() if own.dtype in (torch.float16, torch.bfloat16) else own, sizes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = own.new_zeros(max(sizes), *own.shape[1:])  # all send as many
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        with _others():
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = sum(ctx.sizes[: rank()])
        return gradient[start : start + ctx.sizes[rank()]] * len(ctx.sizes), None


def _sizes(count: int) -> list[int]:
    """How many of `count` rows each process has."""
    return [len(range(number, count, world_size())) for number in range(world_size())]


# ---- what is the same everywhere


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; those that have none have none anywhere.

    Raises:
        InputError: another process has ended.
    """
    if world_size() == 1:
        return
    alike: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in alike.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one exchange, not hundreds
        with _others():
            dist.all_reduce(flat)
        parts = flat.div_(world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def same_everywhere(modules: Iterable[nn.Module]) -> None:
    """Give all processes the weights and buffers that the first one has.

    Raises:
        InputError: another process has ended.
    """
    if world_size() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
            with _others():
                dist.broadcast(sent, src=0)
            tensor.copy_(sent)


def by_first(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` of `arguments` returns in the first process, in all: plain values, pickled on the way.

    Raises:
        InputError: another process has ended, as the first one does where `function` fails.
    """
    if world_size() == 1:
        return function(*arguments)
    found = [function(*arguments) if rank() == 0 else None]
    with _others():
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    return found[0]


def wait_for_all() -> None:
    """Go on when all processes have come here.

    Raises:
        InputError: another process has ended.
    """
    if world_size() > 1:
        with _others():
            dist.all_reduce(torch.zeros(1))  # on CPUs: a barrier would be NCCL's, which does not notice who has ended


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """A block that makes files unless they are there: first in the first process, then in the first of each host.

    The others find them, whether hosts share their disks or not.
    """
    turn = 0 if rank() == 0 else 1 if ranks_of_environment()[2] == 0 else 2
    for _ in range(turn):
        wait_for_all()
    yield
    for _ in range(turn, 2):
        wait_for_all()


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Say in one line that another process has ended; all say the same."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # this process's own, which it meets here
        raise
    except RuntimeError as error:  # Gloo's and NCCL's own, with addresses that help nobody
        raise InputError(
            "another process of this run has ended, so this one ends too; where the run has a _LAST checkpoint, "
            "--resume_ckpt goes on from its last whole epoch"
        ) from error


def says_it_first(message: str) -> bool:
    """Whether this process is the first of the run to say `message`: an error that all meet is told once."""
    try:
        if ranks_of_environment()[1] == 1:
            return True
        if dist.is_initialized():
            store = dist.distributed_c10d._get_default_store()
        elif "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun keeps one from the beginning
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        else:
            return True
        return store.add("clipfh/said/" + hashlib.sha256(message.encode()).hexdigest(), 1) == 1
    except (InputError, KeyError, ValueError, RuntimeError):  # the store is gone: better twice than never
        return True
