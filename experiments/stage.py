"""One stage of a job: a command in a process of its own, its log, its progress, its peak memory."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from experiments.errors import ExperimentError

# How long a thread that waits for the others keeps its core. By default they wait so long that any
# other work on the machine stops them all in turn: a training was seen to run 20 times slower.
SPIN_COUNT = "10000"


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """Wall-clock seconds of the process and its largest resident memory."""

    wall_s: float
    peak_rss_bytes: int


def run_stage(
    command: list[str], log: Path, threads: int, on_line: Callable[[str], None]
) -> StageResult:
    """Run `command`, append its output to `log` and hand each line to `on_line`.

    Python's hash seed and the number of threads are fixed, so that a seed gives the same result.
    When this process is interrupted, so is the stage.

    Raises ExperimentError, one line with the log's name and its last line, when the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = (
        {"GOMP_SPINCOUNT": SPIN_COUNT}
        | os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )
    started = time.monotonic()
    last_line = ""
    with (
        log.open("a", encoding="utf-8", newline="\n") as stream,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                stream.write(line)
                stream.flush()
                last_line = line.strip() or last_line
                on_line(line.rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
        # wait4 gives this child's own peak; RUSAGE_CHILDREN would give the largest of all. It is
        # never below this process's memory when the child started, which is small: no torch here.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ExperimentError(f"{_why(process.returncode, last_line)} (see {log})")
    return StageResult(wall_s=time.monotonic() - started, peak_rss_bytes=max_rss_bytes(usage))


def _why(exit_code: int, last_line: str) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"stopped by {name}{hint}"
    return last_line.removeprefix("error: ") or f"exit code {exit_code} without a word"


def max_rss_bytes(usage: resource.struct_rusage) -> int:
    """Largest resident memory in bytes; the kernel gives KiB on Linux and bytes on macOS."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
