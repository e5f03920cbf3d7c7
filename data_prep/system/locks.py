"""A lock that one process at a time holds: a file, which the system frees when the process ends."""

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO


def hold(lock: Path, say_waiting: Callable[[], None]) -> TextIO:
    """The lock's file, made with its folder and locked until it is closed.

    Commands that this process starts may keep it, and then hold the lock as well. Where another
    process holds it, `say_waiting` is called once for each wait. Raises OSError where the file
    cannot be made.
    """
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as closing:
            stream = closing.enter_context(lock.open("a", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say_waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            if _is_at(stream, lock):  # the folder may have been removed meanwhile
                os.set_inheritable(stream.fileno(), True)
                closing.pop_all()
                return stream


def _is_at(stream: TextIO, path: Path) -> bool:
    """Whether this open file is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
