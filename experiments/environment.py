"""The environment of every process that computes: its threads, and what makes a seed repeat."""

import os

from data_prep.system.surroundings import child_environment

# How long a thread that waits for the others keeps its core. By default they wait so long that any
# other work on the machine stops them all in turn: a training was seen to run 20 times slower.
SPIN_COUNT = "10000"


def compute_environment(threads: int) -> dict[str, str]:
    """A child's environment with `threads`, a fixed hash seed and unbuffered output."""
    return (
        {"GOMP_SPINCOUNT": SPIN_COUNT}
        | child_environment()
        | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
