"""The environment of every process that computes, so that all of them run under the same one.

OpenMP reads these variables when it is loaded: a process cannot set them for itself. Whoever starts
a process that computes passes them on, training, evaluation and measurement alike.
"""

import os

# How long a thread that waits for the others keeps its core. By default threads wait so long that
# any other work on the machine stops them all in turn: beside one busy process a training was seen
# to run 20 times slower, and a measurement five times.
SPIN_COUNT = "10000"


def compute_environment(threads: int) -> dict[str, str]:
    """This process's variables with those that a process that computes needs.

    The hash seed of Python and the number of threads are fixed, so that a seed gives the same
    result. Output is not buffered, so that progress is seen. A `GOMP_SPINCOUNT` of the user stays.
    """
    return (
        {"GOMP_SPINCOUNT": SPIN_COUNT}
        | os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads() -> int:
    """`OMP_NUM_THREADS` where it is set to a number, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isascii() and given.isdigit() and int(given) > 0 else usable_cores()
