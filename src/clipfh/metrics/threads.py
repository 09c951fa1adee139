"""A thread for each part of the work, each with its own matrix products."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

P = TypeVar("P")
R = TypeVar("R")


def in_threads(work: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
    """Yield `work(part)` of each part, in order, from as many threads as torch has.

    Each thread does a part from its products to its counts, and the BLAS has one thread in it: nothing waits, as it
    would between a product on all threads and a count on all threads. `work` must release the GIL where it counts.
    """
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(work, parts)


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: 20 ms, once
