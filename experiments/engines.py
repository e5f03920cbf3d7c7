"""Decoding engines that translate the same workload with the same weights.

    gqa           the plugin's model and search
    gqa+stock     the plugin's model (cache and step) under fairseq's search
    gqa+torch     as gqa, with PyTorch's operators in place of the plugin's own for the CPU
    gqa+int8      as gqa, with linear layers in 8 bits (on a CPU in float32)
    stock         fairseq's own Transformer and search (multi-head only)
    stock+beams   the same with the per-sentence cross-attention it offers where a model defines
                  `set_beam_size`, which of its models BART alone does
    ctranslate2   CTranslate2, if it is installed (multi-head only; its encoder is not timed apart)

Weights without biases get zeros for those that stock fairseq cannot do without.
"""

from __future__ import annotations

import copy
import importlib.util
import multiprocessing
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerModelBase
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from experiments.errors import ExperimentError
from experiments.machine import now
from experiments.workloads import Workload
from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.decoding.traffic import DecoderShape, Work, decoding_work
from gqa_fairseq.model import GroupedQueryTransformerModel

TORCH_ENGINE = "gqa+torch"
FAIRSEQ_ENGINES = ("gqa", "gqa+stock", TORCH_ENGINE, "stock", "stock+beams")
EXACT_ENGINES = (*FAIRSEQ_ENGINES, "ctranslate2")
INT8_ENGINE = "gqa+int8"
ENGINES = (*EXACT_ENGINES, INT8_ENGINE)
MULTI_HEAD_ENGINES = ("stock", "stock+beams", "ctranslate2")  # they know G = heads alone


class TimedModel(EnsembleModel):
    """One model as fairseq's generators see it; adds up the seconds of its encoder."""

    def __init__(self, model: BaseFairseqModel) -> None:
        super().__init__([model])
        self.encoder_s = 0.0

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list:
        device = net_input["src_tokens"].device
        started = now(device)
        encoded = super().forward_encoder(net_input)
        self.encoder_s += now(device) - started
        return encoded


class Engine(ABC):
    """Translates all batches of a workload; what it found is read when the clock has stopped."""

    encoder_s: float | None = None  # of the last run

    def __init__(self, name: str, workload: Workload, shape: DecoderShape) -> None:
        self.name = name
        self.num_kv_heads = shape.num_kv_heads
        self.workload = workload
        self.shape = shape

    @abstractmethod
    def translate(self) -> list[list[Any]]:
        """Hypotheses of every sentence, batch by batch, in the engine's own form."""

    @abstractmethod
    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        """Each sentence's hypotheses in that order, best first: tokens with the end of sentence."""

    def work(self, found: list[list[Any]]) -> Work:
        """What this plugin's decoder moves and computes for these hypotheses.

        A sentence leaves its batch with its longest hypothesis.
        """
        steps = [max(map(len, sentence)) for sentence in self.hypotheses(found)]
        total, first = Work(), 0
        for batch in self.workload.batches:
            sentences, source_tokens = batch["src_tokens"].shape
            total += decoding_work(
                self.shape,
                beam=self.workload.info.beam,
                source_tokens=source_tokens,
                steps=steps[first : first + sentences],
            )
            first += sentences
        return total


