"""A progress bar on the terminal while something runs, and one line with its time afterwards."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import TransferSpeedColumn as SpeedColumn

Advance = Callable[[int], None]


class Timing(msgspec.Struct, kw_only=True):
    """How long something took, and for how many pairs: 0 where it is not about pairs."""

    wall_s: float = 0.0
    pairs: int = 0

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second of wall time."""
        return self.pairs / max(self.wall_s, 1e-9)


@contextmanager
def show(console: Console, name: str, timing: Timing) -> Iterator[Advance]:
    """Show that `name` runs; the body gets a function that it calls with how many more pairs.

    `timing` is filled in.
    """
    started = time.monotonic()
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:>12,.0f} pairs"),
        TimeElapsedColumn(),
    )
    with _progress(console, *columns) as progress:
        task = progress.add_task(name, total=None)

        def advance(count: int) -> None:
            timing.pairs += count
            progress.advance(task, count)

        yield advance
    timing.wall_s = time.monotonic() - started
    rate = f" {timing.pairs_per_s:>9,.0f} pairs/s" if timing.pairs else ""
    console.print(f"{name:<10} {timing.wall_s:6.1f} s{rate}")


@contextmanager
def show_each(
    console: Console, name: str, sizes: Mapping[str, int | None]
) -> Iterator[dict[str, Advance]]:
    """Show a bar for each of `sizes` (bytes, or None); the body gets a function for each."""
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        SpeedColumn(),
        TimeElapsedColumn(),
    )
    with _progress(console, *columns) as progress:
        tasks = {key: progress.add_task(key, total=size) for key, size in sizes.items()}

        def advance_of(key: str) -> Advance:
            return lambda count: progress.advance(tasks[key], count)

        yield {key: advance_of(key) for key in tasks}
    console.print(f"{name:<10} {time.monotonic() - started:6.1f} s")


def _progress(console: Console, *columns: str | ProgressColumn) -> Progress:
    hidden = not console.is_terminal  # a log wants the line alone
    return Progress(*columns, console=console, transient=True, disable=hidden)
