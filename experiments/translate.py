"""Translate text with a trained model: raw text in, raw text out, line by line.

    echo "Open the file." | python -m experiments.translate outputs/runs/quickstart/JOB
    python -m experiments.translate outputs/runs/quickstart/JOB book.en > book.de
    python -m experiments.translate MODEL.pt book.en --vocabulary outputs/data/mine --beam 1

A job's settings hold unless given here, so that its test set gives the translations of its record.
Line n of the result is the translation of line n, and a line without text stays empty. Many lines
are sorted by their length and translated in batches; on a terminal each line is answered at once.

`--nbest N` writes up to N lines for each: the number of the line, the score (log-probability over
the length penalty's denominator) and the translation, with tabs between them.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.arguments import Parser, asked_threads, command, whole_number
from experiments.config import DECODE_OPTIONS, LARGEST, DecodeConfig
from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.progress import console
from experiments.records.checked import Device
from experiments.records.parts import LengthPenalty
from experiments.stages.folders import PIECES_NAME, JobFolder
from gqa_fairseq.decoding.options import Option, Value

if TYPE_CHECKING:
    from experiments.stages.evaluation.translation import Translator

BASE_DECODE = Path(__file__).resolve().parents[1] / "conf/decode/base.yaml"
BUFFER_LINES = 50_000


@dataclass(frozen=True)
class ModelFiles:
    """A trained model, what it needs to read and write text, and how it was evaluated.

    `dictionaries` is a folder with the dict.LANGUAGE.txt of both languages. `threads` None is all
    cores.
    """

    checkpoint: Path
    pieces_model: Path
    dictionaries: Path
    decode: DecodeConfig
    device: Device
    threads: int | None


def files_of(model: Path, vocabulary: Path | None) -> ModelFiles:
    """The files of a job's folder, or of a checkpoint; raises ExperimentError, one line."""
    if model.is_dir():
        job = JobFolder(model)
        config, checkpoint, folder = job.config(), job.checkpoint(), job.model().path
        decode, hardware = config.decode, config.hardware
        device, threads = hardware.device, hardware.threads
    else:
        checkpoint, device, threads = model, "cpu", None
        decode = msgspec.yaml.decode(BASE_DECODE.read_bytes(), type=DecodeConfig)
        # A job's own checkpoints are in a folder of the one that has its vocabulary.
        folder = next((at for at in model.parents[:2] if (at / PIECES_NAME).exists()), model.parent)
    if not checkpoint.is_file():
        raise ExperimentError(
            f"{checkpoint}: not there (give the folder of a job, such as outputs/runs/quickstart/"
            "mha-seed1-..., or a checkpoint)"
        )
    folder = vocabulary or folder
    if not (folder / PIECES_NAME).is_file():
        raise ExperimentError(
            f"{folder}: no {PIECES_NAME} in it (give --vocabulary FOLDER, one that python -m "
            "data_prep made)"
        )
    prepared = folder / "bin"  # as data_prep leaves it
    dictionaries = prepared if prepared.is_dir() else folder
    return ModelFiles(checkpoint, folder / PIECES_NAME, dictionaries, decode, device, threads)


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Lines of UTF-8 text without their ends ("\\n" or "\\r\\n"), as prepared data has them.

    Raises ExperimentError, which names the line, where it is not UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ExperimentError(
                f"{name}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column "
                f"{error.start + 1}): convert the text, for example with iconv"
            ) from error
        yield line.removeprefix("\ufeff") if number == 1 else line


def start(args: argparse.Namespace, files: ModelFiles) -> Translator:
    """The translator that the options ask for; raises ExperimentError, one line.

    Only now torch and fairseq are imported, which takes seconds. OpenMP reads its variables then,
    and fairseq sets up logging unless that is done.
    """
    decode = files.decode
    penalty: LengthPenalty = decode.length_penalties[0]
    changes: dict[str, Any] = {
        "max_len_a": args.max_len_a,
        "max_len_b": args.max_len_b,
        "batch_sentences": args.batch_size,
    }
    if args.gnmt_alpha is not None:
        penalty, changes["length_alpha"] = "gnmt", args.gnmt_alpha
        if decode.engine == "stock":
            raise ExperimentError("--gnmt-alpha: the job's engine, stock, lacks it (give --lenpen)")
    if args.lenpen is not None:
        penalty, changes["length_alpha"] = "fairseq", args.lenpen
    asked = {name: getattr(args, name) for name in DECODE_OPTIONS}
    changes["options"] = decode.options | {k: v for k, v in asked.items() if v is not None}
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        decode = msgspec.structs.replace(decode, **given)
    except ValueError as error:
        raise ExperimentError(_in_own_words(str(error))) from error
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    os.environ.update(compute_environment(files.threads or asked_threads()))
    gc.disable()  # half a second of the start, and all that is imported stays
    from experiments.stages.evaluation.translation import Translator

    gc.enable()
    return Translator(
        files.checkpoint,
        files.dictionaries,
        files.pieces_model,
        decode,
        args.beam or decode.beam,
        penalty,
        device=args.device or files.device,
        int8=args.int8,
    )


