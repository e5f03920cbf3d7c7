"""Disk space, asked for before the work that would run out of it."""

import shutil
from pathlib import Path

from data_prep.spec import DataError


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise DataError unless the disk of `folder`, which exists, has `needed_bytes` more."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise DataError(
            f"{folder}: {_gigabytes(needed_bytes)} more disk space needed, "
            f"{_gigabytes(free_bytes)} free: free some, or give --out on another disk"
        )


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`, 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
