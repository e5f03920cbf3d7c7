"""The search that fairseq sees: greedy, beam search and sampling over the compact cache.

Returns what fairseq's SequenceGenerator returns for the same options, and costs less a step: no
gather of the encoder output or the cache, one pass over the vocabulary to normalize and one to
find the best, and sentences that finish leave the batch. It makes the choices (beams.Chooser) out
of the options, picks the driver that takes the steps, and owns the memory: a batch that would not
fit is split. What the plugin does not support runs in fairseq's own search, with a note in the
log: never a silently different result.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from weakref import ref

import torch
from fairseq import search
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from gqa_fairseq.decoding.beams import (
    BeamSearch,
    Chooser,
    DiverseGroups,
    Finished,
    Sampling,
    Strategy,
    ranked,
)
from gqa_fairseq.decoding.cpu.search import search_on_host
from gqa_fairseq.decoding.gpu.search import GpuSearch, shape_of, source_edges
from gqa_fairseq.decoding.memory import BatchShape, Capacity, free_bytes, predicted_bytes
from gqa_fairseq.decoding.options import Option
from gqa_fairseq.decoding.rules import (
    OWN_OPTIONS,
    Temperature,
    forbid_repeats,
    penalty_of,
    rules_of,
)
from gqa_fairseq.decoding.weights import keeps_dropout
from gqa_fairseq.finite import require_finite
from gqa_fairseq.on_demand import Hypothesis

logger = logging.getLogger(__name__)


class _RepeatBlock(NGramRepeatBlock):
    """fairseq's, for its search; its own code without a GPU finds no repetition."""

    def __init__(self, size: int) -> None:
        super().__init__(size, use_extension=False)

    def _no_repeat_ngram(self, tokens, lprobs, bsz: int, beam_size: int, step: int):
        forbid_repeats(lprobs, tokens[:, 1 : step + 1], self.no_repeat_ngram_size)
        return lprobs


def _own_options(arguments: dict[str, Any]) -> dict[Option, Any]:
    """Takes the plugin's own options out of a search's arguments, checked."""
    found = {}
    for option in OWN_OPTIONS:
        value = arguments.pop(option.name, option.default)
        try:
            found[option] = value if value == option.default else option.checked(value)
        except ValueError as error:
            raise ValueError(f"{option.flag}: {error}") from error
    return found


