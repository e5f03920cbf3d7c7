"""Provenance: the digest follows the tracked sources, and nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from experiments.records import provenance
from experiments.records.parts import CodeInfo, Hardware

SOURCES = {
    "gqa_fairseq/attention.py": "a",
    "gqa_fairseq/decoding/cpu/native/kernel.cpp": "b",
    "data_prep/corpora/wmt14_en_de.json": "c",
    "experiments/stages/training.py": "d",
    "conf/suite.yaml": "e",
}
OTHERS = {
    "README.md": "x",
    "data_prep/README.md": "x",
    "tests/unit/test_x.py": "x",
    "docs/page.md": "x",
    "results/runs/record.json": "x",
    "experiments/report/report.md.j2": "x",
    "gqa_fairseq/__pycache__/attention.pyc": "x",
    "gqa_fairseq/.attention.py.swp": "x",
    "gqa_fairseq/attention.py~": "x",
    "gqa_fairseq/Untitled.ipynb": "x",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, SOURCES | OTHERS | {".gitignore": "__pycache__/\n*.swp\n"})
    return root


def commit(tree: Path) -> Path:
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "first")
    return tree


@pytest.fixture
def repository(tree: Path) -> Path:
    return commit(tree)


def code_info(root: Path) -> CodeInfo:
    """As a new process sees it: one process looks once."""
    provenance.code_info.cache_clear()
    return provenance.code_info(root)


def digest(root: Path) -> str:
    return code_info(root).digest


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("with_git", [False, True])
def test_every_source_counts(tree: Path, name: str, with_git: bool) -> None:
    if with_git:
        commit(tree)
    before = digest(tree)
    write(tree, {name: "changed"})
    assert digest(tree) != before
    write(tree, {name: SOURCES[name]})
    assert digest(tree) == before


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("with_git", [False, True])
def test_nothing_else_counts(tree: Path, name: str, with_git: bool) -> None:
    if with_git:
        commit(tree)
    before = digest(tree)
    write(tree, {name: "changed"})
    assert digest(tree) == before


@pytest.mark.parametrize(
    "name", ["data_prep/spec.py~", "experiments/Untitled.ipynb", "data_prep/scratch.py"]
)
def test_a_stray_file_in_a_checkout_changes_nothing(repository: Path, name: str) -> None:
    before = code_info(repository)
    write(repository, {name: "stray"})
    assert code_info(repository) == before
    assert before.dirty is False


def test_the_digest_of_a_checkout_is_that_of_its_copy(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "copy", SOURCES)
    copied = code_info(tmp_path / "copy")
    assert copied == CodeInfo(commit=None, dirty=None, digest=digest(repository))


def test_names_and_borders_of_files_count(tree: Path) -> None:
    digests = {digest(tree)}
    (tree / "gqa_fairseq/attention.py").rename(tree / "gqa_fairseq/other.py")
    digests.add(digest(tree))
    write(tree, {"data_prep/new.py": ""})
    digests.add(digest(tree))
    assert len(digests) == 3


def test_the_place_of_the_tree_does_not_count(tree: Path) -> None:
    before = digest(tree)
    assert digest(tree.rename(tree.with_name("moved"))) == before


def test_a_process_is_the_code_that_it_has_read(tree: Path) -> None:
    before = code_info(tree)
    write(tree, {"gqa_fairseq/attention.py": "edited meanwhile"})
    assert provenance.code_info(tree) == before


def test_a_copy_inside_another_repository_is_not_that_commit(repository: Path) -> None:
    write(repository / "copy", SOURCES)
    copied = code_info(repository / "copy")
    assert (copied.commit, copied.dirty) == (None, None)
    assert copied.digest == digest(repository)


def test_without_a_commit_there_is_none(tree: Path) -> None:
    git(tree, "init", "-q")
    assert code_info(tree).commit is None


def test_git_missing_is_not_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_info(tree).commit is None
    assert hardware().gpus == []


def test_dirty_follows_the_sources(repository: Path) -> None:
    clean = code_info(repository)
    assert clean.commit is not None
    assert len(clean.commit) == 40
    assert clean.dirty is False
    assert clean.label == clean.commit[:7]
    write(repository, dict.fromkeys(OTHERS, "changed"))
    assert code_info(repository) == clean
    write(repository, {"gqa_fairseq/attention.py": "changed"})
    changed = code_info(repository)
    assert (changed.commit, changed.dirty) == (clean.commit, True)
    assert changed.label == f"{clean.commit[:7]} with changes"


def test_a_source_that_was_added_or_removed_makes_it_dirty(repository: Path) -> None:
    clean = code_info(repository)
    write(repository, {"gqa_fairseq/new.py": "added"})
    git(repository, "add", "gqa_fairseq/new.py")
    added = code_info(repository)
    assert added.dirty is True
    assert added.digest != clean.digest
    git(repository, "rm", "-q", "--cached", "gqa_fairseq/new.py")
    (repository / "conf/suite.yaml").unlink()
    removed = code_info(repository)
    assert removed.dirty is True
    assert removed.digest not in (clean.digest, added.digest)


def hardware() -> Hardware:
    """As a new process sees it."""
    provenance.hardware.cache_clear()
    return provenance.hardware()


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    """What a test put in the machine's place is forgotten after it."""
    yield
    provenance.code_info.cache_clear()
    provenance.hardware.cache_clear()


def test_gpus_are_those_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X1'\necho 'NVIDIA X1'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware().gpus == ["NVIDIA X1", "NVIDIA X1"]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    assert hardware().gpus == []


def test_a_gpus_driver_is_among_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$1" | grep -q driver_version && echo 580.1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert provenance.versions()["nvidia-driver"] == "580.1"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "nvidia-driver" not in provenance.versions()


def test_this_machine_is_a_valid_record_part() -> None:
    machine = hardware()
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Hardware) == machine
    assert provenance.versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    code = provenance.code_info()
    assert code.digest == digest(provenance.ROOT)
    assert msgspec.json.decode(msgspec.json.encode(code), type=CodeInfo) == code


def test_importing_it_loads_neither_torch_nor_fairseq() -> None:
    code = (
        "import sys, experiments.records.provenance, experiments.records.record\n"
        "print({'torch', 'fairseq', 'gqa_fairseq.models', 'wandb'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
