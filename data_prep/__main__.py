"""`python -m data_prep NAME --out DIR`: prepare a corpus and say what came out."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from data_prep.corpora.registry import CORPORA, corpus_named
from data_prep.pipeline import prepare
from data_prep.spec import HELD_OUT, MANIFEST_NAME, SPLITS, DataError, DataSpec, Manifest
from data_prep.system.surroundings import console_of, settle
from data_prep.transform.clean import REASONS

DESCRIPTION = """\
Prepare parallel text for fairseq: clean it, learn a joint SentencePiece vocabulary, and write
binarized data, baselines and a manifest with checksums. A step that is done is not done again; the
same command continues what was interrupted.

corpora:
"""
EXAMPLES = """\
examples:
  python -m data_prep sample_en_de --out outputs/data/sample
  python -m data_prep multi30k_en_de --out outputs/data/multi30k --mirror /mnt/multi30k
  python -m data_prep local --out outputs/data/mine --source-lang fr --target-lang en \\
      --train-source train.fr --train-target train.en --dev-source dev.fr --dev-target dev.en \\
      --test-source test.fr --test-target test.en
  python -m data_prep --spec outputs/mine.json --out outputs/data/mine
"""
SETTINGS = [field for field in msgspec.structs.fields(DataSpec) if field.name != "name"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 2 for what the user can put right."""
    settle()
    options = _parser().parse_args(arguments)
    try:
        if options.workers < 1:
            raise DataError(f"--workers {options.workers}: give at least 1")
        manifest = prepare(
            _spec(options), options.out, workers=options.workers, force=options.force
        )
    except DataError as error:
        return _fail(error.spelled(_spelling(options)), 2)
    except OSError as error:  # such as a full disk, anywhere
        if error.errno == errno.ENOSPC:
            return _fail(f"{options.out}: {error.strerror}: free some, then run this again", 2)
        return _fail(f"{error.filename or options.out}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        goes_on = "starts again" if options.force else "continues"
        return _fail(f"interrupted: the same command {goes_on}", 130)
    _print_summary(manifest, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    corpora = [
        f"  {name:<16} {corpus.summary}".replace("\n", f"\n{'':19}")
        for name, corpus in CORPORA.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=DESCRIPTION + "\n".join(corpora),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="which corpus")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="result folder")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; they do not change the result (default: all cores, %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="prepare again what is done, replace what is there"
    )
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="the corpus and its settings as a JSON object, instead of NAME and the options below "
        "(their names with _ for -); --mirror replaces the one in the file",
    )
    # Whoever runs the command for a config has its users read `data.train_source` in an error.
    parser.add_argument("--config-names", action="store_true", help=argparse.SUPPRESS)
    settings = parser.add_argument_group("settings of the corpus")
    for field in SETTINGS:
        settings.add_argument(
            _option(field.name), default=argparse.SUPPRESS, metavar="X", help=_help(field)
        )
    return parser


def _spelling(options: argparse.Namespace) -> Callable[[str], str]:
    """How the user has written the name of a setting."""
    if options.config_names:
        return lambda field: f"data.{field}"
    return _option if options.spec is None else str


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _help(field: msgspec.structs.FieldInfo) -> str:
    """The description that the field has in DataSpec, and its default."""
    default = field.default
    if field.name == "vocab_size":
        default = ", ".join(f"{each.vocab_size} for {name}" for name, each in CORPORA.items())
    described = next(each.description for each in _metas(field) if each.description)
    return described if default is None else f"{described} (default: {default})"


def _metas(field: msgspec.structs.FieldInfo) -> list[msgspec.Meta]:
    return [each for each in field.type.__metadata__ if isinstance(each, msgspec.Meta)]


def _spec(options: argparse.Namespace) -> DataSpec:
    """What is asked for: the file of `--spec`, or the options; raises DataError."""
    names = [field.name for field in SETTINGS]
    given = {name: value for name, value in vars(options).items() if name in names}
    if options.spec is None:
        if options.name is None:
            raise DataError(f"name a corpus ({', '.join(CORPORA)}), or give --spec FILE")
        default = {"name": options.name, "vocab_size": corpus_named(options.name).vocab_size}
        return _checked(default | given)
    beside = [_option(name) for name in given if name != "mirror"]
    if options.name is not None or beside:
        raise DataError(f"--spec has all settings: leave out {' '.join(beside) or options.name}")
    try:
        values = msgspec.json.decode(options.spec.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise DataError(f"{options.spec}: {error.strerror}: --spec takes a JSON file") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{options.spec}: {error}: --spec takes a JSON object") from error
    return _checked(values | given, options.spec)


def _checked(values: dict[str, Any], file: Path | None = None) -> DataSpec:
    """A spec of `values`, which come from `file`, or from options, which are text."""
    try:
        return msgspec.convert(values, DataSpec, strict=file is not None)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        field = place.strip("`").removeprefix("$.")
        places = [str(file)] if file else []
        if field:
            places.append(field if file else _option(field))
        raise DataError(": ".join([*places, problem])) from error


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _print_summary(manifest: Manifest, out: Path) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("split")
    source_lang, target_lang = manifest.languages
    for heading in ("read", "kept", "dropped", f"pieces/line {source_lang}", target_lang):
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
    console = console_of()
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
        console.print(f"{name:<13} {text}")


if __name__ == "__main__":
    # Ends child processes too, as an interrupt from the keyboard does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
