"""A command that does not outlive the process that started it.

    python -m experiments.tied PARENT COMMAND ...

takes the place of COMMAND. Linux ends it when its parent ends, even by SIGKILL: a training that ran
on would write into a folder that another run may use.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tie_to(parent: int) -> None:
    """Let Linux end this process when `parent`, which started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this process was tied to it
        sys.exit(1)


def tied(command: Sequence[str]) -> list[str]:
    """The command, to be started by this process and tied to it."""
    return [sys.executable, "-m", "experiments.tied", str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    if len(arguments) < 2 or not arguments[0].isdigit():
        sys.exit("error: give PARENT, the number of this process's parent, and a COMMAND")
    parent, command = int(arguments[0]), arguments[1:]
    tie_to(parent)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
