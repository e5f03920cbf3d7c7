"""Decoding engines side by side: the same weights, one process, interleaved runs.

    python -m experiments.engines                             # the paper's shape, MHA
    python -m experiments.engines --beams 1 --batch 8 --source 1024 --target 1024 --kv-heads 8,1

Every engine translates the same random sources to exactly `--target` tokens, in turn, so that a
machine that slows down slows all of them. Weights are random: time does not depend on them.
Quote ratios; the JSON of `--out` has every raw sample.

    gqa           the plugin's model and search
    gqa+stock     the plugin's model (cache and step) under fairseq's search
    stock         fairseq's own Transformer and search (multi-head only, zero biases)
    stock+beams   the same with the per-sentence cross-attention it offers where a model defines
                  `set_beam_size`, which of its models BART alone does
    ctranslate2   CTranslate2 in float32, if it is installed (multi-head only; total time alone)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments import provenance
from experiments.errors import ExperimentError
from experiments.storage import write_text
from gqa_fairseq.architectures import SHAPES
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.model import GroupedQueryTransformerConfig, GroupedQueryTransformerModel

ENGINES = ("gqa", "gqa+stock", "stock", "stock+beams", "ctranslate2")
STOCK_ENGINES = ("stock", "stock+beams", "ctranslate2")  # they know multi-head attention alone


@dataclass(frozen=True)
class Workload:
    """What every engine does: `batch` sources of `source` tokens to `target` tokens each."""

    size: str
    vocab_size: int
    batch: int
    source: int
    target: int
    beam: int


@dataclass
class Samples:
    """Raw times of one engine with G kv heads; encoder_s is empty where it cannot be told apart."""

    engine: str
    num_kv_heads: int
    workload: Workload
    total_s: list[float] = field(default_factory=list)
    encoder_s: list[float] = field(default_factory=list)

    @property
    def total_us_per_token(self) -> float:
        tokens = self.workload.batch * self.workload.target
        return statistics.median(self.total_s) * 1e6 / tokens

    @property
    def decoder_us_per_token(self) -> float | None:
        if not self.encoder_s:
            return None
        tokens = self.workload.batch * self.workload.target
        pairs = zip(self.total_s, self.encoder_s, strict=True)
        return statistics.median(total - encoder for total, encoder in pairs) * 1e6 / tokens


class PerSentenceTransformer(TransformerModel):
    """Stock Transformer with the hook that switches on its per-sentence cross-attention."""

    def set_beam_size(self, beam: int) -> None:
        for layer in self.decoder.layers:
            layer.encoder_attn.set_beam_size(beam)


@dataclass
class Engine:
    """`run` translates once and returns (tokens produced, encoder seconds or None)."""

    name: str
    num_kv_heads: int
    run: Callable[[], tuple[int, float | None]]


class Bench:
    """Builds the engines of one workload on one device."""

    def __init__(self, workload: Workload, device: torch.device, dtype: torch.dtype) -> None:
        self.workload, self.device, self.dtype = workload, device, dtype
        self.dictionary = Dictionary()
        for index in range(workload.vocab_size):
            self.dictionary.add_symbol(f"piece{index}")
        generator = torch.Generator().manual_seed(1)
        first = self.dictionary.nspecial
        shape = (workload.batch, workload.source)
        self.source = torch.randint(first, len(self.dictionary), shape, generator=generator)
        self.source[:, -1] = self.dictionary.eos()

    def engine(self, name: str, num_kv_heads: int) -> Engine:
        """Raises ExperimentError for an engine that is not installed."""
        model = self._model(num_kv_heads)
        if name == "ctranslate2":
            return Engine(name, num_kv_heads, self._ctranslate2(model))
        if name in ("stock", "stock+beams"):
            model = self._stock(model, per_sentence=name == "stock+beams")
        kind = GroupedQueryGenerator if name == "gqa" else SequenceGenerator
        return Engine(name, num_kv_heads, self._fairseq(kind, model))

    def _fairseq(self, kind: type, model: Any) -> Callable[[], tuple[int, float]]:
        """Generation with one of fairseq's generators; the encoder is timed apart."""
        model.to(device=self.device, dtype=self.dtype).eval()
        model.make_generation_fast_(need_attn=False)
        last = self.workload.target - 1  # and the end of the sentence
        generator = kind(
            [model], self.dictionary, beam_size=self.workload.beam, max_len_b=last, min_len=last
        )
        source = self.source.to(self.device)
        lengths = source.ne(self.dictionary.pad()).sum(1)
        sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
        encode, times = model.encoder.forward_torchscript, [0.0]

        def timed_encode(net_input: dict) -> dict:
            started = self._now()
            encoded = encode(net_input)
            times[0] = self._now() - started
            return encoded

        model.encoder.forward_torchscript = timed_encode  # what every generator calls

        def run() -> tuple[int, float]:
            hypotheses = generator.generate([model], sample)
            return sum(len(best[0]["tokens"]) for best in hypotheses), times[0]

        return run

    def _model(self, num_kv_heads: int) -> GroupedQueryTransformerModel:
        torch.manual_seed(0)
        needed = max(1024, self.workload.source, self.workload.target)
        options = SHAPES[self.workload.size] | {
            "num_kv_heads": num_kv_heads,
            "max_source_positions": needed,
            "max_target_positions": needed,
        }
        return GroupedQueryTransformerModel.build_model(
            GroupedQueryTransformerConfig(**options), self._task()
        )

    def _stock(self, model: GroupedQueryTransformerModel, per_sentence: bool) -> TransformerModel:
        """fairseq's Transformer with the model's weights, and zeros for the biases it must have."""
        own = model.state_dict()
        options = {k: getattr(model.cfg, k) for k in _FLAT_OPTIONS} | {"arch": "transformer"}
        kind = PerSentenceTransformer if per_sentence else TransformerModel
        stock = kind.build_model(Namespace(**options), self._task())
        state = {k: own.get(k, torch.zeros_like(v)) for k, v in stock.state_dict().items()}
        stock.load_state_dict(state, strict=True)
        return stock

    def _ctranslate2(self, model: GroupedQueryTransformerModel) -> Callable[[], tuple[int, None]]:
        try:
            import ctranslate2
            from ctranslate2.converters import fairseq as converter
        except ImportError:
            raise ExperimentError(
                "ctranslate2 is not installed: pip install it, or leave it out of --engines"
            ) from None
        work = self.workload
        layers, heads = len(model.decoder.layers), model.decoder.layers[0].self_attn.num_heads
        spec = ctranslate2.specs.TransformerSpec.from_config((layers, layers), heads, pre_norm=True)
        with torch.no_grad():
            model.requires_grad_(False)
            converter.set_transformer_encoder(spec.encoder, model.encoder)
            converter.set_transformer_decoder(spec.decoder, model.decoder)
        pieces = ["<blank>" if s == "<pad>" else s for s in self.dictionary.symbols]
        spec.register_source_vocabulary(pieces)
        spec.register_target_vocabulary(pieces)
        spec.config.decoder_start_token = spec.config.eos_token
        spec.validate()
        spec.optimize()
        self._folder = tempfile.TemporaryDirectory()  # as long as the translator may read it
        spec.save(self._folder.name)
        translator = ctranslate2.Translator(
            self._folder.name, device="cpu", intra_threads=torch.get_num_threads()
        )
        source = [[pieces[i] for i in row] for row in self.source.tolist()]

        def run() -> tuple[int, None]:
            last = work.target
            results = translator.translate_batch(
                source,
                beam_size=work.beam,
                max_batch_size=0,
                min_decoding_length=last,
                max_decoding_length=last,
                max_input_length=0,
            )
            return sum(len(result.hypotheses[0]) for result in results), None

        return run

    def _task(self) -> Any:
        return SimpleNamespace(source_dictionary=self.dictionary, target_dictionary=self.dictionary)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


