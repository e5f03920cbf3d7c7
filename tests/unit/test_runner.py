"""A stage is run once, alone and whole: what is there is used, what is broken is made again."""

import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from experiments.errors import ExperimentError
from experiments.records import provenance
from experiments.stages import runner
from experiments.stages.folders import RESULT_NAME, Done
from experiments.stages.graph import RECIPES, Stage
from experiments.stages.runner import (
    LOCK_NAME,
    TRIES_NAME,
    Attempt,
    Tries,
    forget,
    read_done,
    run_stage,
)


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the stages here find."""

    number: int


class Work:
    """Counts its calls and finds their number; fails where it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self, attempt: Attempt) -> Found:
        self.calls += 1
        attempt.seen(peak_rss_bytes=100 * self.calls)
        if self.error:
            raise self.error
        return Found(self.calls)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(runner, "_said", set())  # as in a new process
    return Stage(
        name="evaluate",
        inputs={"decode.beam": 4},
        parents=(),
        label="mqa-seed1",
        folder_of_kind=tmp_path / "stages/evaluate",
    )


def never(attempt: Attempt) -> Found:
    pytest.fail("its result was there")


def result_of(stage: Stage) -> Path:
    return stage.folder / RESULT_NAME


def test_a_stage_leaves_its_result_and_what_made_it(stage: Stage, work: Work) -> None:
    done = run_stage(stage, Found, work, threads=3)
    assert done.result == Found(1)
    info = done.info
    assert (info.name, info.key, info.recipe) == ("evaluate", stage.key, RECIPES["evaluate"])
    assert info.provenance.threads == 3
    assert info.provenance.code == provenance.code_info()
    assert info.provenance.hardware == provenance.hardware()
    assert info.tries == 1
    assert msgspec.json.decode(result_of(stage).read_bytes(), type=Done[Found]) == done


