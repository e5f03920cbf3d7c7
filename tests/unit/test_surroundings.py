"""What a stranger's machine has around a process, and what commands make of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.spec import DataError
from data_prep.system import surroundings
from data_prep.system.subprocesses import run_logged
from data_prep.system.surroundings import child_environment, private_folder
from experiments.records.parts import Score
from experiments.stages.process import run_command
from gqa_fairseq.decoding.cpu import native

ROOT = Path(__file__).resolve().parents[2]
SHOW = "import sys; assert sys.flags.optimize == 0; import os; print(os.environ.get('{}'), 'ü')"


@pytest.mark.parametrize("name", surroundings.HARMFUL)
def test_no_child_inherits_what_changes_python(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    command = [sys.executable, "-c", SHOW.format(name)]
    lines: list[str] = []
    run_command(command, tmp_path / "one.log", 1, lines.append)
    assert lines == ["None ü"]
    run_logged(command, tmp_path / "two.log")
    assert (tmp_path / "two.log").read_text(encoding="utf-8").endswith("None ü\n")


def test_a_home_that_can_be_used_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in surroundings.CACHES:
        monkeypatch.delenv(name, raising=False)
    environment = child_environment()
    assert environment["HOME"] == str(tmp_path)
    assert not environment.keys() & set(surroundings.CACHES)


def test_without_a_home_caches_have_a_folder_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "not there"))
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    environment = child_environment()
    assert environment["HOME"] == str(tmp_path / "not there")
    assert environment["MPLCONFIGDIR"] == "mine"
    cache = Path(environment["XDG_CACHE_HOME"])
    assert cache.stat().st_uid == os.getuid()
    assert not cache.stat().st_mode & 0o077


def test_a_folder_that_somebody_else_could_write_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = private_folder()
    assert private_folder() == first
    first.chmod(0o777)
    assert private_folder() != first
    first.rmdir()
    first.symlink_to("/")
    assert private_folder() not in (first, Path("/"))


STRANGER = """
import getpass, json, os
from pathlib import Path
from data_prep.system.surroundings import settle
os.setgid(12345)
os.setuid(12345)
settle()
found = {"user": getpass.getuser(), "home": str(Path.home())}
print(json.dumps(found))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["user"] == "user12345"
    assert Path(found["home"]).name.startswith("gqa-fairseq-")


LIBRARIES = """
import json, pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown  # no entry in /etc/passwd, and no HOME
from data_prep.system.surroundings import settle
settle()
import matplotlib, torch.hub, wandb.env
from pathlib import Path
found = [
    matplotlib.get_cachedir(), matplotlib.get_configdir(), torch.hub.get_dir(),
    wandb.env.get_cache_dir(), wandb.env.get_data_dir(), Path.home(),
]
for folder in map(Path, found):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe").touch()
print(json.dumps([str(folder) for folder in found]))
"""


def test_caches_of_libraries_have_a_place_without_a_home_and_a_user(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # matplotlib would warn of a place of its own
    for folder in json.loads(done.stdout):
        assert Path(folder).is_relative_to(tmp_path / f"gqa-fairseq-{os.getuid()}")


def test_standard_output_in_ascii_shows_the_rest_as_escapes() -> None:
    code = """
from data_prep.system.surroundings import console_of, settle
settle()
print("± – ü")
console_of().print("[bold]ü[/] [/x] :smile: 漢")
console_of(stderr=True).print("[/x] ü")
"""
    environment = child_environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\\xb1 \\u2013 \\xfc\n[bold]\\xfc[/] [/x] :smile: \\u6f22\n"
    assert done.stderr == "[/x] \\xfc\n"


def test_a_failed_command_is_still_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two failed: no \[/x\] ü"):
        run_logged([sys.executable, "-c", "exit('error: no [/x] ü')"], tmp_path / "two.log")


def test_the_native_library_has_a_place_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = native._cache()
    assert folder == tmp_path / f"gqa_fairseq-{os.getuid()}"
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="set XDG_CACHE_HOME"):
        native._cache()


def test_a_perfect_score_counts_and_a_better_one_does_not() -> None:
    """sacrebleu's sums are rounded: a translation that is its reference has a little over 100."""
    fields = {"split": "test", "signature": "s", "lines": 1, "hypotheses_sha256": "0" * 64}
    assert Score(metric="bleu", value=100.00000000000004, **fields).value > 100
    with pytest.raises(ValueError, match=r"bleu is 100.1, not within 0 and 100"):
        Score(metric="bleu", value=100.1, **fields)
