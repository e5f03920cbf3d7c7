"""fairseq's generators, or the plugin's, over a model of either: one translator for both."""

from __future__ import annotations

from typing import Any

from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from experiments.engines.clock import now
from experiments.engines.engine import Inputs, Translator


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


class FairseqTranslator(Translator):
    """A generator of class `search` with `model`, which is on its device already."""

    def __init__(
        self,
        model: BaseFairseqModel,
        dictionary: Dictionary,
        search: Any,
        has_plugin_cache: bool,
    ) -> None:
        model.eval()
        model.make_generation_fast_(need_attn=False)
        self.model = model
        self.dictionary = dictionary
        self.search = search
        self.timed = TimedModel(model)
        self.generator: Any = None
        self._cache: Any = None  # of the watched run
        self._is_watched = False
        if has_plugin_cache:
            self._keep_cache_of(model.decoder)
        self._has_plugin_cache = has_plugin_cache

    def load(self, inputs: Inputs) -> None:
        self.generator = None  # the last one's memory goes first
        self.generator = self.search(self.timed, self.dictionary, **inputs.search)
        if hasattr(self.model, "set_beam_size"):
            # fairseq calls it for beams alone: a greedy search would keep the width of the last.
            self.model.set_beam_size(inputs.search["beam_size"])
        device = next(self.model.parameters()).device
        self.samples = [
            {"net_input": {key: value.to(device) for key, value in batch.items()}}
            for batch in inputs.batches
        ]

    def translate(self) -> list[list[Any]]:
        self.timed.encoder_s = 0.0
        found = [self.generator.generate([self.model], sample) for sample in self.samples]
        self.encoder_s = self.timed.encoder_s
        return found

    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        return [[h["tokens"].tolist() for h in sentence] for batch in found for sentence in batch]

    def watch_cache(self) -> None:
        self._is_watched = self._has_plugin_cache

    def held_cache_bytes(self) -> dict[str, int] | None:
        if not self._is_watched:
            return None
        # A search on a GPU has its cache in memory of its own.
        cache = self._cache or self.generator.gpu_search.cache
        self._cache, self._is_watched = None, False
        return cache.nbytes

    def _keep_cache_of(self, decoder: Any) -> None:
        start_cache = type(decoder).start_cache

        def start_and_keep(encoder_out: dict, beam: int) -> Any:
            cache = start_cache(decoder, encoder_out, beam)
            if self._is_watched:
                self._cache = cache
            return cache

        decoder.start_cache = start_and_keep
