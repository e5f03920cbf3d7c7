"""Engines and architectures side by side: the same work, in turn, in one process.

    python -m experiments.benchmark                                # the paper's shape, MHA
    python -m experiments.benchmark --shapes 8x512x512,8x1024x1024 --beams 1 --kv-heads 8,1
    python -m experiments.benchmark --model model=mini --model model=mini attention=mqa
    python -m experiments.benchmark --job outputs/runs/quickstart/mha-seed1-0123456789ab
    python -m experiments.benchmark --training experiment=study_multi30k seed=1
    python -m experiments.benchmark --show results/measurements/*.json    # Markdown of earlier ones

Every contender does the same work in turn, so that a machine that slows down slows all of them, and
between two rounds the machine itself is measured. Fixed lengths are forced, and the tokens counted.
Quote ratios; the JSON of `--out` has every raw sample. docs/decoding.md has the commands behind
its table.

engines:
{engines}

What an engine cannot do is left out, and said.

--model takes overrides of experiments.run, which make one model, and is given once for each model.

--training takes such overrides as well, prepares their data where that is not done, and times
updates on real batches: of the job's training command (fairseq), of fairseq's own Transformer, loss
and Adam (stock), and the matrix products of these updates alone (products), which bound them all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from data_prep.system.surroundings import console_of
from experiments.arguments import Parser, asked_threads, command, list_of, whole_number
from experiments.engines import ENGINES, EXACT_ENGINES, find_engine, help_lines
from experiments.errors import ExperimentError
from experiments.measure.child import measure_in_process
from experiments.measure.request import (
    TRAINERS,
    FixedShape,
    Request,
    RequestedContender,
    RequestedText,
    RequestedTraining,
    check_request,
    check_trainers,
)
from experiments.records.measurement import (
    Measurement,
    Timing,
    read_measurement,
    write_measurement,
)
from experiments.records.storage import check_writable
from experiments.report.measured import architectures, machine, markdown, terminal_table
from experiments.stages.corpus import prepare_data
from experiments.stages.graph import Job, job_of
from experiments.stages.job_files import JobFiles, job_files
from experiments.stages.sweep import (
    CONFIG_NAME,
    check_overrides,
    in_one_line,
    resolve,
    with_search_options,
)
from experiments.stages.uptraining.uptrain import base_command
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.parity import BASELINES, PAPER

CONF = Path(__file__).resolve().parents[1] / "conf"
TABLE_WIDTH = 150  # where there is no terminal to ask
SPECIAL_SYMBOLS = 1  # of fairseq's dictionary that is no piece: padding (config.py counts it too)
DEFAULT_SHAPE: FixedShape = (32, 128, 64)
DEFAULT_SIZE, DEFAULT_KV_HEADS = "wmt_en_de", PAPER.num_heads
DEFAULT_PIECES = PAPER.vocab_size - SPECIAL_SYMBOLS
# Of the options below those that each way to say what is measured has a use for; the first counts.
_OF_DECODING = {"engines", "beams", "repeats", "memory", "device", "dtype", "out"}
_USED = {
    "show": set[str](),
    "training": {"repeats", "updates", "trainers", "out"},
    "job": _OF_DECODING,
    "model": {"shapes", *_OF_DECODING},
    "shapes": {"size", "vocab_size", "kv_heads", *_OF_DECODING},
}
_DEFAULTS = {
    "shapes": [DEFAULT_SHAPE],
    "repeats": 5,
    "updates": 8,
    "device": "cpu",
    "dtype": "float32",
    "memory": False,
}
_OF_A_MODEL = ("experiment", "model", "attention", "data", "uptrain", "seed")  # overrides


def requests(args: argparse.Namespace) -> list[Request]:
    """One measurement for the shapes, one of training, or one a job.

    Raises ExperimentError, one line.
    """
    if args.training:
        return [_request_of_training(args)]
    if args.job:
        return [_request_of_job(args, job_files(folder)) for folder in args.job]
    architectures = _models(args.model or []) or _architectures(args)
    return [_request(args, architectures, shapes=args.shapes, beams=args.beams or [4, 1])]


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raise ExperimentError, one line, for an option that what is measured has no use for."""
    mode = next(name for name in _USED if getattr(args, name))
    for name, value in vars(args).items():
        if name != mode and name not in _USED[mode] and value != _DEFAULTS.get(name):
            option = name.replace("_", "-")
            raise ExperimentError(f"--{option} has no use with --{mode} (leave it out)")