_PER_SIDE = (
    "embed_dim",
    "ffn_embed_dim",
    "layers",
    "attention_heads",
    "normalize_before",
    "learned_pos",
)
_FLAT_OPTIONS = [
    "activation_fn",
    "dropout",
    "attention_dropout",
    "share_all_embeddings",
    "max_source_positions",
    "max_target_positions",
    *(f"{side}_{name}" for side in ("encoder", "decoder") for name in _PER_SIDE),
]


def measure(
    workload: Workload,
    engines: list[str],
    kv_heads: list[int],
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Samples]:
    """Runs all engines in turn, `repeats` times after one warm-up each.

    Raises:
        ExperimentError: an engine is not installed, or produced another number of tokens.
    """
    bench = Bench(workload, device, dtype)
    heads = SHAPES[workload.size]["encoder_attention_heads"]
    built = [
        bench.engine(name, g)
        for g in kv_heads
        for name in engines
        if g == heads or name not in STOCK_ENGINES
    ]
    samples = [Samples(engine.name, engine.num_kv_heads, workload) for engine in built]
    label = f"beam {workload.beam}, {workload.batch} x {workload.source} -> {workload.target}"
    for repeat in track(range(repeats + 1), description=label, console=Console(stderr=True)):
        for engine, sample in zip(built, samples, strict=True):
            started = bench._now()
            produced, encoder_s = engine.run()
            total_s = bench._now() - started
            if produced != workload.batch * workload.target:
                raise ExperimentError(
                    f"{engine.name} produced {produced} tokens, "
                    f"not {workload.batch} x {workload.target}"
                )
            if repeat:  # the first is the warm-up
                sample.total_s.append(total_s)
                if encoder_s is not None:
                    sample.encoder_s.append(encoder_s)
    return samples


