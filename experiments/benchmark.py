"""Engines side by side: the same weights, one process, interleaved runs.

    python -m experiments.benchmark                                # the paper's shape, MHA
    python -m experiments.benchmark --shapes 8x512x512,8x1024x1024 --beams 1 --kv-heads 8,1
    python -m experiments.benchmark --job outputs/runs/quickstart/mha-seed1-0123456789ab
    python -m experiments.benchmark --show results/engines/*.json  # Markdown from earlier runs

Every engine does the same work in turn, so that a machine that slows down slows all of them, and
between two rounds the machine itself is measured. Fixed lengths are forced, and the tokens counted.
Quote ratios; the JSON of `--out` has every raw sample. docs/decoding.md has the commands behind
its table.

engines: gqa (the plugin), gqa+torch (with PyTorch's operators in place of its own), gqa+int8 (its
linear layers in 8 bits), gqa+stock (its model under fairseq's search), stock (fairseq), stock+beams
(fairseq with its per-sentence cross-attention) and ctranslate2. The last three know multi-head
attention alone and are left out where G is smaller.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.progress import track

from experiments import provenance
from experiments.comparison import (
    Comparison,
    ComparisonReport,
    EngineSamples,
    markdown,
    terminal_table,
)
from experiments.engines import (
    ENGINES,
    EXACT_ENGINES,
    MULTI_HEAD_ENGINES,
    Engine,
    build_engine,
    is_installed,
)
from experiments.errors import ExperimentError
from experiments.machine import MachineProbe, now
from experiments.record_parts import MemoryKind
from experiments.stage import max_rss_bytes
from experiments.storage import read_json, write_json
from experiments.workloads import FixedLengths, JobText, Workload, WorkloadSpec
from gqa_fairseq.architectures import SHAPES
from gqa_fairseq.decoding.cpu.native import operators_name
from gqa_fairseq.parity import check_kv_heads

TABLE_WIDTH = 150  # where there is no terminal to ask
_PROC = Path("/proc/self")


def compare(
    spec: WorkloadSpec,
    engines: list[str],
    kv_heads: list[int],
    repeats: int,
    with_memory: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Comparison:
    """All engines that can do the workload, `repeats` times in turn after one warm-up each.

    Raises:
        ExperimentError: nothing to run, an engine is not installed, ran out of memory, or produced
            another number of tokens than it should.
    """
    workload = spec.load()
    chosen = _choose(workload, engines, kv_heads)
    memory: dict[tuple[str, int], tuple[int, MemoryKind]] = {}
    if with_memory:  # first: this process still holds one model at most
        for one in chosen:
            # CTranslate2 takes a GPU's memory itself, where torch does not see it.
            if device.type == "cpu" or one[0] != "ctranslate2":
                memory[one] = peak_memory_in_fresh_process(spec, *one, device, dtype)
    built = [build_engine(*one, workload, device, dtype) for one in chosen]
    probe = MachineProbe(device, dtype)
    return measure(built, workload, probe, repeats, memory)


def _choose(workload: Workload, engines: list[str], kv_heads: list[int]) -> list[tuple[str, int]]:
    """(engine, G) in the order of the table; raises ExperimentError when there is none."""
    heads = workload.info.num_heads
    if workload.num_kv_heads is not None:
        kv_heads = [workload.num_kv_heads]
    for G in kv_heads:
        try:
            check_kv_heads(heads, G)
        except ValueError as error:
            raise ExperimentError(f"--kv-heads: {error}") from error
    chosen = [
        (e, G) for G in kv_heads for e in engines if heads == G or e not in MULTI_HEAD_ENGINES
    ]
    if not chosen:
        raise ExperimentError(
            f"{', '.join(engines)}: multi-head only, and G is {', '.join(map(str, kv_heads))} of "
            f"{heads} (add gqa to --engines)"
        )
    return chosen


def measure(
    engines: list[Engine],
    workload: Workload,
    probe: MachineProbe,
    repeats: int,
    memory: dict[tuple[str, int], tuple[int, MemoryKind]],
) -> Comparison:
    """Runs the engines in turn: one warm-up each, then `repeats` rounds, the probe after each.

    Raises:
        ExperimentError: an engine produced another number of tokens than forced, or than before.
    """
    info = workload.info
    forced = None if info.target_tokens is None else info.sentences * info.target_tokens
    expected: list[int | None] = [forced] * len(engines)
    total_s: list[list[float]] = [[] for _ in engines]
    encoder_s: list[list[float]] = [[] for _ in engines]
    read, flops = [], []
    found: list[Any] = [None] * len(engines)
    for repeat in track(range(repeats + 1), description=info.title, console=Console(stderr=True)):
        for i, engine in enumerate(engines):
            started = now(probe.device)
            found[i] = engine.translate()
            seconds = now(probe.device) - started
            tokens = sum(len(sentence[0]) for sentence in engine.hypotheses(found[i]))
            if expected[i] not in (None, tokens):
                raise ExperimentError(f"{engine.name}: {tokens} tokens, not {expected[i]}")
            expected[i] = tokens
            if repeat:  # the first is the warm-up
                total_s[i].append(seconds)
                encoder_s[i] += [] if engine.encoder_s is None else [engine.encoder_s]
        rates = probe.read_bytes_per_s(), probe.flops_per_s()
        if repeat:
            read.append(rates[0])
            flops.append(rates[1])
    samples = []
    best: dict[int, list[list[int]]] = {}  # of the first engine with G kv heads
    for i, engine in enumerate(engines):
        own = [sentence[0] for sentence in engine.hypotheses(found[i])]
        first = best.setdefault(engine.num_kv_heads, own)
        is_comparable = forced is None or engine.name != "ctranslate2"
        work = engine.work(found[i])
        peak, kind = memory.get((engine.name, engine.num_kv_heads), (None, None))
        samples.append(
            EngineSamples(
                engine=engine.name,
                num_kv_heads=engine.num_kv_heads,
                tokens_produced=sum(map(len, own)),
                differing=sum(a != b for a, b in zip(own, first, strict=True))
                if is_comparable
                else None,
                bleu_0_100=workload.bleu(own) if workload.bleu else None,
                total_s=total_s[i],
                encoder_s=encoder_s[i] or None,
                bytes_by_part=work.bytes_by_part,
                flops=work.flops,
                peak_memory_bytes=peak,
                peak_memory_kind=kind,
            )
        )
    return Comparison(
        workload=info,
        warmup_runs=1,
        engines=samples,
        read_bytes_per_s=read,
        matrix_flops_per_s=flops,
    )


def peak_memory_in_fresh_process(
    spec: WorkloadSpec, engine: str, num_kv_heads: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, MemoryKind]:
    """Largest memory while one engine does the workload once, alone in a new process.

    Raises:
        ExperimentError: the process was ended, as by a system that is out of memory.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_peak_memory, spec, engine, num_kv_heads, device, dtype).result()
    except BrokenProcessPool:
        raise ExperimentError(
            f"{engine}, G = {num_kv_heads}: the process that measures memory ended: out of memory?"
        ) from None


