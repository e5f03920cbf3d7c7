"""A stage's process: its lines, its log, its memory, and the one line when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from experiments.stage import run_stage

from experiments.errors import ExperimentError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_go_to_the_log_and_to_the_caller(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs/stage.log"
    run_stage(python("print('one'); print('zwei ü')"), log, 1, lines.append)
    run_stage(python("import sys; print('three', file=sys.stderr)"), log, 1, lines.append)
    assert lines == ["one", "zwei ü", "three"]
    assert log.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"


def test_threads_and_hash_seed_are_fixed(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'])"
    run_stage(python(code), tmp_path / "log", 3, lines.append)
    assert lines == ["3 0"]


PEAKS = """
import sys
from pathlib import Path
from experiments.stage import run_stage
log = Path(sys.argv[1])
for code in ("x = b'1' * 300_000_000", "pass"):
    print(run_stage([sys.executable, "-c", code], log, 1, print).peak_rss_bytes)
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
    ],
)
def test_a_failure_is_one_line_with_the_log(tmp_path: Path, code: str, words: str) -> None:
    log = tmp_path / "stage.log"
    with pytest.raises(ExperimentError) as caught:
        run_stage(python(code), log, 1, lambda line: None)
    message = str(caught.value)
    assert words in message
    assert message.endswith(f"(see {log})")
    assert "\n" not in message
    assert not message.startswith("error:")


def test_an_error_of_the_caller_ends_the_process(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise KeyboardInterrupt

    endless = "import time\nprint('up', flush=True)\nwhile True: time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_stage(python(endless), tmp_path / "log", 1, refuse)
