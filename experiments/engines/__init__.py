"""Decoding engines that translate the same work with the same weights.

A new engine is a file with an `Engine` object, and a line in ENGINES. Importing this package
imports neither torch nor fairseq.
"""

from experiments.engines import ctranslate2, plugin, stock
from experiments.engines.engine import Engine
from experiments.errors import ExperimentError

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        plugin.GQA,
        plugin.STOCK_SEARCH,
        plugin.TORCH,
        stock.STOCK,
        stock.STOCK_BEAMS,
        ctranslate2.CTRANSLATE2,
        plugin.INT8,
    )
}
EXACT_ENGINES = [name for name, engine in ENGINES.items() if engine.is_exact]


def find_engine(name: str) -> Engine:
    """The engine of that name; raises ExperimentError, one line with the choices."""
    if name not in ENGINES:
        raise ExperimentError(f"unknown engine {name!r}: choose of {', '.join(ENGINES)}")
    return ENGINES[name]


def help_lines() -> str:
    """One line an engine, for help texts."""
    return "\n".join(f"    {name:<13} {engine.help}" for name, engine in ENGINES.items())