class FairseqEngine(Engine):
    """The plugin's or fairseq's own generator over either's model."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        shape: DecoderShape,
        model: BaseFairseqModel,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(name, workload, shape)
        model.to(device=device, dtype=dtype).eval()
        model.make_generation_fast_(need_attn=False)
        if name == TORCH_ENGINE:
            model.decoder.is_native = False
        if name == INT8_ENGINE:
            try:
                quantize_int8(model)
            except ValueError as error:
                raise ExperimentError(f"{name}: {error}") from error
        self.model = model
        self.timed = TimedModel(model)
        is_ours = name in ("gqa", TORCH_ENGINE, INT8_ENGINE)
        kind = GroupedQueryGenerator if is_ours else SequenceGenerator
        self.generator = kind(self.timed, workload.dictionary, **workload.search)
        self.samples = [
            {"net_input": {key: value.to(device) for key, value in batch.items()}}
            for batch in workload.batches
        ]

    def translate(self) -> list[list[Any]]:
        self.timed.encoder_s = 0.0
        found = [self.generator.generate([self.model], sample) for sample in self.samples]
        self.encoder_s = self.timed.encoder_s
        return found

    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        return [[h["tokens"].tolist() for h in sentence] for batch in found for sentence in batch]


class CTranslate2Engine(Engine):
    """The same weights in CTranslate2's form. Raises ExperimentError if it is not installed.

    Unless `is_here`, it works in a process of its own: in this one its threads and PyTorch's slowed
    each other, PyTorch's engines by a quarter.
    """

    def __init__(
        self,
        workload: Workload,
        shape: DecoderShape,
        model: GroupedQueryTransformerModel,
        device: torch.device,
        dtype: torch.dtype,
        is_here: bool,
    ) -> None:
        super().__init__("ctranslate2", workload, shape)
        if not is_installed("ctranslate2"):
            raise ExperimentError(
                "ctranslate2 is not installed (pip install ctranslate2, or choose other --engines)"
            )
        dictionary = workload.dictionary
        self.pieces = ["<blank>" if s == "<pad>" else s for s in dictionary.symbols]
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        self.eos = dictionary.eos()
        self.folder = tempfile.TemporaryDirectory()  # as long as the translator may read it
        _convert(model, self.pieces).save(self.folder.name)
        start = partial(
            _start_translator,
            self.folder.name,
            device=device.type,
            compute_type=str(dtype).removeprefix("torch."),
            intra_threads=torch.get_num_threads(),
        )
        self.pool: Executor
        if is_here:
            self.pool = ThreadPoolExecutor(1, initializer=start)
        else:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=start)
        self.calls = [self._arguments(batch["src_tokens"]) for batch in workload.batches]

    def _arguments(self, source: Tensor) -> dict[str, Any]:
        """Of translate_batch, with fairseq's limits for this batch [B, S].

        CTranslate2 does not count the end of the sentence. Where a length is forced, it is made to
        find one token more and no end, so that it takes as many steps.
        """
        search, pad = self.workload.search, self.workload.dictionary.pad()
        longest = int(search.get("max_len_a", 0) * source.shape[1] + search["max_len_b"])
        longest = min(longest, self.workload.info.max_positions - 1)
        forced = self.workload.info.target_tokens
        return {
            "source": [[self.pieces[i] for i in row if i != pad] for row in source.tolist()],
            "beam_size": search["beam_size"],
            "num_hypotheses": search["beam_size"],
            "length_penalty": search.get("len_penalty", 1.0),
            "max_batch_size": 0,
            "max_input_length": 0,
            "min_decoding_length": forced or 1,
            "max_decoding_length": forced or longest,
        }

    def translate(self) -> list[list[Any]]:
        try:
            return self.pool.submit(_translate, self.calls).result()
        except (RuntimeError, ValueError) as error:  # no CUDA in it, or a type that it lacks
            raise ExperimentError(f"ctranslate2: {error} (choose other --engines)") from error

    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        end = [] if self.workload.info.target_tokens else [self.eos]
        return [
            [[self.ids[piece] for piece in pieces] + end for pieces in sentence]
            for batch in found
            for sentence in batch
        ]


_translator: Any = None  # of the one CTranslate2Engine that this process works for


def _start_translator(folder: str, **options: Any) -> None:
    import ctranslate2

    global _translator
    _translator = ctranslate2.Translator(folder, **options)


def _translate(calls: list[dict[str, Any]]) -> list[list[list[list[str]]]]:
    """Pieces of the hypotheses of every sentence, batch by batch."""
    return [
        [result.hypotheses for result in _translator.translate_batch(**arguments)]
        for arguments in calls
    ]


class PerSentenceTransformer(TransformerModelBase):
    """Stock Transformer with the hook that switches on its per-sentence cross-attention."""

    def set_beam_size(self, beam: int) -> None:
        for layer in self.decoder.layers:
            layer.encoder_attn.set_beam_size(beam)


def build_engine(
    name: str,
    num_kv_heads: int,
    workload: Workload,
    device: torch.device,
    dtype: torch.dtype,
    is_alone: bool = False,
) -> Engine:
    """One of ENGINES with a model of its own; raises ExperimentError if it is not installed.

    `is_alone`: no other engine works in this process.
    """
    model = workload.build_model(num_kv_heads)
    shape = DecoderShape.of(model.decoder, dtype.itemsize)
    if name == "ctranslate2":
        return CTranslate2Engine(workload, shape, model, device, dtype, is_here=is_alone)
    used: BaseFairseqModel = model
    if name in ("stock", "stock+beams"):
        used = stock_model(model, workload, is_per_sentence=name == "stock+beams")
    return FairseqEngine(name, workload, shape, used, device, dtype)


def is_installed(engine: str) -> bool:
    """Whether the engine can be built here; all but CTranslate2 come with the suite."""
    return engine != "ctranslate2" or importlib.util.find_spec(engine) is not None


def stock_model(
    model: GroupedQueryTransformerModel, workload: Workload, is_per_sentence: bool
) -> TransformerModelBase:
    """fairseq's Transformer with the model's weights, and zeros for the biases it must have."""
    kind = PerSentenceTransformer if is_per_sentence else TransformerModelBase
    task = SimpleNamespace(
        source_dictionary=workload.dictionary, target_dictionary=workload.dictionary
    )
    stock = kind.build_model(copy.deepcopy(model.cfg), task)
    state = model.state_dict()
    for name, parameter in stock.state_dict().items():
        if name.endswith(".bias") and name not in state:
            state[name] = torch.zeros_like(parameter)
    stock.load_state_dict(state, strict=True)
    return stock


def _convert(model: GroupedQueryTransformerModel, pieces: list[str]) -> Any:
    """The model as a CTranslate2 specification, by the parts of its own converter for fairseq."""
    import ctranslate2
    from ctranslate2.converters import fairseq as converter

    layers = (len(model.encoder.layers), len(model.decoder.layers))
    first = model.decoder.layers[0]
    spec = ctranslate2.specs.TransformerSpec.from_config(
        layers, first.self_attn.num_heads, pre_norm=first.normalize_before
    )
    with torch.no_grad():
        model.requires_grad_(False)
        converter.set_transformer_encoder(spec.encoder, model.encoder)
        converter.set_transformer_decoder(spec.decoder, model.decoder)
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.decoder_start_token = spec.config.eos_token
    spec.validate()
    spec.optimize()
    return spec
