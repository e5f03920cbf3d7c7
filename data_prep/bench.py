"""`python -m data_prep.bench --pairs N`: pairs per second and memory of each step of wmt14_en_de.

The text is synthetic: lines of the embedded sample, or of two files of yours, joined and numbered
so that every line is another one. The whole way is measured, from archives to binarized data.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from data_prep.corpora import Sample
from data_prep.errors import DataError
from data_prep.manifest import DataSpec
from data_prep.pipeline import STEPS, TIMINGS, prepare
from data_prep.progress import Timing
from data_prep.space import size_of
from data_prep.synthetic import varied, write_mirror
from data_prep.text import Pair, read_pairs

WMT14_PAIRS = 4_520_620
# As in WMT14: Europarl, Common Crawl, News Commentary.
SHARES = {"europarl-v7": 0.425, "commoncrawl": 0.53, "news-commentary-v9": 0.045}
HELD_OUT_PAIRS = 3000
_SAMPLE_EVERY_S = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        try:
            _write_text(options, folder / "mirror")
            spec = DataSpec(
                name="wmt14_en_de",
                vocab_size=options.vocab_size,
                sources=str(folder / "mirror" / "sources.json"),
            )
            with _peak_memory() as peak:
                manifest = prepare(
                    spec,
                    folder / "out",
                    mirror=str(folder / "mirror"),
                    workers=options.workers,
                )
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        timings = msgspec.json.decode(
            (folder / "out" / "logs" / TIMINGS).read_bytes(), type=dict[str, Timing]
        )
        shutil.rmtree(folder / "mirror")
        train = manifest.splits["train"]
        _print(timings, options.workers)
        print(f"pairs       read {train.read:,}, kept {train.kept:,}, dropped {train.dropped}")
        print(f"pieces      {train.source_pieces / train.kept:.1f} en a line")
        print(f"memory      {peak[0] / 1e9:.2f} GB at the most, all processes")
        print(f"disk        {size_of(folder / 'out') / 1e9:.2f} GB when done, archives included")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.bench", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--pairs", type=int, default=100_000, metavar="N", help="training pairs")
    parser.add_argument("--vocab-size", type=int, default=32_000, metavar="N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--join", type=int, default=2, metavar="N", help="lines joined to one")
    parser.add_argument("--source", type=Path, metavar="FILE", help="text to vary, else the sample")
    parser.add_argument("--target", type=Path, metavar="FILE", help="its translation")
    parser.add_argument("--folder", metavar="DIR", help="where the temporary folder is made")
    return parser


def _write_text(options: argparse.Namespace, mirror: Path) -> None:
    if options.source and options.target:
        pairs = list(read_pairs(options.source, options.target))
    else:
        pairs = list(Sample().pairs("train", Path()))
    held_out, rest = pairs[:HELD_OUT_PAIRS], pairs[HELD_OUT_PAIRS:]
    stream = varied(rest, options.pairs + 3, options.join)
    train: dict[str, list[Pair]] = {
        name: list(islice(stream, 1 + round(options.pairs * share)))
        for name, share in SHARES.items()
    }
    write_mirror(mirror, train, held_out, held_out, held_out[: HELD_OUT_PAIRS // 2])


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """A list whose one number is, in the end, the most resident bytes of this process and its
    children together. What they share counts once for each, so that it errs on the high side.
    """
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        this = psutil.Process()
        while not stop.wait(_SAMPLE_EVERY_S):
            total = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _print(timings: dict[str, Timing], workers: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("step", "s", "pairs", "pairs/s", f"min for {WMT14_PAIRS:,}"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    total = Timing()
    for name, timing in ((name, timings[name]) for name in STEPS):
        total.wall_s += timing.wall_s
        total.pairs = max(total.pairs, timing.pairs)
        _add(table, name, timing)
    _add(table, f"all, {workers} workers", total)
    Console(highlight=False, soft_wrap=True).print(table)


def _add(table: Table, name: str, timing: Timing) -> None:
    minutes = WMT14_PAIRS / timing.pairs_per_s / 60 if timing.pairs else 0
    table.add_row(
        name,
        f"{timing.wall_s:.1f}",
        f"{timing.pairs:,}",
        f"{timing.pairs_per_s:,.0f}",
        f"{minutes:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
