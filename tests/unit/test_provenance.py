"""Provenance: what changes a result changes the code version, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from experiments.record_parts import CodeInfo, Hardware

from experiments import provenance

SOURCES = {
    "gqa_fairseq/attention.py": "a",
    "gqa_fairseq/decoding/search.py": "b",
    "data_prep/clean.py": "c",
    "experiments/train.py": "d",
}
OTHERS = {
    "README.md": "x",
    "tests/unit/test_x.py": "x",
    "docs/page.md": "x",
    "conf/suite.yaml": "x",
    "experiments/report/plots.py": "x",
    "experiments/tracking.py": "x",
    "gqa_fairseq/__pycache__/attention.pyc": "x",
    "gqa_fairseq/.attention.py.swp": "x",
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


@pytest.fixture
def repository(tree: Path) -> Path:
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "first")
    return tree


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_counts(tree: Path, name: str) -> None:
    before = provenance.code_version(tree)
    write(tree, {name: "changed"})
    assert provenance.code_version(tree) != before
    write(tree, {name: SOURCES[name]})
    assert provenance.code_version(tree) == before


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_counts(tree: Path, name: str) -> None:
    before = provenance.code_version(tree)
    write(tree, {name: "changed"})
    assert provenance.code_version(tree) == before


def test_names_and_borders_of_files_count(tree: Path) -> None:
    versions = {provenance.code_version(tree)}
    (tree / "data_prep/clean.py").rename(tree / "data_prep/other.py")
    versions.add(provenance.code_version(tree))
    write(tree, {"data_prep/new.py": ""})
    versions.add(provenance.code_version(tree))
    assert len(versions) == 3


def test_the_place_of_the_tree_does_not_count(tree: Path) -> None:
    before = provenance.code_version(tree)
    assert provenance.code_version(tree.rename(tree.with_name("moved"))) == before


def test_without_git_there_is_no_commit_but_a_version(tree: Path) -> None:
    assert provenance.code_info(tree) == CodeInfo(
        commit=None, dirty=None, version=provenance.code_version(tree)
    )


def test_a_copy_inside_another_repository_is_not_that_commit(repository: Path) -> None:
    write(repository / "copy", SOURCES)
    assert provenance.code_info(repository / "copy").commit is None


def test_without_a_commit_there_is_none(tree: Path) -> None:
    git(tree, "init", "-q")
    assert provenance.code_info(tree).commit is None


def test_git_missing_is_not_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.code_info(tree).commit is None
    assert provenance.hardware().gpus == []


def test_dirty_follows_the_sources(repository: Path) -> None:
    clean = provenance.code_info(repository)
    assert clean.commit is not None
    assert len(clean.commit) == 40
    assert clean.dirty is False
    write(repository, dict.fromkeys(OTHERS, "changed"))
    assert provenance.code_info(repository).dirty is False
    write(repository, {"gqa_fairseq/new.py": "untracked"})
    assert provenance.code_info(repository).dirty is True


def test_gpus_are_those_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X1'\necho 'NVIDIA X1'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.hardware().gpus == ["NVIDIA X1", "NVIDIA X1"]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    assert provenance.hardware().gpus == []


def test_this_machine_is_a_valid_record_part() -> None:
    hardware = provenance.hardware()
    assert msgspec.json.decode(msgspec.json.encode(hardware), type=Hardware) == hardware
    assert provenance.versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    code = provenance.code_info()
    assert msgspec.json.decode(msgspec.json.encode(code), type=CodeInfo) == code


def test_importing_it_loads_neither_torch_nor_fairseq() -> None:
    code = (
        "import sys, experiments.provenance, experiments.records, experiments.tracking\n"
        "print({'torch', 'fairseq', 'gqa_fairseq', 'wandb'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
