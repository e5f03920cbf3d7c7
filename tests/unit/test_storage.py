"""Files are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_records as synthetic

from experiments.errors import ExperimentError
from experiments.records.record import Record
from experiments.records.storage import read_json, read_lines, write_json, write_text

_KILLED_WHILE_REPLACING = """
import os, sys, signal
from pathlib import Path
from experiments.records import storage
storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
storage.write_text(Path(sys.argv[1]), "new" * 100_000)
"""


def test_lines_end_at_a_newline_alone(tmp_path: Path) -> None:
    lines = ["carriage\rreturn", "next\x85line", "form\x0cfeed", "separator\u2028here", ""]
    path = tmp_path / "text"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    assert read_lines(path) == lines


def test_a_kill_between_write_and_replace_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    write_text(target, "old")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_REPLACING, str(target)],
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert killed.returncode == -9
    assert target.read_text(encoding="utf-8") == "old"
    write_text(target, "new")  # What the killed one left behind is in nobody's way.
    assert target.read_text(encoding="utf-8") == "new"


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "record.json"
    write_text(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExperimentError, match=r"record\.json: cannot be written: No space left"):
        write_text(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ExperimentError, match="cannot be written"):
        write_text(tmp_path / "file" / "record.json", "text")


def test_files_are_as_readable_as_the_umask_allows(tmp_path: Path) -> None:
    write_text(tmp_path / "atomic", "")
    (tmp_path / "plain").write_text("", encoding="utf-8")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_stages_write_and_read_parts(tmp_path: Path) -> None:
    part = synthetic.evaluation()
    write_json(tmp_path / "evaluation.json", part)
    assert read_json(tmp_path / "evaluation.json", type(part)) == part
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_json(tmp_path / "absent.json", Record)
