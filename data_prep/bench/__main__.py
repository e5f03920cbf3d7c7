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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from data_prep.transform.vocabulary import MAX_LINES

WMT14_PAIRS = 4_520_620
WHOLE = "all, with fetching"
TOLD_APART = 0.1  # share of its time that the larger run must take longer
_SAMPLE_EVERY_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; the exit code is that of the command if it fails."""
    settle()
    options = _parser().parse_args(arguments)
    smaller: dict[str, Timing] = {}
    if options.smaller:
        with _prepared(options.smaller, options) as found:
            if isinstance(found, int):
                return found
            smaller = found.timings
    with _prepared(options.mirror, options) as found:
        if isinstance(found, int):
            return found
        _print_timings(found.timings, smaller)
        _print_text(found.manifest, found.out)
        print(f"memory      {found.memory_bytes / 1e9:.2f} GB resident at the most, all processes")
        out = found.out
        print(
            f"disk        {found.disk_bytes / 1e9:.2f} GB at the most, {size_of(out) / 1e9:.2f} GB "
            f"when done; {size_of(out / 'downloads') / 1e9:.2f} GB of them are archives"
        )
    return 0


class Prepared(msgspec.Struct, frozen=True):
    """A corpus that was prepared in the folder `out`, and what that took."""

    out: Path
    timings: dict[str, Timing]  # of the steps, and of the whole command by the name WHOLE
    manifest: Manifest
    memory_bytes: int
    disk_bytes: int


@contextmanager
def _prepared(mirror: str, options: argparse.Namespace) -> Iterator[Prepared | int]:
    """The corpus of a mirror while the body lasts, or the exit code of a command that failed."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        out = Path(name) / "out"
        command = [sys.executable, "-m", "data_prep", "wmt14_en_de", "--out", str(out)]
        command += ["--mirror", mirror, "--sources", f"{mirror}/{TABLE_NAME}"]
        command += ["--workers", str(options.workers), "--vocab-size", str(options.vocab_size)]
        started = time.monotonic()
        process = subprocess.Popen(command)
        try:
            memory_bytes, disk_bytes = _watch(process, out)
        finally:
            process.terminate()
        wall_s = time.monotonic() - started
        if process.returncode:
            yield process.returncode
            return
        timings = msgspec.json.decode((out / "logs" / TIMINGS).read_bytes(), type=dict[str, Timing])
        manifest = load_manifest(out / MANIFEST_NAME)
        timings[WHOLE] = Timing(wall_s=wall_s, pairs=manifest.splits["train"].read)
        yield Prepared(out, timings, manifest, memory_bytes, disk_bytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.bench", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("mirror", metavar="MIRROR", help="what data_prep.bench.synthetic wrote")
    parser.add_argument(
        "--smaller", metavar="MIRROR", help="one of fewer pairs: tells fixed costs from the rest"
    )
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


def extrapolated(timing: Timing, smaller: Timing, pairs: int) -> tuple[float, float] | None:
    """Seconds that no number of pairs changes, and seconds for `pairs`, from runs of two sizes.

    None where the larger run took hardly longer: noise would be extrapolated.
    """
    more_s, more_pairs = timing.wall_s - smaller.wall_s, timing.pairs - smaller.pairs
    if more_pairs <= 0 or more_s < TOLD_APART * timing.wall_s:
        return None
    s_per_pair = more_s / more_pairs
    fixed_s = max(0.0, timing.wall_s - s_per_pair * timing.pairs)
    return fixed_s, fixed_s + s_per_pair * pairs


def _print_timings(timings: dict[str, Timing], smaller: dict[str, Timing]) -> None:
    """A row a step; without a smaller run all time counts as if it grew with the pairs."""
    table = Table(box=None, pad_edge=False, header_style="")
    headings = ["step", "s", "pairs", "pairs/s", f"min for {WMT14_PAIRS:,}"]
    for heading in [*headings, "fixed s"] if smaller else headings:
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for name in (*STEPS, WHOLE):
        timing = timings[name]
        # The vocabulary learns from no more than so many lines of both sides.
        pairs = min(WMT14_PAIRS, MAX_LINES // 2) if name == "vocabulary" else WMT14_PAIRS
        row = [name, f"{timing.wall_s:.1f}", f"{timing.pairs:,}"]
        if not smaller:
            whole_s = WMT14_PAIRS / timing.pairs_per_s
            row += [f"{timing.pairs_per_s:,.0f}", f"{whole_s / 60:.1f}"]
        elif found := extrapolated(timing, smaller[name], pairs):
            fixed_s, whole_s = found
            rate = pairs / (whole_s - fixed_s)
            row += [f"{rate:,.0f}", f"{whole_s / 60:.1f}", f"{fixed_s:.1f}"]
        else:
            row += ["-", "-", "-"]
        table.add_row(*row)
    console_of().print(table)
    if not smaller:
        print("what does not grow with the pairs is extrapolated as well: --smaller tells it apart")


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