def _in_own_words(refusal: str) -> str:
    """What the config refuses, as this command's options are called; its engine is the job's."""
    refusal = refusal.replace("decode.engine=stock", "the job's engine, stock,")
    refusal = refusal.replace("(use decode.engine=gqa, or leave it out)", "(leave it out)")

    def option(setting: re.Match[str]) -> str:
        return "--" + setting[1].replace("_", "-") + (" " if setting[2] else "")

    return re.sub(r"decode\.(?:options\.)?(\w+)(=?)", option, refusal)


def translate(
    translator: Translator, source: BinaryIO, name: str, nbest: int | None, at_once: int
) -> None:
    """Translate a stream of lines to standard output, in UTF-8 whatever the terminal takes."""
    lines = read_lines(source, name)
    seen = 0
    while part := list(islice(lines, at_once)):
        names = [f"{name}, line {seen + n}" for n in range(1, len(part) + 1)]
        with _progress(f"{name}, from line {seen + 1}", len(part)) as advance:
            found = translator.translate(part, nbest or 1, names.__getitem__, advance)
        for number, translations in enumerate(found, start=seen + 1):
            for text, score in translations:
                line = text if nbest is None else f"{number}\t{score:.4f}\t{text}"
                sys.stdout.buffer.write(f"{line}\n".encode())
        sys.stdout.buffer.flush()
        seen += len(part)


@contextmanager
def _progress(description: str, lines: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, where there is more than one line; elsewhere nothing."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=lines == 1 or not console.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=lines)
        yield lambda count: progress.advance(task, count)


def _from_zero(text: str) -> float:
    """An argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def _add_option(parser: Parser, option: Option) -> None:
    """An option of the search, whose errors say what it may be."""
    help_text = f"{option.help} (default: the job's, else {option.default})"
    if option.kind is bool:
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=help_text)
        return

    def parse(text: str) -> Value:
        try:
            return option.parsed(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    name = option.kind.__name__.upper()
    parser.add_argument(option.flag, type=parse, metavar=name, help=help_text)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments.translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a job's folder or a checkpoint")
    parser.add_argument("text", nargs="?", default="-", help="UTF-8 text (default: standard input)")
    parser.add_argument(
        "--beam", type=whole_number, help="1 is greedy search (default: the job's, else 4)"
    )
    parser.add_argument("--nbest", type=whole_number, metavar="N", help="the N best, with scores")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="linear layers in 8 bits on a CPU (what benchmarks call the engine gqa+int8)",
    )
    penalty = parser.add_mutually_exclusive_group()
    penalty.add_argument(
        "--lenpen", type=_from_zero, metavar="ALPHA", help="fairseq's: scores / length ** ALPHA"
    )
    penalty.add_argument(
        "--gnmt-alpha",
        type=_from_zero,
        metavar="ALPHA",
        help="GNMT's: scores / ((5 + length) / 6) ** ALPHA (default: the job's, else --lenpen 0.6)",
    )
    parser.add_argument(
        "--max-len-a", type=_from_zero, metavar="A", help="a translation has at most A times"
    )
    parser.add_argument(
        "--max-len-b",
        type=lambda text: int(_from_zero(text)),
        metavar="B",
        help="the pieces of the longest source of its batch, and B more (default: the job's)",
    )
    for option in DECODE_OPTIONS.values():
        _add_option(parser, option)
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="lines at once (default: the job's)"
    )
    parser.add_argument(
        "--buffer-size",
        type=whole_number,
        metavar="N",
        help="lines that are read, sorted and translated before any is written "
        f"(default {BUFFER_LINES}, and 1 on a terminal)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the job's, else cpu")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FOLDER",
        help=f"has {PIECES_NAME} and the dictionaries of a checkpoint (default: where it lies)",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> int:
    """Translate what the command line asks for; returns the exit code."""
    args = _parser().parse_intermixed_args(arguments)
    files = files_of(args.model, args.vocabulary)
    beam = args.beam or files.decode.beam
    if args.nbest and args.nbest > beam:
        raise ExperimentError(f"--nbest {args.nbest} is more than the beam: give --beam too")
    with _opened(args.text) as source:
        name = "standard input" if args.text == "-" else args.text
        translator = start(args, files)
        at_once = args.buffer_size or BUFFER_LINES
        if source.isatty():
            at_once = 1
            print("each line is translated as it ends; Ctrl-D ends", file=sys.stderr)
        translate(translator, source, name, args.nbest, at_once)
    return 0


def _opened(text: str) -> AbstractContextManager[BinaryIO]:
    """Standard input for `-`, else a file; raises ExperimentError where it cannot be read."""
    if text == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(text, "rb")
    except OSError as error:
        raise ExperimentError(f"{text}: cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
