"""CTranslate2, where it is installed, with the same weights in its own form (multi-head only)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.engines.engine import Engine, Inputs, Translator, multi_head_only
from experiments.errors import ExperimentError
from experiments.records.checked import Device
from experiments.tied import tie_to
from gqa_fairseq.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from fairseq.data import Dictionary


def is_installed() -> bool:
    return importlib.util.find_spec("ctranslate2") is not None


class CTranslate2(Engine):
    """Its encoder is not told apart, and it ends a forced length in its own way."""

    name = "ctranslate2"
    help = "CTranslate2, if it is installed (multi-head only; its encoder is not timed apart)"
    ends_as_forced = False

    def refusal(self, architecture: Architecture, device: Device, dtype: str) -> str | None:
        if not is_installed():
            return f"{self.name} is not installed (pip install ctranslate2)"
        return multi_head_only(self.name, architecture)

    def sees_memory(self, device: Device) -> bool:
        """It takes a GPU's memory itself, where torch does not see it."""
        return device == "cpu"

    def start(
        self,
        model: Any,
        dictionary: Dictionary,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> Translator:
        return CTranslate2Translator(model, dictionary, device, dtype, is_alone)


class CTranslate2Translator(Translator):
    """Unless it is alone, it works in a process of its own.

    In this one its threads and PyTorch's slowed each other, PyTorch's engines by a quarter.
    """

    def __init__(
        self,
        model: Any,
        dictionary: Dictionary,
        device: torch.device,
        dtype: torch.dtype,
        is_alone: bool,
    ) -> None:
        import torch

        self.dictionary = dictionary
        self.pieces = ["<blank>" if s == "<pad>" else s for s in dictionary.symbols]
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        self.folder = tempfile.TemporaryDirectory()  # as long as the process may read it
        _convert(model, self.pieces).save(self.folder.name)
        start = partial(
            _start,
            self.folder.name,
            device=device.type,
            compute_type=str(dtype).removeprefix("torch."),
            intra_threads=torch.get_num_threads(),
        )
        self.pool: Executor
        if is_alone:
            self.pool = ThreadPoolExecutor(1, initializer=start)
        else:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, context, _start_tied, (os.getpid(), start))

    def load(self, inputs: Inputs) -> None:
        self.inputs = inputs
        padding = self.dictionary.pad()
        self.calls = [
            _arguments(batch["src_tokens"], inputs, self.pieces, padding)
            for batch in inputs.batches
        ]

    def translate(self) -> list[list[Any]]:
        try:
            return self.pool.submit(_translate, self.calls).result()
        except (RuntimeError, ValueError) as error:  # no CUDA in it, or a type that it lacks
            raise ExperimentError(f"ctranslate2: {error} (choose other engines)") from error

    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        end = [] if self.inputs.target_tokens else [self.dictionary.eos()]
        return [
            [[self.ids[piece] for piece in pieces] + end for pieces in sentence]
            for batch in found
            for sentence in batch
        ]

    def close(self) -> None:
        self.pool.shutdown()


def _arguments(
    source: torch.Tensor, inputs: Inputs, pieces: list[str], padding: int
) -> dict[str, Any]:
    """Of translate_batch, with fairseq's limits for this batch [B, S].

    CTranslate2 does not count the end of the sentence. Where a length is forced, it is made to find
    one token more and no end, so that it takes as many steps.
    """
    search = inputs.search
    longest = int(search.get("max_len_a", 0) * source.shape[1] + search["max_len_b"])
    longest = min(longest, inputs.max_positions - 1)
    forced = inputs.target_tokens
    return {
        "source": [[pieces[i] for i in row if i != padding] for row in source.tolist()],
        "beam_size": search["beam_size"],
        "num_hypotheses": search["beam_size"],
        "length_penalty": search.get("len_penalty", 1.0),
        "max_batch_size": 0,
        "max_input_length": 0,
        "min_decoding_length": forced or 1,
        "max_decoding_length": forced or longest,
    }


_running: Any = None  # CTranslate2's translator of this process


def _start_tied(parent: int, start: Callable[[], None]) -> None:
    tie_to(parent)
    start()


def _start(folder: str, **options: Any) -> None:
    import ctranslate2

    global _running
    _running = ctranslate2.Translator(folder, **options)


def _translate(calls: list[dict[str, Any]]) -> list[list[list[list[str]]]]:
    """Pieces of the hypotheses of every sentence, batch by batch."""
    return [
        [result.hypotheses for result in _running.translate_batch(**arguments)]
        for arguments in calls
    ]


def _convert(model: Any, pieces: list[str]) -> Any:
    """The model as a CTranslate2 specification, by the parts of its own converter for fairseq."""
    import ctranslate2
    import torch
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


CTRANSLATE2 = CTranslate2()
