"""Is the GPU path right? The tests that need a card, in several processes at a time.

The kernel against float64, the search of fixed shapes against the CPU's, replayed graphs against
none, half precision against a full forward pass, an update against the CPU's. Compiling a kernel
takes longer than running it, so the tests are dealt out to processes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from experiments.card.models import Asked
from experiments.environment import compute_environment, usable_cores
from experiments.errors import ExperimentError
from experiments.records.card import Check, CheckOutcome, Checks
from experiments.records.storage import write_json
from experiments.tied import tied

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/kernel_reference.py", "tests/kernel_search.py", "tests/unit/test_one_update.py")
PROCESSES = {"cpu": 1, "cuda": 6}
DRY_EVERY = 16  # a dry run takes each 16th test: all of them run among the project's own
LEFT_S = 10.0  # for the record, when the time is over
_RESULT = re.compile(r"^(tests/\S+?::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
_OUTCOMES: dict[str, CheckOutcome] = {
    "PASSED": "passed",
    "FAILED": "failed",
    "ERROR": "failed",
    "SKIPPED": "skipped",
}


def run(asked: Asked) -> None:
    """Run the tests and write their outcomes; raises ExperimentError unless all are green."""
    ends = time.monotonic() + asked.limit_s - LEFT_S
    environment = compute_environment(1) | {
        "KERNEL_DEVICE": asked.device,
        "TRITON_INTERPRET": "1" if asked.is_dry else "0",
    }
    names = _collected(environment)
    if asked.is_dry:
        names = names[::DRY_EVERY]
    count = min(PROCESSES[asked.device], usable_cores(), len(names))
    logs = [asked.folder / f"tests-{i + 1}.log" for i in range(count)]
    asked.folder.mkdir(parents=True, exist_ok=True)
    processes = [
        _start(names[i::count], log, environment) for i, log in zip(range(count), logs, strict=True)
    ]
    for process in processes:
        try:
            process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    said = "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    found = {name: _OUTCOMES[word] for name, word in _RESULT.findall(said)}
    print(said)
    for log in logs:
        log.unlink()
    record = Checks(
        **asked.stamp(),
        checks=[Check(name=name, outcome=found.get(name, "unfinished")) for name in names],
    )
    write_json(asked.folder / "correctness.json", record)
    if not record.are_green:
        bad = [one.name for one in record.checks if one.outcome in ("failed", "unfinished")]
        raise ExperimentError(f"{record.found}; the first: {bad[0]}")


def _collected(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [*_pytest(), "-q", "--collect-only", *FILES],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = [line for line in done.stdout.split("\n") if line.startswith("tests/") and "::" in line]
    if done.returncode or not names:
        print(done.stdout, done.stderr)
        raise ExperimentError("the tests cannot be collected")
    return names


def _start(names: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """pytest over some tests; it ends with this process."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            tied([*_pytest(), "-v", "--tb=short", *names]),
            cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