def test_a_done_stage_is_not_done_again(
    stage: Stage, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_stage(stage, Found, work, threads=1)
    before = {path: path.stat().st_mtime_ns for path in stage.folder.iterdir()}
    assert run_stage(stage, Found, never, threads=2) == done
    assert {path: path.stat().st_mtime_ns for path in stage.folder.iterdir()} == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("left", ["", "{", '{"info": null}', "\x00" * 40])
def test_a_result_that_cannot_be_read_is_made_again_and_said_once(
    stage: Stage, work: Work, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    run_stage(stage, Found, work, threads=1)
    result_of(stage).write_text(left, encoding="utf-8")
    done = run_stage(stage, Found, work, threads=1)
    assert done.result == Found(2)
    assert read_done(stage, Found) == done
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{stage.title}: {result_of(stage)}: ")
    assert line.endswith(": it is made again")


def test_a_result_of_another_stage_in_the_folder_is_none(stage: Stage, work: Work) -> None:
    done = run_stage(stage, Found, work, threads=1)
    other = Done(msgspec.structs.replace(done.info, key="0" * 64), Found(77))
    result_of(stage).write_bytes(msgspec.json.encode(other))
    assert run_stage(stage, Found, work, threads=1).result == Found(2)


def test_the_time_of_all_tries_adds_up(stage: Stage, work: Work) -> None:
    for error in (ExperimentError("it failed"), KeyboardInterrupt()):
        work.error = error
        with pytest.raises(type(error)):
            run_stage(stage, Found, work, threads=1)
        assert not result_of(stage).exists()
    # A try that was killed is there as it was last seen.
    path = stage.folder / TRIES_NAME
    tries = msgspec.json.decode(path.read_bytes(), type=Tries)
    started = datetime(2026, 11, 1, tzinfo=UTC)
    tries.tries[0].started_utc, tries.tries[0].wall_s = started, 5000.0
    tries.tries[0].peak_rss_bytes = 10**9
    path.write_bytes(msgspec.json.encode(tries))
    work.error = None
    attempts: list[Attempt] = []

    def last(attempt: Attempt) -> Found:
        attempts.append(attempt)
        return work(attempt)

    info = run_stage(stage, Found, last, threads=1).info
    assert info.tries == 3
    assert info.started_utc == started
    [attempt] = attempts
    assert info.wall_s == attempt.all.wall_s == sum(one.wall_s for one in attempt.all.tries)
    assert info.wall_s >= 5000.0
    assert attempt.all.peak_rss_bytes == 10**9
    assert msgspec.json.decode(path.read_bytes(), type=Tries) == attempt.all


def test_a_forgotten_stage_is_done_again(stage: Stage, work: Work) -> None:
    run_stage(stage, Found, work, threads=1)
    stale = stage.folder / "checkpoints/checkpoint_last.pt"
    stale.parent.mkdir()
    stale.write_bytes(b"stale")
    elsewhere = stage.folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (stage.folder / "link").symlink_to(elsewhere)
    forget(stage)
    assert {path.name for path in stage.folder.iterdir()} == {LOCK_NAME}
    done = run_stage(stage, Found, work, threads=1)
    assert (done.result, done.info.tries) == (Found(2), 1)
    assert {path.name for path in stage.folder.iterdir()} == {LOCK_NAME, TRIES_NAME, RESULT_NAME}
    assert (elsewhere / "kept").exists()
    work.error = ExperimentError("it failed")
    forget(stage)
    with pytest.raises(ExperimentError):
        run_stage(stage, Found, work, threads=1)
    assert not result_of(stage).exists()


def test_a_result_of_other_code_is_used_and_named_once(
    stage: Stage, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_stage(stage, Found, work, threads=1)
    code = provenance.code_info()
    raw = result_of(stage).read_text(encoding="utf-8")
    result_of(stage).write_text(raw.replace(code.digest, "ab" * 32), encoding="utf-8")
    for _ in range(2):
        used = run_stage(stage, Found, never, threads=1)
        assert used.result == done.result
        assert used.info.provenance.code.digest == "ab" * 32
    label = used.info.provenance.code.label
    assert capsys.readouterr().err == (
        f"{stage.title}: made by other code ({label}), used (rerun=evaluate makes it again)\n"
    )


HOLD = """
import fcntl, os, sys, time
lock, go, source, result = sys.argv[1:]
with open(lock, "w") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    print("held", flush=True)
    while not os.path.exists(go): time.sleep(0.01)
    if os.path.exists(source): os.replace(source, result)
"""


@pytest.mark.parametrize("other_is_done", [True, False])
def test_another_process_at_the_same_stage_is_waited_for(
    stage: Stage, work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    other_is_done: bool,
) -> None:  # fmt: skip
    """What it found is used; where it ended without a result, the work is done here."""
    run_stage(stage, Found, work, threads=1)
    go, source = tmp_path / "go", tmp_path / "result"
    raw = result_of(stage).read_bytes()
    if other_is_done:
        source.write_bytes(raw.replace(b'"number": 1', b'"number": 77'))
    result_of(stage).unlink()
    files = [stage.folder / LOCK_NAME, go, source, result_of(stage)]
    found: list[Done[Found]] = []
    waits = threading.Thread(target=lambda: found.append(run_stage(stage, Found, work, threads=1)))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, files)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        waits.start()
        said = ""

        def waiting() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return said == f"{stage.title}: another process works on it; waiting\n"

        wait_until(waiting)
        assert (work.calls, found) == (1, [])
        go.touch()
    waits.join()
    assert [done.result for done in found] == [Found(77 if other_is_done else 2)]
    assert work.calls == (1 if other_is_done else 2)


def test_a_folder_that_is_removed_while_it_is_waited_for_is_locked_anew(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """`experiments.clean` removes the lock with the folder: whoever waits takes another."""
    stage.folder.mkdir(parents=True)
    inside, leave = threading.Event(), threading.Event()

    def hold(attempt: Attempt) -> Found:
        inside.set()
        leave.wait()
        return Found(1)

    waits = threading.Thread(target=lambda: run_stage(stage, Found, hold, threads=1))
    with (stage.folder / LOCK_NAME).open("w", encoding="utf-8") as removed:
        fcntl.flock(removed, fcntl.LOCK_EX)
        waits.start()
        wait_until(lambda: "another process works on it; waiting" in capsys.readouterr().err)
        shutil.rmtree(stage.folder)
    assert inside.wait(30)
    lock = (stage.folder / LOCK_NAME).open("w", encoding="utf-8")
    with lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    leave.set()
    waits.join()
    assert read_done(stage, Found) is not None


def wait_until(holds: Callable[[], bool]) -> None:
    """Fail when it does not hold within a minute, which no machine takes."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came true")


def test_a_folder_that_cannot_be_written_is_one_line(stage: Stage, work: Work) -> None:
    stage.folder_of_kind.parent.mkdir()
    stage.folder_of_kind.write_text("a file", encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"paths\.stages=FOLDER") as caught:
        run_stage(stage, Found, work, threads=1)
    assert "\n" not in str(caught.value)
    assert work.calls == 0


def test_a_finished_stage_needs_no_folder_that_can_be_written(
    stage: Stage, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_stage(stage, Found, work, threads=1)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run_stage(stage, Found, never, threads=1) == done
