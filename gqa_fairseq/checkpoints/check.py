"""Whether a checkpoint can be read to its end, and what is in it.

    python -m gqa_fairseq.checkpoints.check FILE

prints its number of updates and of parameters as JSON. Whoever wants to remove other files because
this one is there asks first.
"""

import argparse
import json
import sys
from pathlib import Path


def check(path: Path) -> dict[str, int]:
    """Updates and parameters of a fairseq checkpoint.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is none of fairseq's, has no weights, or some that are no finite numbers.
    """
    # Here, because torch and fairseq take seconds, and help none.
    from gqa_fairseq.checkpoints.allowlist import read_state
    from gqa_fairseq.finite import require_finite

    state = read_state(path)
    weights = state["model"]
    if not weights:
        raise ValueError(f"{path}: it has no weights")
    require_finite(weights.items(), f"{path}: ")
    try:
        updates = state["optimizer_history"][-1]["num_updates"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} does not say how many updates it has had ({type(error).__name__}: {error})"
        ) from error
    return {
        "updates": updates,
        "parameters": sum(weight.numel() for weight in weights.values()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print what is in a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.checkpoints.check", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    parsed = parser.parse_args(arguments)
    try:
        print(json.dumps(check(parsed.checkpoint)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
