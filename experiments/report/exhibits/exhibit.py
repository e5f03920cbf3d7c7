"""What an exhibit is: a table, and the picture of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.records.checked import median_us_per_token
from experiments.records.measurement import Samples
from experiments.report.cells import Table
from experiments.report.pictures.drawing import Drawn, draw_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Clark et al. 2011 ("Better hypothesis testing for statistical machine translation"): at least
# three runs of the optimizer.
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Exhibit:
    """Table and picture that answer one question from records; `name` is that of the picture.

    `draw` draws on a figure of `size_inches`, whose axes are laid out by themselves.
    """

    name: str
    table: Table
    caption: str
    size_inches: tuple[float, float]
    draw: Callable[[Figure], None]

    def drawn(self) -> Drawn:
        """The same records give the same bytes."""
        return draw_picture(self.draw, self.size_inches)

    def picture(self) -> bytes:
        """The picture as PNG."""
        return self.drawn().png


def few(seeds: int) -> str:
    """A warning where there are too few seeds to tell chance from a difference, else nothing."""
    if seeds >= ENOUGH_SEEDS:
        return ""
    counted = "One seed is" if seeds == 1 else f"{seeds} seeds are"
    return f"{counted} few: a difference may be chance."


def us_per_token(samples: Samples) -> float:
    """Median microseconds per output token, encoder and decoder together."""
    return median_us_per_token(samples.total_s, samples.tokens_produced)


def rounds_beyond(samples: Samples) -> list[list[float]]:
    """How far the fastest and the slowest round are from that median, as error bars want it."""
    middle = us_per_token(samples)
    rounds = [median_us_per_token([raw_s], samples.tokens_produced) for raw_s in samples.total_s]
    return [[middle - min(rounds)], [max(rounds) - middle]]
