"""A function over a stream, on all cores, in order, with few items in memory at any time."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 3


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`function` of each item, in order; `workers` processes do it where there is enough to do.

    `function` is sent once with each item, so that it should be small or know how to load itself.
    """
    stream = iter(items)
    first = list(islice(stream, 2))
    if workers == 1 or len(first) < 2:  # starting processes takes longer
        yield from map(function, chain(first, stream))
        return
    # Spawned, as this process has threads; the children then have no lock or file of ours.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        waiting: deque[Future[Result]] = deque()
        for item in chain(first, stream):
            waiting.append(pool.submit(function, item))
            if len(waiting) > _WAITING_PER_WORKER * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one of what is left."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def _begin() -> None:
    """In a worker: interrupts are the parent's to handle, and it ends when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
