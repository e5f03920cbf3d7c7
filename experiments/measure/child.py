"""A measurement in a process of its own, whose environment is there before OpenMP reads it.

Whoever asks stays without torch, so that help, refusals and tables come at once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.measure.request import Request
from experiments.records.measurement import Measurement, read_measurement
from experiments.records.storage import write_json
from experiments.tied import tied

# What measures a request, and hands on what is measured so far after every workload.
Measure = Callable[[Request, Callable[[Measurement], None]], Measurement]


def measure_in_process(request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
    """The measurement of a request, by `python -m experiments.measure`.

    `on_measured` gets what is measured so far, after every workload. What it raises ends the
    process.

    Raises:
        ExperimentError: the process failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder, "request.json"), Path(folder, "measurement.json")
        write_json(asked, request)
        command = tied([sys.executable, "-m", "experiments.measure", str(asked), str(found)])
        lines: list[str] = []
        seen = 0
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=compute_environment(request.threads),
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    lines.append(line.rstrip())
                    if lines[-1].endswith(" rounds"):
                        _show_progress(lines[-1])
                    seen = _take_new(found, seen, on_measured)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            last_line = next((line for line in reversed(lines) if line), "no output")
            if not last_line.startswith("error: "):  # a fault of this code: all that it said
                print(*lines, sep="\n", file=sys.stderr)
                last_line = f"measuring ended with exit code {process.returncode}: {last_line}"
            raise ExperimentError(last_line.removeprefix("error: "))
        _take_new(found, seen, on_measured)
        return read_measurement(found)


def _take_new(path: Path, seen: int, on_measured: Callable[[Measurement], None]) -> int:
    """Hand on the measurement where its file was written anew; returns when that was."""
    try:
        written = path.stat().st_mtime_ns
    except FileNotFoundError:
        return seen
    if written != seen:
        on_measured(read_measurement(path))
    return written


def _show_progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
