"""Commands in processes of their own, whose output goes to a log file instead of the screen."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_prep.spec import DataError
from data_prep.system.surroundings import child_environment


def run_logged(command: Sequence[str], log: Path) -> None:
    """Run `command` with its output in `log`; raises DataError when it fails.

    The command inherits open files that are inheritable: the lock of `only_one`. When this process
    is interrupted, the command and all that it has started are killed, so that none keeps the lock.
    The error has the output's last line, or the signal that ended the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        stream.write((" ".join(command) + "\n").encode("utf-8"))
        stream.flush()
        # One thread a process: its workers share the cores already.
        environment = child_environment() | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            close_fds=False,
            process_group=0,
        ) as process:
            try:
                code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    if code < 0:
        reason = f"stopped by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += ", perhaps out of memory"
    else:
        reason = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
    if code:
        raise DataError(f"{log.stem} failed: {reason.removeprefix('error: ')} (see {log})")
