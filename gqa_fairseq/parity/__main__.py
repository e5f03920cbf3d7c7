"""`python -m gqa_fairseq.parity`: the parity table of a shape."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from gqa_fairseq.parity import Shape, check_placement, parity_table


def main(argv: list[str] | None = None) -> int:
    """Prints the parity table of a shape, as text or as JSON."""
    defaults = Shape()
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.parity", description="d_ff that keeps the parameter count."
    )
    for name in ("d_model", "num_heads", "mha_d_ff", "encoder_layers", "decoder_layers"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    for name in ("vocab_size", "max_source_positions", "max_target_positions"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=0)
    parser.add_argument("--placement", default="all", help="all (default) or decoder")
    parser.add_argument("--bias", action="store_true", help="projections and FFNs have biases")
    parser.add_argument("--post-norm", action="store_true", help="no final norms")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = vars(parser.parse_args(argv))
    placement, as_json = args.pop("placement"), args.pop("json")
    try:
        shape = Shape(pre_norm=not args.pop("post_norm"), **args)
        check_placement(placement)
        rows = parity_table(shape, placement)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    print(f"{'G':>4} {'encoder d_ff':>13} {'decoder d_ff':>13} {'parameters':>14} {'residual':>9}")
    for row in rows:
        print(
            f"{row.num_kv_heads:>4} {row.encoder_d_ff:>13} {row.decoder_d_ff:>13} "
            f"{row.parameters:>14,} {row.residual:>9,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
