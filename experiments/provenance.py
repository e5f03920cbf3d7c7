"""Where a result came from: commit, code version, package versions and machine.

Nothing here imports torch, and nothing fails for want of git, a GPU or a package: what is not
there is recorded as absent.
"""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

from experiments.records.parts import CodeInfo, Hardware

ROOT = Path(__file__).resolve().parent.parent

# Packages whose version can change a result, by their names in a package registry.
PACKAGES = (
    "torch",
    "triton",
    "ve-fairseq",
    "fairseq-fixed",
    "numpy",
    "sentencepiece",
    "sacrebleu",
    "hydra-core",
    "omegaconf",
    "msgspec",
    "ctranslate2",
)

# What can change a job's result. Documents, tests and conf/ (the resolved config is recorded
# whole) are not here, nor are the views of a finished record.
SOURCE_FOLDERS = ("gqa_fairseq", "data_prep", "experiments")
VIEWS = ("experiments/report", "experiments/headline.py", "experiments/tracking.py")


def code_info(root: Path = ROOT) -> CodeInfo:
    """Commit, dirty flag and code version of the tree at `root`.

    `dirty` says whether a source that the code version covers differs from the commit.
    """
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if not commit or not top or Path(top).resolve() != root.resolve():
        # No git, no commit yet, or a copy that merely lies inside another repository.
        return CodeInfo(commit=None, dirty=None, digest=code_version(root))
    excluded = [f":(exclude){view}" for view in VIEWS]
    folders = [folder for folder in SOURCE_FOLDERS if (root / folder).exists()]
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--", *folders, *excluded)
    return CodeInfo(commit=commit, dirty=changes != "", digest=code_version(root))


def code_version(root: Path = ROOT) -> str:
    """sha256 over path and content of every source that can change a result; needs no git."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources(root).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _sources(root: Path) -> dict[str, Path]:
    """Source files by their path in the project; neither hidden files nor byte code."""
    found = {}
    for folder in SOURCE_FOLDERS:
        for path in (root / folder).rglob("*"):
            relative = path.relative_to(root)
            skipped = any(part == "__pycache__" or part[0] == "." for part in relative.parts)
            is_view = any(relative.is_relative_to(view) for view in VIEWS)
            if path.is_file() and not skipped and not is_view:
                found[relative.as_posix()] = path
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> Hardware:
    """The machine as this process may use it: its CPU affinity, a container's memory limit."""
    return Hardware(
        cpu_model=_cpu_model(),
        cores_usable=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_bytes(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    total = psutil.virtual_memory().total
    try:
        limit = limit_file.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _gpus() -> list[str]:
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [name.strip() for name in (names or "").split("\n") if name.strip()]


def _output(*command: str) -> str | None:
    """Standard output of `command`, stripped; None when it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