def _peak_memory(
    spec: WorkloadSpec, engine: str, num_kv_heads: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, MemoryKind]:
    """Runs in the new process. Building the model is over before the count starts."""
    _quieten_fairseq()
    built = build_engine(engine, num_kv_heads, spec.load(), device, dtype, is_alone=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        built.translate()
        return torch.cuda.max_memory_allocated(device), "cuda_allocated"
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")  # Linux: the peak starts again
        built.translate()
        lines = (_PROC / "status").read_text(encoding="ascii").split("\n")
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024, "process_rss"
    except OSError:
        built.translate()
        return max_rss_bytes(resource.getrusage(resource.RUSAGE_SELF)), "process_rss"


def _quieten_fairseq() -> None:
    """Else it has a line for every dictionary."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)


def show(paths: list[Path]) -> None:
    """Prints the Markdown tables of earlier runs."""
    print(markdown([read_json(path, ComparisonReport) for path in paths]), end="")


def _specs(args: argparse.Namespace) -> list[WorkloadSpec]:
    if args.job:
        beams = args.beams or [None, 1]
        return [JobText(job, beam) for job in args.job for beam in beams]
    shapes = [(*shape, beam) for shape in args.shapes for beam in args.beams or [4, 1]]
    return [FixedLengths(args.size, args.vocab_size, *shape) for shape in shapes]


def run(args: argparse.Namespace) -> None:
    """Measures, prints a table a workload, and writes the file anew after each."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ExperimentError("no CUDA device is there (use --device cpu)")
    engines = args.engines or [engine for engine in EXACT_ENGINES if is_installed(engine)]
    if not args.engines and len(engines) < len(EXACT_ENGINES):
        print(
            "ctranslate2 is not installed and left out (pip install ctranslate2)", file=sys.stderr
        )
    _quieten_fairseq()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    code = provenance.code_info()  # what runs, whatever is committed meanwhile
    comparisons: list[Comparison] = []
    for spec in _specs(args):
        comparison = compare(spec, engines, args.kv_heads, args.repeats, args.memory, device, dtype)
        comparisons.append(comparison)
        width = None if sys.stdout.isatty() else TABLE_WIDTH
        Console(width=width).print(terminal_table(comparison))
        if args.out:
            report = ComparisonReport(
                created_utc=datetime.now(UTC),
                versions=provenance.versions(),
                hardware=provenance.hardware(),
                code=code,
                device=args.device,
                dtype=args.dtype,
                threads=torch.get_num_threads(),
                operators=operators_name(torch.empty(0, device=device, dtype=dtype)),
                comparisons=comparisons,
            )
            write_json(args.out, report)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxSOURCExTARGET, such as 32x128x64")
    batch, source, target = map(_number, parts)
    if target < 2:
        raise argparse.ArgumentTypeError("a target has 2 tokens at least, one ends the sentence")
    return batch, source, target


def _engine(text: str) -> str:
    if text not in ENGINES:
        raise argparse.ArgumentTypeError(f"unknown engine {text!r}: choose of {', '.join(ENGINES)}")
    return text


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argparse type: comma-separated values."""
    return lambda text: [kind(part) for part in text.split(",")]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print its usage as well."""
        raise ExperimentError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shapes",
        type=_list_of(_shape),
        default=[(32, 128, 64)],
        help="fixed lengths, BATCHxSOURCExTARGET in tokens, several with commas",
    )
    what.add_argument(
        "--job", type=Path, action="append", help="the folder of a trained job: its test set"
    )
    what.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="tables of --out files")
    numbers = _list_of(_number)
    parser.add_argument("--size", choices=sorted(SHAPES), default="wmt_en_de", help="with --shapes")
    parser.add_argument("--vocab-size", type=_number, default=32000, help="with --shapes")
    parser.add_argument("--kv-heads", type=numbers, default=[8], help="with --shapes; 8,1")
    parser.add_argument(
        "--engines", type=_list_of(_engine), help="default: all but gqa+int8 that are installed"
    )
    parser.add_argument("--beams", type=numbers, help="default: 4 (or the job's) and 1")
    parser.add_argument("--repeats", type=_number, default=5, help="after one warm-up")
    parser.add_argument("--memory", action="store_true", help="peak memory, in fresh processes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--out", type=Path, help="write every raw sample to this JSON file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Compares engines; returns the exit code."""
    try:
        args = _parser().parse_args(arguments)
        if args.show:
            show(args.show)
        else:
            run(args)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
