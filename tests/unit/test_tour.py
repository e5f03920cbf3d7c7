"""The tour of the code leads to every file, and to none that is not there."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ("conf", "data_prep", "experiments", "gqa_fairseq")
KINDS = {".py", ".cpp", ".h", ".yaml", ".j2"}


def shown() -> list[str]:
    """The files that the tour has a line for."""
    tour = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
    return re.findall(r"^- \[`[^`]+`\]\(\.\./([^)]+)\): \S", tour, flags=re.MULTILINE)


def library_files() -> list[str]:
    """Tracked files of the library; all files of its folders where there is no git."""
    try:
        command = ["git", "ls-files", "-z", "--", *LIBRARY]
        listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        names = [name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for folder in LIBRARY for path in (ROOT / folder).rglob("*")]
        names = [path.relative_to(ROOT).as_posix() for path in paths]
    return [name for name in names if Path(name).suffix in KINDS and (ROOT / name).is_file()]


def says_nothing(name: str) -> bool:
    """Whether a file marks its folder as a package and holds a docstring at the most."""
    if Path(name).name != "__init__.py":
        return False
    module = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    return len(module.body) == (ast.get_docstring(module) is not None)


def test_every_file_of_the_library_has_its_line() -> None:
    files = library_files()
    assert "gqa_fairseq/attention.py" in files
    lines = set(shown())
    assert [name for name in files if name not in lines and not says_nothing(name)] == []


def test_every_line_leads_to_a_file_and_is_there_once() -> None:
    lines = shown()
    assert [name for name in lines if not (ROOT / name).is_file()] == []
    assert len(lines) == len(set(lines))


def test_every_file_is_under_the_heading_of_its_folder() -> None:
    tour = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
    for section in re.split(r"^##+ ", tour, flags=re.MULTILINE)[1:]:
        folder = section.split("\n")[0]
        names = re.findall(r"^- \[`([^`]+)`\]\(\.\./([^)]+)\)", section, flags=re.MULTILINE)
        assert names
        assert [path for _, path in names] == [f"{folder}{name}" for name, _ in names]
