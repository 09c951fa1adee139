"""Prepare the next items in a background thread while the consumer works on this one."""

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def prefetch(iterable: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the items of `iterable` in order; one thread makes up to `depth` of them ahead.

    The thread starts with the first item that is asked for, and ends with the last one, with an exception, or when the
    consumer stops early. A loop that holds the iterator in a variable closes it itself, or an exception's traceback
    keeps it, and with it the thread, alive:

        with contextlib.closing(prefetch(batches)) as ready:
            for batch in ready:
                ...

    Torch's modes are of a thread: `no_grad`, `inference_mode` and `autocast` of the consumer do not hold in the making
    of the items, so enter them there. Random draws of both come in no fixed order: give the iterable its own generator.

    Args:
        iterable: is iterated in the thread alone.
        depth: items that are made, or being made, and not yet taken; at least 1.

    Raises:
        Exception: whatever the iterable raised, at its place in the order.
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, not {depth}")
    ready: SimpleQueue[tuple[bool, T | BaseException | None]] = SimpleQueue()  # (is an item, item or how it ended)
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def make() -> None:
        try:
            iterator = iter(iterable)
            while room.acquire() and not stopped.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                ready.put((True, item))
                del item  # or it would stay in memory while the next one is made
            ready.put((False, None))
        except BaseException as error:  # also SystemExit: a consumer must never wait for a thread that is gone
            ready.put((False, error))

    thread = threading.Thread(target=make, name="prefetch", daemon=True)  # an interpreter that exits does not wait
    thread.start()
    try:
        while True:
            is_item, content = ready.get()
            if not is_item:
                break
            room.release()
            yield content
            del content
    finally:
        stopped.set()
        room.release()
        thread.join()
    if content is not None:
        try:
            raise content
        finally:
            del content  # its traceback holds this frame: a cycle that would keep the consumer's frames alive
