"""How every picture of the report looks, and how it becomes a PNG and an SVG.

matplotlib takes long to import: that is left until something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours and three of Tol's: told apart by colour-blind readers, and in grey with
# the markers. Ten and seven: a pair comes again after 70 rows.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
           "#882255", "#999933", "#332288")  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
STYLE = Path(__file__).with_name("plots.mplstyle")


class Drawn:
    """One figure as PNG for Markdown and as SVG for the page, each made when it is asked for.

    No version, date or drawn id is inside: the same records give the same bytes.
    """

    def __init__(self, figure: Figure) -> None:
        self._figure = figure

    @cached_property
    def png(self) -> bytes:
        """Pixels, in few colours."""
        buffer = io.BytesIO()
        with _style():
            self._figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        self._figure.set_layout_engine("none")  # it is laid out now
        return _in_few_colours(buffer.getvalue())

    @cached_property
    def svg(self) -> str:
        """Lines and text, laid out as the pixels are."""
        assert self.png
        buffer = io.StringIO()
        with _style():
            self._figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None})
        return buffer.getvalue()


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(fname=STYLE)


def style(index: int) -> tuple[str, str]:
    """Colour and marker of the row with that number: a row has the same in every picture."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def draw_picture(draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> Drawn:
    """What `draw` draws."""
    from matplotlib.figure import Figure

    # No pyplot: figures that nobody shows need neither a window nor global state.
    with _style():
        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure)
    return Drawn(figure)


def picture(draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> bytes:
    """What `draw` draws, as PNG."""
    return draw_picture(draw, size_inches).png


def _in_few_colours(png: bytes) -> bytes:
    """The same picture with a palette, in half the bytes: it has few colours and their edges."""
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(smaller, format="png", optimize=True, dpi=(150, 150))
    return smaller.getvalue()


def say_empty(axes: Axes, what: str) -> None:
    """Say in a panel that has no numbers why that is."""
    axes.text(0.5, 0.5, what, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_yticks([])
    axes.minorticks_off()
