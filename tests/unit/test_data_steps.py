"""A step is done once, whole or not at all; a prepared folder is used as it is or made again."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.result import LOCK_NAME, only_one
from data_prep.spec import DataError, load_manifest
from data_prep.steps import Steps


class Counter:
    """A build that counts its runs, and can fail when half of its files are there."""

    def __init__(self):
        self.runs = 0
        self.fails = False

    def __call__(self, folder, advance):
        self.runs += 1
        (folder / "first").write_text("1")
        if self.fails:
            raise OSError(28, "No space left on device")
        (folder / "sub").mkdir()
        (folder / "sub" / "second").write_text("2")
        advance(1)
        return {"lines": 2}


@pytest.fixture
def run(tmp_path):
    build = Counter()

    def run(inputs, fails=False, recipe=1):
        build.fails = fails
        steps = Steps(tmp_path / "work", recipe, Console(quiet=True))
        return steps.run("step", inputs, build, dict[str, int]), build.runs

    return run


def test_done_steps_are_not_done_again(run):
    first, runs = run({"size": 4})
    assert runs == 1
    assert sorted(first.files) == ["first", "sub/second"]
    assert run({"size": 4}) == (first, 1)
    assert first.result == {"lines": 2}


def test_other_inputs_do_it_again(run):
    run({"size": 4})
    assert run({"size": 5})[1] == 2
    assert run({"size": 5}, recipe=2)[1] == 3


def test_half_a_step_is_done_again(run, tmp_path):
    with pytest.raises(OSError, match="No space"):
        run(1, fails=True)
    assert not (tmp_path / "work" / "step").exists()
    step, runs = run(1)
    assert runs == 2
    assert sorted(step.files) == ["first", "sub/second"]


def test_a_signal_as_a_step_begins_leaves_no_folder(run, tmp_path, monkeypatch):
    """It is raised when the call ends in which it came, and the folder is there by then."""
    mkdir = Path.mkdir

    def interrupted(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(1)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_lost_a_file_is_done_again(run):
    step, _ = run(1)
    (step.folder / "first").unlink()
    again, runs = run(1)
    assert (again, runs) == (step, 2)
    assert (step.folder / "first").is_file()


def test_out_must_not_hold_other_files(tmp_path):
    (tmp_path / "text").mkdir()
    with (
        pytest.raises(DataError, match="holds other files"),
        only_one(tmp_path, Console(quiet=True)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


KILLED = """
import sys
from pathlib import Path
from rich.console import Console
from data_prep.result import LOCK_NAME, only_one
from data_prep.system.subprocesses import run_logged

out = Path(sys.argv[1])
with only_one(out, Console(quiet=True)):
    run_logged(["sh", "-c", f"echo > {out}/started; read line < {out}/end"], out / "log")
"""


def test_a_command_that_outlives_its_process_keeps_the_lock(tmp_path):
    with only_one(tmp_path, Console(quiet=True)):
        os.mkfifo(tmp_path / "started")
        os.mkfifo(tmp_path / "end")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)]) as process:
        (tmp_path / "started").read_text()
        process.kill()
    with (tmp_path / LOCK_NAME).open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (tmp_path / "end").write_text("now\n")
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_manifest_is_read_strictly(tmp_path):
    path = tmp_path / "manifest.json"
    with pytest.raises(DataError, match="prepare the data first"):
        load_manifest(path)
    path.write_text('{"schema_version": 1, "surprise": 2}')
    with pytest.raises(DataError, match="surprise"):
        load_manifest(path)
