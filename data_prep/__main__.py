"""`python -m data_prep NAME --out DIR`: prepare a corpus and say what came out."""

import argparse
import errno
import os
import signal
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from data_prep.clean import REASONS
from data_prep.errors import DataError
from data_prep.manifest import HELD_OUT, MANIFEST_NAME, SPLITS, DataSpec, Manifest
from data_prep.pipeline import prepare

VOCAB_SIZES = {
    "sample_en_de": 4000,
    "multi30k_en_de": 6000,
    "wmt14_en_de": 32000,
    "local": 8000,
}
TEXT_OPTIONS = [f"{split}_{side}" for split in SPLITS for side in ("source", "target")]

DESCRIPTION = """\
Prepare English-German text for fairseq: clean it, learn a joint SentencePiece vocabulary, write
binarized data, baselines and a manifest with checksums. What is done is not done again; what was
interrupted continues with the same command.

corpora:
  sample_en_de     the embedded LibreOffice help, 25,621 pairs; needs no network
  multi30k_en_de   Multi30k, 29,000 image captions; downloaded (1.3 MB), or from --mirror
  wmt14_en_de      WMT14, 4.5 million pairs; 1.7 GB of archives, downloaded or from --mirror
                   (docs/wmt14.md has what it costs)
  local            your own files: one segment a line, UTF-8, plain or .gz or .xz; line n of the
                   source file is the translation of line n of the target file
"""
EXAMPLES = """\
examples:
  python -m data_prep sample_en_de --out outputs/data/sample
  python -m data_prep multi30k_en_de --out outputs/data/multi30k --mirror /mnt/multi30k
  python -m data_prep local --out outputs/data/mine --vocab-size 8000 \\
      --train-source train.en --train-target train.de --dev-source dev.en --dev-target dev.de \\
      --test-source test.en --test-target test.de
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        manifest = prepare(
            _spec(options),
            options.out,
            mirror=options.mirror,
            workers=options.workers,
            force=options.force,
        )
    except DataError as error:
        return _fail(str(error), 2)
    except OSError as error:  # such as a full disk, anywhere
        if error.errno == errno.ENOSPC:
            return _fail(f"{options.out}: {error.strerror}: free some, then run this again", 2)
        return _fail(f"{error.filename or options.out}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted: the same command continues", 130)
    _print_summary(manifest, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=VOCAB_SIZES, help="which corpus")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="result folder")
    parser.add_argument(
        "--mirror",
        metavar="FOLDER_OR_URL",
        help="take downloads from here: a folder, file: or http: URL with files of the same names",
    )
    sizes = ", ".join(f"{size} for {name}" for name, size in VOCAB_SIZES.items())
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help=f"subword pieces, both languages ({sizes})"
    )
    parser.add_argument(
        "--max-pieces",
        type=int,
        default=250,
        metavar="N",
        help="drop training pairs with a side of more pieces (default %(default)s)",
    )
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=1.5,
        metavar="X",
        help="drop training pairs whose longer side has over X times the pieces of the shorter "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; they do not change the result (default: all cores, %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="prepare again what is done")
    parser.add_argument(
        "--sources",
        metavar="FILE",
        help="wmt14_en_de: other archives, a JSON table as data_prep/wmt14_en_de.json is",
    )
    files = parser.add_argument_group("files of `local` (all six)")
    for name in TEXT_OPTIONS:
        files.add_argument(f"--{name.replace('_', '-')}", metavar="FILE")
    return parser


def _spec(options: argparse.Namespace) -> DataSpec:
    given = {name: getattr(options, name) for name in TEXT_OPTIONS}
    if options.name != "local" and any(given.values()):
        raise DataError(f"{options.name} has its own text: --train-source and such are for local")
    if options.name != "wmt14_en_de" and options.sources:
        raise DataError("--sources is for wmt14_en_de")
    if options.workers < 1:
        raise DataError(f"--workers {options.workers}: give at least 1")
    values = {
        "name": options.name,
        "vocab_size": VOCAB_SIZES[options.name]
        if options.vocab_size is None
        else options.vocab_size,
        "max_pieces": options.max_pieces,
        "max_ratio": options.max_ratio,
        "sources": options.sources,
    }
    try:
        return msgspec.convert(values | given, DataSpec)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        option = field.strip("`").removeprefix("$.").replace("_", "-")
        raise DataError(f"--{option}: {problem}") from error


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _print_summary(manifest: Manifest, out: Path) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("split")
    for heading in ("read", "kept", "dropped", "pieces/line en", "de"):
        table.add_column(heading, justify="right")
    for name in SPLITS:
        counts = manifest.splits[name]
        lines = max(counts.kept, 1)
        table.add_row(
            name,
            f"{counts.read:,}",
            f"{counts.kept:,}",
            f"{counts.read - counts.kept:,}",
            f"{counts.source_pieces / lines:.1f}",
            f"{counts.target_pieces / lines:.1f}",
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    dropped = manifest.splits["train"].dropped
    rows = {
        "dropped": ", ".join(f"{reason} {dropped[reason]:,}" for reason in REASONS),
        "vocabulary": f"{manifest.vocab_size:,} pieces, joint",
    }
    for split in HELD_OUT:
        overlap = manifest.overlap[split]
        rows[f"{split} seen"] = (
            f"{overlap.four_grams_seen_share:.1%} of its 4-grams are in train, "
            f"{overlap.lines_covered_share:.1%} of its lines are covered, "
            f"{overlap.duplicate_lines} lines are in train"
        )
    for name, subset in manifest.subsets.items():
        rows[f"test {name}"] = f"{subset.lines:,} lines, their numbers are in {subset.file}"
    rows["licence"] = manifest.licence
    if manifest.note:
        rows["note"] = manifest.note
    rows["checksum"] = manifest.checksum
    rows["manifest"] = str(out / MANIFEST_NAME)
    for name, text in rows.items():
        console.print(f"{name:<13} {text}", markup=False)


if __name__ == "__main__":
    # Ends child processes too, as an interrupt from the keyboard does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
