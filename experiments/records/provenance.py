"""Where a result came from: commit, code version, package versions and machine.

Nothing here imports torch, and nothing fails for want of git, a GPU or a package: what is not
there is recorded as absent.
"""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from experiments.environment import usable_cores
from experiments.records.parts import CodeInfo, Hardware, Provenance
from gqa_fairseq.host_memory import total_bytes

ROOT = Path(__file__).resolve().parents[2]

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

# What makes results: files of these kinds in these folders. With git the tracked ones count, so
# that a stray one does not.
SOURCE_FOLDERS = ("gqa_fairseq", "data_prep", "experiments", "conf")
SOURCE_KINDS = (".py", ".cpp", ".h", ".json", ".yaml")


def made_by(threads: int) -> Provenance:
    """Where a result of this process comes from; `threads` are those that it works with.

    Call it before the work: the code is what runs, whatever is committed meanwhile.
    """
    return Provenance(code=code_info(), versions=versions(), hardware=hardware(), threads=threads)


@functools.cache
def code_info(root: Path = ROOT) -> CodeInfo:
    """Commit, dirty flag and digest of the sources at `root`, as they are at the first call.

    The code of a process is what it has read, whatever is edited meanwhile.
    """
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if not commit or not top or Path(top).resolve() != root.resolve():
        # No git, no commit yet, or a copy that merely lies inside another repository.
        return CodeInfo(commit=None, dirty=None, digest=_digest(root, _by_kind(root)))
    # Without a magic word git's `*` matches `/` as well.
    sources = [f"{folder}/*{kind}" for folder in SOURCE_FOLDERS for kind in SOURCE_KINDS]
    listed = _output("git", "-C", str(root), "ls-files", "-z", "--", *sources) or ""
    changes = _output("git", "-C", str(root), "status", "--porcelain", "-uno", "--", *sources)
    tracked = [name for name in listed.split("\0") if name and (root / name).is_file()]
    return CodeInfo(commit=commit, dirty=changes != "", digest=_digest(root, tracked))


def _digest(root: Path, names: list[str]) -> str:
    """sha256 over path and content of the files."""
    digest = hashlib.sha256()
    for name in sorted(names):
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _by_kind(root: Path) -> list[str]:
    """Sources by their path in the project."""
    paths = (p for folder in SOURCE_FOLDERS for p in (root / folder).rglob("*"))
    return [
        path.relative_to(root).as_posix()
        for path in paths
        if path.suffix in SOURCE_KINDS and path.is_file()
    ]


def versions() -> dict[str, str]:
    """Versions of Python, of those `PACKAGES` that are installed, and of a GPU's driver."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if drivers := _of_gpus("driver_version"):
        found["nvidia-driver"] = drivers[0]
    return found


@functools.cache
def hardware() -> Hardware:
    """The machine as this process may use it: its CPU affinity, a container's memory limit."""
    return Hardware(
        cpu_model=_cpu_model(),
        cores_usable=usable_cores(),
        memory_bytes=total_bytes(),
        gpus=_of_gpus("name"),
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


def _of_gpus(what: str) -> list[str]:
    """What nvidia-smi says of each GPU; nothing where there is none."""
    said = _output("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader")
    return [line.strip() for line in (said or "").split("\n") if line.strip()]


def _output(*command: str) -> str | None:
    """Standard output of `command`, stripped; None when it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