def _jobs(option: str, given: list[list[str]]) -> list[Job]:
    """The job of each list of overrides, as experiments.run has it."""
    for overrides in given:
        check_overrides(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return [
                job_of(resolve(compose(CONFIG_NAME, overrides=with_search_options(overrides))))
                for overrides in given
            ]
    except HydraException as error:
        raise ExperimentError(f"{option}: {in_one_line(error)}") from error


def _models(given: list[list[str]]) -> list[Architecture]:
    """The architecture of each list of overrides, which say nothing but what the model is."""
    for override in (override for overrides in given for override in overrides):
        section = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if section not in _OF_A_MODEL:
            raise ExperimentError(
                f"--model: {override} is not about a model: give {', '.join(_OF_A_MODEL)}"
            )
    return [job.architecture for job in _jobs("--model", given)]


def _architectures(args: argparse.Namespace) -> list[Architecture]:
    pieces = args.vocab_size or DEFAULT_PIECES
    baseline = replace(
        BASELINES[args.size or DEFAULT_SIZE],
        vocab_size=pieces + SPECIAL_SYMBOLS,
        max_source_positions=PAPER.max_source_positions,
        max_target_positions=PAPER.max_target_positions,
    )
    try:
        return [baseline.resolve(Variant(G)) for G in args.kv_heads or [DEFAULT_KV_HEADS]]
    except ValueError as error:
        raise ExperimentError(f"--kv-heads: {error}") from error


def _request_of_job(args: argparse.Namespace, job: JobFiles) -> Request:
    decode = job.decode
    if decode.options:
        raise ExperimentError(
            f"{job.name}: it translates with decode.options {decode.options}, and engines are "
            "compared without: give another --job, or --shapes"
        )
    text = RequestedText(
        name=job.name,
        data=str(job.data),
        source_lang=job.source_lang,
        target_lang=job.target_lang,
        batch=decode.batch_sentences,
        length_alpha=decode.length_alpha,
        max_len_a=decode.max_len_a,
        max_len_b=decode.max_len_b,
    )
    weights = {
        "checkpoint": str(job.checkpoint),
        "data": str(job.data / "bin"),
        "jobs": [job.id],
    }
    beams = args.beams or [decode.beam, 1]
    return _request(args, [job.architecture], weights, text=text, beams=beams)


def _request_of_training(args: argparse.Namespace) -> Request:
    check_trainers(args.trainers or [])  # before data is prepared
    (job,) = _jobs("--training", [args.training])
    config = job.config
    data = prepare_data(config, job.prepare)
    contender = RequestedContender(
        architecture=job.architecture,
        engine="gqa",
        training_command=base_command(job, data.binarized, Path("unused")),
    )
    training = RequestedTraining(
        batch=args.updates,
        repeats=args.repeats,
        text=config.data.name,
        trainers=args.trainers or list(TRAINERS),
    )
    return Request(
        contenders=[contender],
        beams=[],
        training=training,
        memory=False,
        device=config.hardware.device,
        dtype="float32",
        threads=config.hardware.threads or asked_threads(),
    )


def _request(
    args: argparse.Namespace,
    architectures: Iterable[Architecture],
    weights: dict[str, Any] | None = None,
    **what: Any,
) -> Request:
    request = Request(
        contenders=[
            RequestedContender(architecture=own, engine=engine, **(weights or {}))
            for own in architectures
            for engine in args.engines or EXACT_ENGINES
        ],
        repeats=args.repeats,
        memory=args.memory,
        device=args.device,
        dtype=args.dtype,
        threads=asked_threads(),
        **what,
    )
    for line in check_request(request):
        print(line, file=sys.stderr)
    return request


def run(args: argparse.Namespace) -> None:
    """Measure, print a table a workload, and write the file anew after each."""
    console = console_of(width=None if sys.stdout.isatty() else TABLE_WIDTH, wraps=True)
    finished: list[Timing] = []  # of the requests before this one
    shown = 0

    def take(measured: Measurement) -> None:
        nonlocal shown
        timings = [*finished, *measured.timings]
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        if not timings[shown:]:
            return
        if shown == len(finished):
            console.print("\n".join([machine(measured), *architectures(measured)]), highlight=False)
        for timing in timings[shown:]:
            console.print(terminal_table(timing))
        shown = len(timings)
        if args.out:
            write_measurement(args.out, msgspec.structs.replace(measured, timings=timings))

    asked = requests(args)
    if args.out:
        check_writable(args.out)
    for request in asked:
        finished += measure_in_process(request, take).timings


def show(paths: list[Path]) -> None:
    """Print the Markdown tables of earlier measurements."""
    print(markdown([read_measurement(path) for path in paths]), end="")


def _shape(text: str) -> FixedShape:
    parts = text.split("x")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxSOURCExTARGET, such as 32x128x64")
    batch, source, target = map(whole_number, parts)
    return batch, source, target


def _engine(text: str) -> str:
    try:
        return find_engine(text).name
    except ExperimentError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments.benchmark",
        description=(__doc__ or "").format(engines=help_lines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shapes",
        type=list_of(_shape),
        help="fixed lengths, BATCHxSOURCExTARGET in tokens, several with commas "
        f"(default {'x'.join(map(str, DEFAULT_SHAPE))})",
    )
    what.add_argument(
        "--job", type=Path, action="append", help="the folder of a trained job: its test set"
    )
    what.add_argument(
        "--training",
        nargs="+",
        metavar="OVERRIDE",
        help="time training, such as experiment=study_multi30k",
    )
    what.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="tables of --out files")
    numbers = list_of(whole_number)
    parser.add_argument(
        "--size", choices=sorted(BASELINES), help=f"with --shapes (default {DEFAULT_SIZE})"
    )
    parser.add_argument(
        "--vocab-size", type=whole_number, help=f"pieces, with --shapes (default {DEFAULT_PIECES})"
    )
    parser.add_argument(
        "--kv-heads", type=numbers, help=f"such as 8,1, with --shapes (default {DEFAULT_KV_HEADS})"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        metavar="OVERRIDE",
        help="with --shapes, a model of conf/, such as model=mini attention=mqa; again for others",
    )
    parser.add_argument(
        "--engines",
        type=list_of(_engine),
        help=f"some of {', '.join(ENGINES)} (default: all that are exact)",
    )
    parser.add_argument("--beams", type=numbers, help="default: 4 (or the job's) and 1")
    parser.add_argument("--repeats", type=whole_number, help="rounds, after one warm-up")
    parser.add_argument(
        "--updates", type=whole_number, help="with --training: real batches in a round"
    )
    parser.add_argument(
        "--trainers",
        type=list_of(str),
        help=f"with --training: some of {', '.join(TRAINERS)} (default: all)",
    )
    parser.add_argument("--memory", action="store_true", help="peak memory, in fresh processes")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, help="write every raw sample to this JSON file")
    parser.set_defaults(**_DEFAULTS)
    return parser


@command()
def main(arguments: list[str] | None = None) -> int:
    """Measure, or show what was measured; returns the exit code."""
    args = _parser().parse_args(arguments)
    _refuse_unused(args)
    if args.show:
        show(args.show)
    else:
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
