"""Whether a checkpoint can be read to its end, and what is in it.

    python -m gqa_fairseq.checkpoints.check FILE

prints its number of updates and of parameters as JSON. Whoever wants to remove other files because
this one is there asks first.
"""

import json
import sys
from pathlib import Path

import torch

from gqa_fairseq.checkpoints.allowlist import allow_fairseq_checkpoints


def check(path: Path) -> dict[str, int]:
    """Updates and parameters of a fairseq checkpoint.

    Raises:
        OSError, RuntimeError: it cannot be read.
        KeyError: it is none of fairseq's.
        ValueError: it has no weights, or some that are no finite numbers.
    """
    allow_fairseq_checkpoints()
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = state["model"]
    if not weights:
        raise ValueError("it has no weights")
    for name, weight in weights.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ValueError(f"{name} has weights that are no finite numbers")
    return {
        "updates": state["optimizer_history"][-1]["num_updates"],
        "parameters": sum(weight.numel() for weight in weights.values()),
    }


def main(arguments: list[str]) -> int:
    """Print what is in a checkpoint; returns the exit code."""
    try:
        print(json.dumps(check(Path(arguments[0]))))
    except Exception as error:  # pickle raises many kinds
        first = str(error).split("\n")[0]
        print(f"error: {type(error).__name__}: {first}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
