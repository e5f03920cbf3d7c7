"""Of a container its limit counts, where it has one."""

from pathlib import Path

import psutil

from gqa_fairseq.host_memory import available_bytes, total_bytes


def container(folder: Path, limit: str, current: int, inactive_file: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n", encoding="ascii")
    (folder / "memory.current").write_text(f"{current}\n", encoding="ascii")
    text = f"anon {current - inactive_file}\ninactive_file {inactive_file}\nactive_file 0\n"
    (folder / "memory.stat").write_text(text, encoding="ascii")
    return folder


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    """What its files' pages take can be given up."""
    small = container(tmp_path, str(2**20), current=700_000, inactive_file=100_000)
    assert total_bytes(small) == 2**20
    assert available_bytes(small) == 2**20 - 600_000
    full = container(tmp_path, str(2**20), current=2**20 + 4096, inactive_file=0)
    assert available_bytes(full) == 0


def test_without_a_limit_the_machine_s_memory_counts(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert total_bytes(tmp_path / "no-such-folder") == total
    unlimited = container(tmp_path, "max", current=700_000, inactive_file=0)
    assert total_bytes(unlimited) == total
    assert 2**20 < available_bytes(unlimited) <= total
    large = container(tmp_path, str(2 * total), current=0, inactive_file=0)
    assert total_bytes(large) == total


def test_a_limit_whose_use_is_not_told_is_the_most_there_is(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4096\n", encoding="ascii")
    assert available_bytes(tmp_path) == 4096
