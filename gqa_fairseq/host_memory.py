"""The memory of this machine, or of the container where that has less."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # version 2: Linux, Docker, Kubernetes


def total_bytes(cgroup: Path = CGROUP) -> int:
    """What all processes here may take together."""
    limit = _limit(cgroup)
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def available_bytes(cgroup: Path = CGROUP) -> int:
    """What can still be taken. Pages of files that the kernel would give up count as free."""
    available = psutil.virtual_memory().available
    limit = _limit(cgroup)
    if limit is None:
        return available
    try:
        taken = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").split("\n")
        given_up = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    except (OSError, ValueError, IndexError):
        return min(available, limit)
    return min(available, max(0, limit - taken + sum(given_up)))


def _limit(cgroup: Path) -> int | None:
    """None where there is none, which the file calls `max`."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None