def show(samples: list[Samples]) -> None:
    """The table on the terminal: microseconds per output token, and times as fast as the first."""
    work = samples[0].workload
    title = (
        f"{work.size}, beam {work.beam}, batch {work.batch}, source {work.source}, "
        f"target {work.target}; medians of {len(samples[0].total_s)}, us per output token"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("engine", "G", "decoder", "total", "decoder x", "total x"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    first = samples[0]
    for row in samples:
        decoder, reference = row.decoder_us_per_token, first.decoder_us_per_token
        table.add_row(
            row.engine,
            str(row.num_kv_heads),
            "-" if decoder is None else f"{decoder:,.0f}",
            f"{row.total_us_per_token:,.0f}",
            "-" if decoder is None or reference is None else f"{decoder / reference:.2f}",
            f"{row.total_us_per_token / first.total_us_per_token:.2f}",
        )
    Console(width=100).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Compares engines; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = _list_of(int)
    parser.add_argument("--size", choices=sorted(SHAPES), default="wmt_en_de")
    parser.add_argument("--engines", type=_list_of(str), default=list(ENGINES))
    parser.add_argument("--kv-heads", type=numbers, default=[8])
    parser.add_argument("--beams", type=numbers, default=[4, 1])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--source", type=int, default=128, help="tokens a source")
    parser.add_argument("--target", type=int, default=64, help="tokens a target, exactly")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--out", type=Path, help="write every raw sample to this JSON file")
    args = parser.parse_args(arguments)
    results: list[Samples] = []
    try:
        unknown = sorted(set(args.engines) - set(ENGINES))
        if unknown:
            raise ExperimentError(f"unknown engine {unknown[0]} (choose of {', '.join(ENGINES)})")
        for beam in args.beams:
            workload = Workload(
                args.size, args.vocab_size, args.batch, args.source, args.target, beam
            )
            samples = measure(
                workload,
                args.engines,
                args.kv_heads,
                args.repeats,
                torch.device(args.device),
                getattr(torch, args.dtype),
            )
            show(samples)
            results += samples
        if args.out:
            _write(args.out, results, args)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(path: Path, results: list[Samples], args: Namespace) -> None:
    report = {
        "versions": provenance.versions(),
        "hardware": msgspec.to_builtins(provenance.hardware()),
        "code": msgspec.to_builtins(provenance.code_info()),
        "threads": torch.get_num_threads(),
        "device": args.device,
        "dtype": args.dtype,
        "samples": [asdict(sample) for sample in results],
    }
    write_text(path, msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")


def _list_of(kind: type) -> Callable[[str], list]:
    """An argparse type: comma-separated values."""
    return lambda text: [kind(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
