"""Which of a record's many numbers are its headline.

A job may score and time several engines, shapes and length penalties. The views (report, wandb)
lead with the same ones: the engine of the plugin where it was used, the shape of the paper.
"""

from experiments.record_parts import Engine
from experiments.records import Record

# Sentences, source tokens, target tokens: Shazeer's lengths at a batch that one machine holds.
HEADLINE_SHAPE = (64, 128, 128)


def main_engine(record: Record) -> Engine:
    """The plugin's engine where a score or a timing used it, else fairseq's stock search."""
    used: set[Engine] = set()
    if record.evaluation:
        used.update(score.engine for score in record.evaluation.scores)
    if record.benchmark:
        used.update(timing.engine for timing in record.benchmark.timings)
    return "gqa" if "gqa" in used else "stock"
