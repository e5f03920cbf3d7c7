"""What a stage shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.system.surroundings import console_of


def in_words(seconds: float) -> str:
    """Such as `40 s`, `14 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


console = console_of(stderr=True)


class StageView:
    """Shows one stage by name; `total` steps give a bar and the time left. Use with `with`."""

    def __init__(self, name: str, total: int | None = None) -> None:
        self._name = name
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}" if total else ""),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            *([TextColumn("left"), TimeRemainingColumn()] if total else []),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total, status="")

    def __enter__(self) -> "StageView":
        if not console.is_terminal:
            console.print(f"{self._name} ...")
        self._progress.start()
        return self

    def advance(self, completed: int, status: str) -> None:
        """`completed` steps of the total are done."""
        self._progress.update(self._task, completed=completed, status=status)

    def status(self, status: str) -> None:
        """What the stage does at the moment; the last line it wrote."""
        self._progress.update(self._task, status=status)

    def note(self, text: str) -> None:
        """A line that stays, worth seeing on a terminal and in a log."""
        console.print(f"{self._name}: {text}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if error is None:
            self.note(f"done in {time.monotonic() - self._started:.0f} s")
