"""The mean of several checkpoints of one training, as a checkpoint (Vaswani et al. 2017, 6.1).

    python -m gqa_fairseq.checkpoints.average OUT CHECKPOINT CHECKPOINT ...

fairseq's own script for it is not installed with the package, and lets a checkpoint run code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def average(paths: list[Path], out: Path) -> None:
    """Write to `out` the last of the checkpoints with the mean of all their weights.

    Weights are summed in float64; the optimizer's state is left out, as there is no mean of it.

    Raises:
        OSError: a file cannot be opened.
        RuntimeError: `out` could not be written to its end; nothing of it is left.
        ValueError: one is no checkpoint of fairseq's, or they do not have the same weights.
    """
    # Here, because torch and fairseq take seconds, and help none.
    from gqa_fairseq.checkpoints.allowlist import read_state, save_state

    total: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for path in paths:
        state = read_state(path)
        weights = state["model"]
        shapes = {name: weight.shape for name, weight in weights.items()}
        if total and shapes != {name: weight.shape for name, weight in total.items()}:
            raise ValueError(f"{path} has other weights than {paths[0]}")
        for name, weight in weights.items():
            total[name] = total.get(name, 0) + weight.double()
    for name, weight in state["model"].items():
        state["model"][name] = (total[name] / len(paths)).to(weight.dtype)
    state["last_optimizer_state"] = None
    save_state(state, out)


def main(arguments: list[str] | None = None) -> int:
    """Average checkpoints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.checkpoints.average", description=__doc__
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parsed = parser.parse_args(arguments)
    try:
        average(parsed.checkpoints, parsed.out)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).split("\n")[0]
        print(f"error: {first}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
