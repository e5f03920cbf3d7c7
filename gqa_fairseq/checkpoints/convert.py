"""A trained model with fewer key/value heads, to train on from there (Ainslie et al. 2023, 2.1).

    python -m gqa_fairseq.checkpoints.convert CHECKPOINT --num-kv-heads G --out OUT

CHECKPOINT is one of this plugin's models, or of fairseq's own `transformer`. Everything but the
attention stays as it is, d_ff included. The training goes on where it was: updates, learning rate
and place in the data; Adam alone starts anew, because its moments belong to the weights that were
replaced. (fairseq's `--reset-optimizer` would restart the warm-up.)

The model's options for fairseq-train, which takes none from a checkpoint, are printed as one line.
"""

import argparse
import sys
from pathlib import Path

from gqa_fairseq.architecture import CONVERSION_METHODS, PLACEMENTS, check_conversion_method


def main(arguments: list[str] | None = None) -> int:
    """Convert a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.checkpoints.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-kv-heads", type=int, required=True, metavar="G")
    parser.add_argument(
        "--method", default="svd-product", help=", ".join(CONVERSION_METHODS) + " (the default)"
    )
    parser.add_argument("--placement", default="all", help=" or ".join(PLACEMENTS))
    parser.add_argument("--seed", type=int, default=1, help="for random")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="replace OUT")
    args = parser.parse_args(arguments)
    try:
        check_conversion_method(args.method)
        _check_place(args.checkpoint, args.out, args.force)
        # Here, because torch and fairseq take seconds, and help and refusals none.
        from gqa_fairseq.checkpoints.allowlist import read_state, save_state
        from gqa_fairseq.checkpoints.conversion import convert, fairseq_train_options

        state = read_state(args.checkpoint)
        try:
            converted = convert(state, args.num_kv_heads, args.method, args.placement, args.seed)
        except ValueError as error:
            raise ValueError(f"{args.checkpoint} cannot be converted: {error}") from error
        save_state(converted, args.out)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).split("\n")[0]
        print(f"error: {first}", file=sys.stderr)
        return 2
    before, after = (
        sum(w.numel() for n, w in s["model"].items() if "_attn." in n) for s in (state, converted)
    )
    print(f"{args.out}: {before:,} weights of attention became {after:,}", file=sys.stderr)
    print(*fairseq_train_options(converted))
    return 0


def _check_place(checkpoint: Path, out: Path, force: bool) -> None:
    """Raise before any work where the result could not be put, or would replace something."""
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise ValueError(f"--out {out}: that is a folder")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise ValueError(f"--out {out}: that is the checkpoint itself")
    if out.exists() and not force:
        raise ValueError(f"--out {out} exists: --force replaces it")


if __name__ == "__main__":
    sys.exit(main())
