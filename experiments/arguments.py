"""What all commands have in common: how they end, and that a count is a count."""

import argparse
import errno
import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from data_prep.system.surroundings import settle
from experiments.environment import usable_cores
from experiments.errors import CompositionError, ExperimentError

P = ParamSpec("P")
T = TypeVar("T")
STDOUT = 1  # the file descriptor
INTERRUPTED = 130  # the exit code of a process that an interrupt of the keyboard ended


def command(*, resumes: bool = False) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorates a command's `main`, which returns the exit code: no way to end is a traceback.

    An ExperimentError is one line and exit code 2 (1 where Hydra cannot compose the config), an
    interrupt one line and 130. With `resumes` that line says that the same command goes on, and
    SIGTERM and SIGHUP end the command's own processes as well. Where the reader of a pipe has seen
    enough, as `head` has, the command ends without a word; where its disk is full, with a line.
    """
    advice = "interrupted: the same command goes on from here" if resumes else "interrupted"

    def decorated(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def ended(*args: P.args, **kwargs: P.kwargs) -> int:
            settle()
            try:
                with _ended_by_signals() if resumes else nullcontext():
                    code = main(*args, **kwargs)
                    sys.stdout.flush()
                    return code
            except ExperimentError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1 if isinstance(error, CompositionError) else 2
            except KeyboardInterrupt:
                print(advice, file=sys.stderr)
                return INTERRUPTED
            except BrokenPipeError:
                if not _nobody_reads():
                    raise
                return 128 + signal.SIGPIPE
            except OSError as error:
                if error.errno != errno.ENOSPC or error.filename:
                    raise
                _write_nowhere()
                print(f"error: standard output: {error.strerror}", file=sys.stderr)
                return 2

        return ended

    return decorated


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe without a reader; then what is left goes nowhere."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    is_broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_broken:
        _write_nowhere()
    return is_broken


def _write_nowhere() -> None:
    """What is left of the standard output, which the interpreter would write at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Meanwhile these signals raise, as an interrupt of the keyboard does: what cleans up runs.

    One that is ignored stays so: a command under nohup outlives its terminal.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(signal_number: int, frame: Any) -> None:
    sys.exit(128 + signal_number)


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are ExperimentErrors: one line, where it would print its usage."""

    def error(self, message: str) -> NoReturn:
        raise ExperimentError(message)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The folder that a command looks through, as `--outputs`."""
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="folder (default: %(default)s)"
    )


def whole_number(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def list_of(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An argparse type: values of `kind` with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


def asked_threads() -> int:
    """`OMP_NUM_THREADS` where it is a number, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isascii() and given.isdigit() and int(given) else usable_cores()
