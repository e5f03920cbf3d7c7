"""Prove and measure everything that needs a GPU, in one go: docs/gpu.md.

    make gpu WHEELS=folder                          # on a machine with a GPU and no network
    python -m experiments.gpu --parts correctness,decoding
    python -m experiments.gpu --device cpu          # a dry run with tiny shapes

Each part is a process with a time limit and a log of its own, and writes its records as soon as
they are there; one that fails does not stop the others. A part that is done by the same sources on
the same card is not done again. The last lines are a summary.
"""

from __future__ import annotations

import importlib.util
import sys

# What the parts import and a machine without a network may lack; wandb only where it is used.
MODULES = (
    "torch", "triton", "fairseq", "hydra", "omegaconf", "antlr4", "bitarray", "cffi", "msgspec",
    "numpy", "rich", "psutil", "jinja2", "matplotlib", "sacrebleu", "sentencepiece", "sklearn",
    "torchaudio", "yaml", "tqdm", "regex", "requests", "pytest", "hypothesis",
)  # fmt: skip


def missing_modules() -> list[str]:
    """Those of `MODULES` that are not installed."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def main(arguments: list[str] | None = None) -> int:
    """Carry out the parts; returns the exit code."""
    if missing := missing_modules():
        print(
            f"error: not installed: {', '.join(missing)} (put their wheels into WHEELS)",
            file=sys.stderr,
        )
        return 2
    from experiments.card.command import main as carry_out  # needs what was looked for

    return carry_out(arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