class GroupedQueryGenerator(SequenceGenerator):
    """fairseq's SequenceGenerator with the decoding engine underneath.

    Args:
        kwargs: fairseq's, and the plugin's own options by their names (rules.OWN_OPTIONS), which
            become attributes, as fairseq's do.
        memory_limit_bytes: the cache may take this much; a larger batch is split. None asks the
            machine.
        driver: which one takes the steps. `cpu` (cpu/search.py) runs every option, on any device;
            `gpu` (gpu/search.py) gives way to it where its `refusal` says so. None: `gpu` where the
            model is on a GPU.

    Raises:
        ValueError: an own option out of its range, or with an option that only fairseq's own search
            supports; beams that are no multiple of their groups; or weights that are infinite or no
            numbers.
    """

    def __init__(
        self,
        models,
        tgt_dict,
        *args,
        memory_limit_bytes: int | None = None,
        driver: Literal["cpu", "gpu"] | None = None,
        **kwargs,
    ) -> None:
        own = _own_options(kwargs)
        super().__init__(models, tgt_dict, *args, **kwargs)
        for model in self.model.models:
            require_finite(model.named_parameters())
        for option, value in own.items():
            setattr(self, option.name, value)
        self.memory_limit_bytes = memory_limit_bytes
        self.driver = driver
        self._gpu_search: GpuSearch | None = None
        blocker = getattr(self, "repeat_ngram_blocker")  # noqa: B009  mypy cannot tell its type
        if blocker is not None:
            self.repeat_ngram_blocker = _RepeatBlock(blocker.no_repeat_ngram_size)
        is_diverse = isinstance(self.search, search.DiverseBeamSearch)
        if is_diverse and self.beam_size % self.search.num_groups:
            raise ValueError(
                f"--diverse-beam-groups {self.search.num_groups} does not divide --beam "
                f"{self.beam_size}"
            )
        self.fallback_reason = self._unsupported()
        if self.fallback_reason:
            for option, value in own.items():
                if value != option.default:
                    raise ValueError(f"{option.flag} does not work with {self.fallback_reason}")
            logger.warning("using fairseq's own search: %s", self.fallback_reason)

    def _unsupported(self) -> str | None:
        """Why fairseq's own search has to do it, or None."""
        reasons = {
            "an ensemble of models": self.model.models_size > 1,
            "a model that is not of this plugin": not hasattr(
                getattr(self.model.single_model, "decoder", None), "start_cache"
            ),
            "a language model": self.lm_model is not None,
            "--match-source-len": self.match_source_len,
            f"the search strategy {type(self.search).__name__}": type(self.search)
            not in (search.BeamSearch, search.Sampling, search.DiverseBeamSearch),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    @torch.no_grad()
    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Hypotheses of every sentence, best first, as fairseq returns them."""
        if self.fallback_reason or constraints is not None:
            if isinstance(self.search, search.DiverseBeamSearch):
                # It takes the lines' numbers in the text for their places in the batch.
                sample = {key: value for key, value in sample.items() if key != "id"}
            return super()._generate(sample, prefix_tokens, constraints, bos_token)
        source = sample["net_input"]["src_tokens"]
        batch, width = source.shape
        max_len = min(int(self.max_len_a * width + self.max_len_b), self.max_len - 1)
        if self.min_len > max_len:
            raise ValueError(f"min_len {self.min_len} is above the longest target, {max_len}")
        chooser = self._chooser(source, prefix_tokens)
        if batch == 1 or self._fits(source, max_len, chooser):
            try:
                return self._search(sample["net_input"], max_len, chooser, bos_token)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                logger.warning("%d sentences do not fit in memory: trying half of them", batch)
                self.release()
        return self._in_halves(sample, prefix_tokens, bos_token)

    def _chooser(self, source: Tensor, prefix: Tensor | None) -> Chooser:
        """The choices of one batch [B, S] with this generator's options."""
        strategies: dict[type, Strategy] = {
            search.BeamSearch: BeamSearch(),
            search.Sampling: Sampling(self.search.step),
            search.DiverseBeamSearch: DiverseGroups(self.search.step),
        }
        return Chooser(
            beam=self.beam_size,
            eos=self.eos,
            temperature=Temperature(self.temperature),
            rules=rules_of(self, source, prefix),
            strategy=strategies[type(self.search)],
        )

    def _search(
        self, net_input: dict, max_len: int, chooser: Chooser, bos_token: int | None
    ) -> list[list[dict[str, Tensor]]]:
        decoder = self.model.single_model.decoder
        encoder_out = self.model.forward_encoder(net_input)[0]
        first = self.eos if bos_token is None else bos_token
        edges = None
        if self._takes_gpu(net_input["src_tokens"].device, chooser):
            padding = self.model.single_model.encoder.padding_idx
            edges = source_edges(net_input["src_tokens"].eq(padding))
        if edges is not None:
            found = self._search_on_gpu(encoder_out, edges, max_len, first, chooser)
        else:
            chooser = replace(chooser, native=decoder.decoding_weights().native)
            cache = decoder.start_cache(encoder_out, self.beam_size)
            del encoder_out  # its keys and values are in the cache
            found = search_on_host(decoder, chooser, cache, max_len, first)
        penalty = penalty_of(self)
        best_first = [ranked(hypotheses, penalty) for hypotheses in found]
        model = self.model.single_model
        if keeps_dropout(model):  # another pass would draw anew, and see another attention
            return best_first
        searched_with = ref(decoder.decoding_weights())
        for source, hypotheses in zip(net_input["src_tokens"], best_first, strict=True):
            attention = partial(_attention, model, searched_with, source, first)
            hypotheses[:] = [Hypothesis(h, partial(attention, h["tokens"])) for h in hypotheses]
        return best_first

    def _takes_gpu(self, device: torch.device, chooser: Chooser) -> bool:
        """Whether the GPU's driver is wanted there, and can do it."""
        wanted = self.driver or ("gpu" if device.type == "cuda" else "cpu")
        if self.model.single_model.decoder.runs_modules:
            return False  # a graph would repeat what they did when it was captured
        return wanted == "gpu" and GpuSearch.refusal(chooser, self.vocab_size) is None

    def _search_on_gpu(
        self,
        encoder_out: dict,
        edges: tuple[Tensor, Tensor],
        max_len: int,
        first: int,
        chooser: Chooser,
    ) -> list[list[Finished]]:
        """In memory that the next batches use again; hypotheses are on the host."""
        width, batch = encoder_out["encoder_out"][0].shape[:2]
        found = self._gpu_search_for(shape_of(batch, max_len + 1, width).capacity, chooser)
        source = self.model.single_model.decoder.source_keys_values(encoder_out)
        with torch.cuda.device_of(edges[0]):  # Triton launches on the current one
            return found.run(source, edges, width, max_len, first)

    # Memory: predicted before it is taken, and owned here.

    @property
    def gpu_search(self) -> GpuSearch | None:
        """What the GPU's driver searched the last batch with, and its memory."""
        if self._gpu_search is not None:  # it ends with the weights
            self.model.single_model.decoder.decoding_weights(self)
        return self._gpu_search

    def release(self) -> None:
        """Gives the GPU driver's memory back, as the decoder asks when its weights change."""
        self._gpu_search = None

    def _gpu_search_for(self, capacity: Capacity, chooser: Chooser) -> GpuSearch:
        """The last batch's if its memory suffices, else a new one."""
        decoder, wider, held = self.model.single_model.decoder, capacity, self.gpu_search
        if held is not None:
            if held.capacity.holds(capacity):
                return held
            wider = capacity.union(held.capacity)  # the next batch may be as the last one
            del held
            self.release()  # its memory first
        device = decoder.embed_tokens.weight.device
        if predicted_bytes(decoder, self.beam_size, wider) > self._free_bytes(device):
            wider = capacity
        weights = decoder.decoding_weights(self)
        self._gpu_search = GpuSearch(decoder, weights, chooser, wider)
        return self._gpu_search

    def _fits(self, source: Tensor, max_len: int, chooser: Chooser) -> bool:
        """Whether there is memory to search a batch [B, S], as far as can be told before."""
        shape = BatchShape(source.shape[0], max_len + 1, source.shape[1])
        if self._takes_gpu(source.device, chooser):
            shape = shape_of(*shape)
            held = self.gpu_search
            if held is not None and held.capacity.holds(shape.capacity):
                return True  # it is there
        decoder = self.model.single_model.decoder
        needed = predicted_bytes(decoder, self.beam_size, shape.capacity)
        return needed <= self._free_bytes(source.device)

    def _free_bytes(self, device: torch.device) -> int:
        if self.memory_limit_bytes is not None:
            return self.memory_limit_bytes
        held = self.gpu_search  # the last batch's memory can be let go
        return free_bytes(device) + (0 if held is None else held.cache.memory_bytes)

    def _in_halves(
        self, sample: dict[str, Any], prefix: Tensor | None, bos_token: int | None
    ) -> list[list[dict[str, Tensor]]]:
        """The batch as two, with the same padding, so that length limits stay what they were."""
        net_input = sample["net_input"]
        half = net_input["src_tokens"].shape[0] // 2
        hypotheses = []
        for part in (slice(None, half), slice(half, None)):
            piece = {k: None if v is None else v[part] for k, v in net_input.items()}
            own_prefix = None if prefix is None else prefix[part]
            hypotheses += self._generate({"net_input": piece}, own_prefix, None, bos_token)
        return hypotheses


@torch.no_grad()
def _attention(
    model: Any, searched_with: ref, source: Tensor, first: int, tokens: Tensor
) -> Tensor:
    """The last layer's attention [S, T] while `tokens` [T] were chosen, averaged over heads.

    Args:
        searched_with: the decoding weights of that search.
        source: [S], with its padding.
        first: the word before the first of `tokens`.

    Raises:
        RuntimeError: the model is not the one of the search any more.
    """
    if model.training or model.decoder.decoding_weights() is not searched_with():
        raise RuntimeError("the model has changed since the search: look at attention before that")
    before = torch.cat((tokens.new_tensor([first]), tokens[:-1]))[None].to(source.device)
    _, extra = model(source[None], source.new_tensor([len(source)]), before)
    return extra["attn"][0][0].T.float().to(tokens.device)
