"""One command in a process of its own: its log, its progress, its peak memory, its end."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.tied import tied

LOOK_EVERY_S = 0.1  # at the log, for new lines
GRACE_S = 10.0  # between asking a process to end and ending it


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Wall-clock seconds of the process and its largest resident memory."""

    wall_s: float
    peak_rss_bytes: int


def run_command(
    command: list[str],
    log: Path,
    threads: int,
    on_line: Callable[[str], None],
    lock: int | None = None,
) -> Ended:
    """Run `command`, which appends its output to `log`, and hand each line to `on_line`.

    The command writes the log itself, so that no line is lost when this process is killed. It ends
    with this process, and holds the open file `lock` as long as it lives. Python's hash seed and
    the number of threads are fixed, so that a seed gives the same result.

    Raises ExperimentError, one line with the log's name and its last line, when the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(log)
    started = time.monotonic()
    with (
        log.open("ab") as stream,
        log.open("rb") as reader,
        subprocess.Popen(
            tied(command),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=compute_environment(threads),
            pass_fds=() if lock is None else (lock,),
        ) as process,
    ):
        reader.seek(0, os.SEEK_END)
        last_line, half = "", b""
        try:
            while True:
                # wait4 gives this child's own peak; RUSAGE_CHILDREN would give the largest of all.
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                *lines, half = (half + reader.read()).split(b"\n")
                for line in [*lines, half] if ended and half else lines:
                    text = line.decode("utf-8", errors="replace")
                    last_line = text.strip() or last_line
                    on_line(text)
                if ended:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    break
                time.sleep(LOOK_EVERY_S)
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise ExperimentError(f"{_why(process.returncode, last_line)} (see {log})")
    return Ended(wall_s=time.monotonic() - started, peak_rss_bytes=max_rss_bytes(usage))


def _end_last_line(log: Path) -> None:
    """Give a line that a kill or a full disk cut its end, so that the next one stays apart."""
    with log.open("a+b") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _end(process: subprocess.Popen) -> None:
    """Ask the process to end, and end it when it does not."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _why(exit_code: int, last_line: str) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"stopped by {name}{hint}"
    return last_line.removeprefix("error: ") or f"exit code {exit_code}, and it printed no error"


def max_rss_bytes(usage: resource.struct_rusage) -> int:
    """Largest resident memory in bytes; the kernel gives KiB on Linux and bytes on macOS."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
