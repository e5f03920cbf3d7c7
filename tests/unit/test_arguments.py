"""How every command ends: in one line, with an exit code that says how."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.arguments import INTERRUPTED, command
from experiments.errors import CompositionError, ExperimentError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "resumes", "code", "line"),
    [
        (ExperimentError("no such job"), False, 2, "error: no such job"),
        (CompositionError("no such key"), False, 1, "error: no such key"),
        (KeyboardInterrupt(), False, INTERRUPTED, "interrupted"),
        (KeyboardInterrupt(), True, INTERRUPTED, "interrupted: the same command goes on from here"),
    ],
)
def test_an_end_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    resumes: bool,
    code: int,
    line: str,
) -> None:
    @command(resumes=resumes)
    def main() -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == f"{line}\n"


def test_what_is_a_fault_of_the_code_is_not_hidden() -> None:
    @command()
    def main(number: int) -> int:
        return 12 // number

    assert main(4) == 3
    with pytest.raises(ZeroDivisionError):
        main(0)


def test_every_command_ends_so() -> None:
    """But those of stages, which a job starts and whose ends it reads.

    One looks for the packages that all others take for granted, and hands over.
    """
    room = ROOT / "experiments"
    files = [p for p in room.glob("**/*.py") if "stages" not in p.parts]
    commands = [p for p in files if "sys.exit(main())" in p.read_text(encoding="utf-8")]
    assert len(commands) > 10
    commands[commands.index(room / "gpu.py")] = room / "card/command.py"
    assert [p for p in commands if "@command(" not in p.read_text(encoding="utf-8")] == []


def test_an_interrupt_of_a_command_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import experiments.status as s\n"
        "def end(*a, **k): raise KeyboardInterrupt\n"
        "s.show = end\n"
        f"raise SystemExit(s.main(['--outputs', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_command_that_resumes_clean_up(number: signal.Signals) -> None:
    code = (
        "import os, signal\n"
        "from experiments.arguments import command\n"
        "@command(resumes=True)\n"
        "def main():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {number:d})\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "cleaned up\n"), done.stderr


def test_a_signal_is_again_what_it_was_after_a_command() -> None:
    before = signal.getsignal(signal.SIGTERM)

    @command(resumes=True)
    def main() -> int:
        return int(signal.getsignal(signal.SIGTERM) != before)

    assert main() == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_ends_no_command() -> None:
    """As nohup starts it."""
    code = (
        "import os, signal\n"
        "from experiments.arguments import command\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "@command(resumes=True)\n"
        "def main():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('goes on')\n"
        "    return 0\n"
        "raise SystemExit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at its end", "within"])
def test_a_reader_that_has_seen_enough_is_no_traceback(lines: int) -> None:
    code = (
        "from experiments.arguments import command\n"
        "@command()\n"
        "def main():\n"
        "    input()\n"
        f"    for line in range({lines}): print('line', line)\n"
        "    return 0\n"
        "raise SystemExit(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at its end", "within"])
def test_a_full_disk_below_the_standard_output_is_one_line(lines: int) -> None:
    code = (
        "from experiments.arguments import command\n"
        "@command()\n"
        "def main():\n"
        f"    for line in range({lines}): print('line', line)\n"
        "    return 0\n"
        "raise SystemExit(main())\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


def test_a_broken_pipe_of_another_process_is_not_hidden() -> None:
    @command()
    def main() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()


# Hydra has the help of the first two; jobs alone start the third, which reads a checkpoint at once.
NOT_ASKED = {"experiments.run", "experiments.prepare", "gqa_fairseq.checkpoints.recipe"}


def test_help_of_every_command_comes_without_torch() -> None:
    files = [p for room in ("experiments", "gqa_fairseq") for p in (ROOT / room).glob("**/*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files
        if "sys.exit(main())" in path.read_text(encoding="utf-8") and "stages" not in path.parts
    }
    assert names > NOT_ASKED
    code = (
        "import contextlib, importlib, io, sys\n"
        f"for name in {sorted(names - NOT_ASKED)}:\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):\n"
        "        importlib.import_module(name).main(['--help'])\n"
        "    command = 'python -m ' + name.removesuffix('.__main__')\n"
        "    assert said.getvalue().startswith('usage: ' + command), name\n"
        "    loaded = {'torch', 'fairseq'} & set(sys.modules)\n"
        "    assert not loaded, (name, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
