"""How every picture of the report looks, and how it becomes a PNG and an SVG.

matplotlib takes long to import: that is left until something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey with the markers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
STYLE = Path(__file__).with_name("plots.mplstyle")


@dataclass(frozen=True)
class Drawn:
    """One figure: PNG for Markdown, SVG for the page."""

    png: bytes
    svg: str


def style(index: int) -> tuple[str, str]:
    """Colour and marker of the row with that number: a row has the same in every picture."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def draw_picture(draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> Drawn:
    """What `draw` draws."""
    import matplotlib
    from matplotlib.figure import Figure

    # No pyplot: figures that nobody shows need neither a window nor global state.
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure)
        return drawn(figure)


def picture(draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> bytes:
    """What `draw` draws, as PNG."""
    return draw_picture(draw, size_inches).png


def drawn(figure: Figure) -> Drawn:
    """The figure's bytes; no version, date or drawn id inside: the same records give the same."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Creator": None, "Date": None})
    return Drawn(_in_few_colours(png.getvalue()), svg.getvalue())


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
