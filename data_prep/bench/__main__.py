"""`python -m data_prep.bench MIRROR`: pairs per second of each step of wmt14_en_de, and its memory.

The mirror is a folder that data_prep.bench.synthetic wrote. Everything from archives to binarized
data is measured as a process of its own: `python -m data_prep`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from rich.table import Table

from data_prep.bench.synthetic import TABLE_NAME
from data_prep.pipeline import STEPS, TIMINGS
from data_prep.spec import MANIFEST_NAME, Manifest, load_manifest
from data_prep.system.progress import Timing
from data_prep.system.space import size_of
from data_prep.system.surroundings import console_of, settle
from data_prep.text import read_text

WMT14_PAIRS = 4_520_620
_SAMPLE_EVERY_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; the exit code is that of the command if it fails."""
    settle()
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        out = Path(name) / "out"
        command = [sys.executable, "-m", "data_prep", "wmt14_en_de", "--out", str(out)]
        command += ["--mirror", options.mirror, "--sources", f"{options.mirror}/{TABLE_NAME}"]
        command += ["--workers", str(options.workers), "--vocab-size", str(options.vocab_size)]
        started = time.monotonic()
        process = subprocess.Popen(command)
        try:
            peak_memory_bytes, peak_disk_bytes = _watch(process, out)
        finally:
            process.terminate()
        wall_s = time.monotonic() - started
        if process.returncode:
            return process.returncode
        timings = msgspec.json.decode((out / "logs" / TIMINGS).read_bytes(), type=dict[str, Timing])
        manifest = load_manifest(out / MANIFEST_NAME)
        _print_timings(timings, Timing(wall_s=wall_s, pairs=manifest.splits["train"].read))
        _print_text(manifest, out)
        print(f"memory      {peak_memory_bytes / 1e9:.2f} GB resident at the most, all processes")
        print(
            f"disk        {peak_disk_bytes / 1e9:.2f} GB at the most, {size_of(out) / 1e9:.2f} GB "
            f"when done; {size_of(out / 'downloads') / 1e9:.2f} GB of them are archives"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.bench", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("mirror", metavar="MIRROR", help="what data_prep.bench.synthetic wrote")
    parser.add_argument("--vocab-size", type=int, default=32_000, metavar="N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--folder", metavar="DIR", help="where the temporary folder is made")
    return parser


def _watch(process: subprocess.Popen[bytes], out: Path) -> tuple[int, int]:
    """The most resident bytes of `process` and all below it until it ends, and of disk in `out`.

    Memory that processes share counts once for each, so that it errs on the high side.
    """
    memory = disk = 0
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        memory = max(memory, _resident_bytes(tree))
        with suppress(OSError):  # a file has moved meanwhile
            disk = max(disk, size_of(out))
        time.sleep(_SAMPLE_EVERY_S)
    return memory, disk


def _resident_bytes(tree: psutil.Process) -> int:
    total = 0
    for process in [tree, *tree.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended
            total += process.memory_info().rss
    return total


def _print_timings(timings: dict[str, Timing], whole: Timing) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("step", "s", "pairs", "pairs/s", f"min for {WMT14_PAIRS:,}"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    rows = {name: timings[name] for name in STEPS} | {"all, with fetching": whole}
    for name, timing in rows.items():
        minutes = WMT14_PAIRS / timing.pairs_per_s / 60
        table.add_row(
            name,
            f"{timing.wall_s:.1f}",
            f"{timing.pairs:,}",
            f"{timing.pairs_per_s:,.0f}",
            f"{minutes:.1f}",
        )
    console_of().print(table)


def _print_text(manifest: Manifest, out: Path) -> None:
    train = manifest.splits["train"]
    dropped = " + ".join(f"{count:,} {reason}" for reason, count in train.dropped.items())
    words = sum(
        len(source.split()) for source, _ in read_text(out / "text", "train", manifest.languages)
    )
    print(f"pairs       {train.read:,} read = {train.kept:,} kept + {dropped}")
    print(f"source      {words:,} words kept, {train.source_pieces:,} pieces")


if __name__ == "__main__":
    sys.exit(main())
