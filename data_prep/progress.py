"""A progress bar on the terminal while something runs, and one line with its time afterwards."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]


@contextmanager
def show(console: Console, name: str, unit: str = "lines") -> Iterator[Advance]:
    """Show that `name` runs; the body gets a function that it calls with how much more is done."""
    started = time.monotonic()
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:>12,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    hidden = not console.is_terminal  # a log wants the line alone
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(name, total=None, unit=unit)
        yield lambda count: progress.advance(task, count)
    console.print(f"{name:<10} {time.monotonic() - started:6.1f} s", highlight=False)
