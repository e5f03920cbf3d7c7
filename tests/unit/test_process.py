"""A command's process: its lines, its log, its memory, its lock, and the one line when it fails."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from experiments.errors import ExperimentError
from experiments.stages.process import run_command


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_go_to_the_log_and_to_the_caller(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs/stage.log"
    run_command(python("print('one'); print('zwei ü')"), log, 1, lines.append)
    run_command(python("import sys; print('three', file=sys.stderr)"), log, 1, lines.append)
    assert lines == ["one", "zwei ü", "three"]
    assert log.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"


IN_HALVES = """
import sys, time
for part in (b"fi", b"rst \\xc3", b"\\xbc\\n", b"last"):
    sys.stdout.buffer.write(part)
    sys.stdout.flush()
    time.sleep(0.15)
"""


def test_no_half_of_a_line_is_lost_and_none_is_handed_over(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    run_command(python(IN_HALVES), log, 1, lines.append)
    assert lines == ["first ü", "last"]
    assert log.read_text(encoding="utf-8") == "first ü\nlast"


def test_a_line_cut_by_a_kill_stays_apart_from_the_next_try(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    log.write_text("whole\ncut in ha", encoding="utf-8")
    run_command(python("print('again')"), log, 1, lines.append)
    assert lines == ["again"]
    assert log.read_text(encoding="utf-8") == "whole\ncut in ha\nagain\n"


def test_threads_and_hash_seed_are_fixed(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'])"
    run_command(python(code), tmp_path / "log", 3, lines.append)
    assert lines == ["3 0"]


def test_threads_that_wait_leave_their_core_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    code = "import os; print(os.environ['GOMP_SPINCOUNT'])"
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    run_command(python(code), tmp_path / "log", 1, lines.append)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    run_command(python(code), tmp_path / "log", 1, lines.append)
    assert lines == ["10000", "7"]


PEAKS = """
import sys
from pathlib import Path
from experiments.stages.process import run_command
log = Path(sys.argv[1])
for code in ("x = b'1' * 300_000_000", "pass"):
    print(run_command([sys.executable, "-c", code], log, 1, print).peak_rss_bytes)
"""


def test_peak_memory_is_this_childs_own(tmp_path: Path) -> None:
    # In a small process, as the suite's is: Linux counts the starting process's memory too.
    done = subprocess.run(
        [*python(PEAKS), str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    big, small = map(int, done.stdout.split())
    assert big > 300_000_000
    assert small < big - 100_000_000


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such\\nthing')", "thing"),
        ("import sys; sys.exit('error: give me more\\n\\n')", "give me more"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; print('x'); os.kill(os.getpid(), 9)", "SIGKILL: out of memory"),
        ("import os; print('x'); os.kill(os.getpid(), 15)", "SIGTERM"),
    ],
)
def test_a_failure_is_one_line_with_the_log(tmp_path: Path, code: str, words: str) -> None:
    log = tmp_path / "stage.log"
    with pytest.raises(ExperimentError) as caught:
        run_command(python(code), log, 1, lambda line: None)
    message = str(caught.value)
    assert words in message
    assert message.endswith(f"(see {log})")
    assert "\n" not in message
    assert not message.startswith("error:")


ENDLESS = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: time.sleep(60)"


def test_an_error_of_the_caller_ends_the_process(tmp_path: Path) -> None:
    started: list[int] = []

    def refuse(line: str) -> None:
        started.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(python(ENDLESS), tmp_path / "log", 1, refuse)
    assert not runs(started[0])


PARENT = """
import sys
from pathlib import Path
from experiments.stages.process import run_command
run_command([sys.executable, "-c", sys.argv[2]], Path(sys.argv[1]), 1, lambda line: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_command_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([*python(PARENT), str(log), ENDLESS]) as parent:
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        child = int(log.read_text())
        end_and_see_both_gone(parent, child)


def end_and_see_both_gone(parent: subprocess.Popen, child: int) -> None:
    assert runs(child)
    parent.kill()
    try:
        wait_until(lambda: not runs(child))
    finally:
        if runs(child):
            os.kill(child, signal.SIGKILL)


# The process that measures becomes an endless one.
MEASURING = """
import os, sys
from experiments.measure.memory import in_fresh_process
in_fresh_process("x", os.execv, (sys.executable,), [sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_process_that_measures_memory_dies_with_the_measurement() -> None:
    command = [*python(MEASURING), ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        end_and_see_both_gone(parent, child)


def test_a_command_whose_parent_is_gone_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.tied", "1", "touch", str(tmp_path / "started")],
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())


def test_a_command_holds_the_lock_as_long_as_it_lives(tmp_path: Path) -> None:
    path, go = tmp_path / ".lock", tmp_path / "go"
    until_told = f"""
import os, time
print('up', flush=True)
while not os.path.exists({str(go)!r}): time.sleep(0.01)
"""
    held = []
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)

        def look(line: str) -> None:
            stream.close()  # as when the process that started the command dies
            held.append(is_locked(path))
            go.touch()

        run_command(python(until_told), tmp_path / "log", 1, look, stream.fileno())
    assert held == [True]
    assert not is_locked(path)


def test_nothing_else_is_handed_to_a_command(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        code = f"import os; os.fstat({stream.fileno()})"
        with pytest.raises(ExperimentError, match="Bad file descriptor"):
            run_command(python(code), tmp_path / "log", 1, lambda line: None)
        run_command(python(code), tmp_path / "log", 1, lambda line: None, stream.fileno())


def is_locked(path: Path) -> bool:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def runs(pid: int) -> bool:
    """Whether the process is there and is not just waiting to be forgotten."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    """Fail when it does not hold within a minute, which no machine takes."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("it never came true")
