import contextlib
import gc
import threading
import time
import weakref

import pytest

from clipfh.images.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_items_come_in_order(depth, count):
    assert list(prefetch(range(count), depth)) == list(range(count))
    assert list(prefetch(iter([None, False, 0]), depth)) == [None, False, 0]  # items that look like an end
    assert not threads()


def test_items_are_made_in_another_thread_ahead_but_not_further_than_depth():
    made, makers = [], set()

    def source():
        for number in range(20):
            made.append(number)
            makers.add(threading.get_ident())
            yield number

    items = prefetch(source(), depth=3)
    assert made == []  # nothing starts before the first item is asked for
    for taken in range(5):
        assert next(items) == taken
        deadline = time.monotonic() + 5
        while len(made) < taken + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert made == list(range(taken + 4))
    items.close()
    assert not threads() and makers and threading.get_ident() not in makers


def test_an_exception_comes_at_its_place():
    def source():
        yield 1
        yield 2
        raise KeyError("broken.jpg")

    items, seen = prefetch(source(), depth=4), []
    with pytest.raises(KeyError, match=r"broken\.jpg") as caught:
        seen.extend(iter(items.__next__, None))
    assert "source" in {entry.name for entry in caught.traceback}  # where it really happened
    assert not threads()
    items = prefetch(source())
    assert next(items) == 1 and next(items) == 2
    items.close()  # the exception behind the last item taken is nobody's
    assert not threads()


def test_a_consumer_that_breaks_ends_the_thread():
    for item in prefetch(iter(int, 1)):  # endless
        assert item == 0
        break
    gc.collect()
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_consumer_that_fails_ends_the_thread(error):
    with pytest.raises(error), contextlib.closing(prefetch(iter(int, 1), depth=5)) as items:
        for _ in items:
            raise error
    assert not threads()


def test_items_that_were_taken_are_let_go():
    class Item:
        pass

    alive = []

    def source():
        for _ in range(6):
            item = Item()
            alive.append(weakref.ref(item))
            yield item
            del item

    for number, item in enumerate(prefetch(source(), depth=1)):
        del item
        gc.collect()
        assert sum(reference() is not None for reference in alive[:number]) == 0


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth must be 1 or more, not 0"):
        next(prefetch([1], 0))
