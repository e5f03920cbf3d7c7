"""Greedy search, beam search and sampling over the compact cache.

Returns what fairseq's SequenceGenerator returns for the same options, and costs less a step: no
gather of the encoder output or the cache, one pass over the vocabulary to normalize and one to
find the best, and sentences that finish leave the batch. What it does not support runs in
fairseq's own search, with a note in the log: never a silently different result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import MutableMapping
from typing import Any

import psutil
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from gqa_fairseq.costs import cache_bytes
from gqa_fairseq.decoding.kernels import MAX_BEAM
from gqa_fairseq.decoding.native import Operators
from gqa_fairseq.decoding.static_beams import TokenRules
from gqa_fairseq.decoding.static_cache import Capacity, StaticShape
from gqa_fairseq.decoding.static_search import StaticSearch, shape_of, source_edges
from gqa_fairseq.decoding.top_k import top_k

logger = logging.getLogger(__name__)


class _Hypotheses:
    """The unfinished hypotheses of all sentences still in the batch: [n, W, ...] each."""

    def __init__(self, batch: int, beam: int, max_len: int, first: int, pad: int, device) -> None:
        self.tokens = torch.full((batch, beam, max_len + 2), pad, device=device)
        self.tokens[:, :, 0] = first
        self.scores = torch.zeros(batch, beam, max_len + 1, device=device)  # cumulative
        self.is_dead = torch.zeros(batch, beam, dtype=torch.bool, device=device)
        self.sentences = torch.arange(batch, device=device)  # place in the original batch

    def keep(self, rows: Tensor) -> None:
        """Drops the sentences that are not in `rows`."""
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.is_dead, self.sentences = self.is_dead[rows], self.sentences[rows]

    def extend(self, step: int, parents: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Beam j continues beam `parents[:, j]` with `tokens[:, j]`; all [n, W]."""
        history = parents[:, :, None].expand(-1, -1, step + 1)
        self.tokens[:, :, : step + 1] = self.tokens[:, :, : step + 1].gather(1, history)
        self.tokens[:, :, step + 1] = tokens
        self.scores[:, :, :step] = self.scores[:, :, :step].gather(1, history[:, :, :step])
        self.scores[:, :, step] = scores


class GroupedQueryGenerator(SequenceGenerator):
    """fairseq's SequenceGenerator with the decoding engine underneath.

    Args:
        gnmt_alpha: normalize scores by ((5 + length) / 6) ** alpha (Wu et al. 2016, section 7) in
            place of fairseq's length ** lenpen.
        memory_limit_bytes: the cache may take this much; a larger batch is split. None asks the
            machine.
        is_static: greedy and beam search in steps of fixed shapes (static_search.py), which a GPU
            replays as graphs. None: where the model is on a GPU.

    Raises:
        ValueError: `gnmt_alpha` with an option that only fairseq's own search supports.
    """

    def __init__(
        self,
        models,
        tgt_dict,
        *args,
        gnmt_alpha: float | None = None,
        memory_limit_bytes: int | None = None,
        is_static: bool | None = None,
        **kwargs,
    ) -> None:
        super().__init__(models, tgt_dict, *args, **kwargs)
        self.gnmt_alpha = gnmt_alpha
        self.memory_limit_bytes = memory_limit_bytes
        self.is_static = is_static
        self._native: Operators | None = None  # those of the weights that a search uses
        self.fallback_reason = self._unsupported()
        if self.fallback_reason and gnmt_alpha is not None:
            raise ValueError(f"--gnmt-alpha does not work with {self.fallback_reason}")
        if self.fallback_reason:
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
            "--no-repeat-ngram-size": self.repeat_ngram_blocker is not None,
            f"the search strategy {type(self.search).__name__}": type(self.search)
            not in (search.BeamSearch, search.Sampling),
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
        """Hypotheses of every sentence, best first, as fairseq returns them.

        `attention` is empty: with --print-alignment the task takes fairseq's own search.
        """
        if self.fallback_reason or constraints is not None:
            return super()._generate(sample, prefix_tokens, constraints, bos_token)
        source = sample["net_input"]["src_tokens"]
        batch, width = source.shape
        max_len = min(int(self.max_len_a * width + self.max_len_b), self.max_len - 1)
        if self.min_len > max_len:
            raise ValueError(f"min_len {self.min_len} is above the longest target, {max_len}")
        if batch == 1 or self._fits(source, max_len, prefix_tokens):
            try:
                return self._search(sample["net_input"], max_len, prefix_tokens, bos_token)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                logger.warning("%d sentences do not fit in memory: trying half of them", batch)
                self._searches().pop(self, None)
        return self._in_halves(sample, prefix_tokens, bos_token)

    def _search(
        self, net_input: dict, max_len: int, prefix: Tensor | None, bos_token: int | None
    ) -> list[list[dict[str, Tensor]]]:
        model, W = self.model.single_model, self.beam_size
        batch, device = net_input["src_tokens"].shape[0], net_input["src_tokens"].device
        encoder_out = self.model.forward_encoder(net_input)[0]
        first = self.eos if bos_token is None else bos_token
        if self._takes_static(device, prefix):
            edges = source_edges(net_input["src_tokens"].eq(model.encoder.padding_idx))
            if edges is not None:
                return self._search_static(encoder_out, edges, max_len, first)
        self._native = model.decoder.arranged().native
        cache = model.decoder.start_cache(encoder_out, W)
        cache.reserve(max_len + 1)
        del encoder_out  # its keys and values are in the cache
        beams = _Hypotheses(batch, W, max_len, first, self.pad, device)
        done: list[list[dict[str, Tensor]]] = [[] for _ in range(batch)]
        for step in range(max_len + 1):
            logits = model.decoder.next_logits(beams.tokens[:, :, : step + 1], cache)
            lprobs = self._log_probs(logits, step, max_len, beams, prefix)
            scores, tokens, parents = self._candidates(step, lprobs, beams)
            is_end = tokens.eq(self.eos) & scores.ne(-math.inf)
            is_end[:, :W] &= ~beams.is_dead
            self._finish(step, is_end, scores, parents, beams, done)
            left = [len(done[s]) < W for s in beams.sentences.tolist()]
            if not any(left) or step == max_len:
                break
            if not all(left):
                rows = torch.tensor(left, device=device).nonzero().squeeze(1)
                beams.keep(rows)
                cache.keep_sentences(rows)
                prefix = None if prefix is None else prefix[rows]
                scores, tokens, parents = scores[rows], tokens[rows], parents[rows]
                is_end = is_end[rows]
            # The W best that go on: ended and dead ones sort behind all others.
            is_end[:, :W] |= beams.is_dead
            count = tokens.shape[1]
            rank = is_end * count + torch.arange(count, device=device)
            rank, chosen = rank.topk(W, dim=1, largest=False)
            beams.is_dead = rank >= count
            parents = parents.gather(1, chosen)
            beams.extend(step, parents, tokens.gather(1, chosen), scores.gather(1, chosen))
            cache.reorder_beams(parents)
        return [sorted(hypos, key=lambda h: -h["score"].item()) for hypos in done]

    def _takes_static(self, device: torch.device, prefix: Tensor | None) -> bool:
        """Whether steps of fixed shapes are wanted there, and can do it."""
        is_wanted = device.type == "cuda" if self.is_static is None else self.is_static
        return (
            is_wanted
            and prefix is None
            and type(self.search) is search.BeamSearch
            and self.beam_size <= MAX_BEAM
            and self.vocab_size > 2 * self.beam_size
        )

    def _search_static(
        self, encoder_out: dict, edges: tuple[Tensor, Tensor], max_len: int, first: int
    ) -> list[list[dict[str, Tensor]]]:
        """As _search, in memory that the next batches use again; hypotheses are on the host."""
        width, batch = encoder_out["encoder_out"][0].shape[:2]
        static = self._static_for(shape_of(batch, max_len + 1, width).capacity)
        source = self.model.single_model.decoder.source_keys_values(encoder_out)
        with torch.cuda.device_of(edges[0]):  # Triton launches on the current one
            found = static.run(source, edges, width, max_len, first)
        done = [[self._hypothesis(*h) for h in hypotheses] for hypotheses in found]
        return [sorted(hypos, key=lambda h: -h["score"].item()) for hypos in done]

    def _static_for(self, capacity: Capacity) -> StaticSearch:
        """The last batch's search if its memory suffices, else a new one."""
        decoder, wider, held = self.model.single_model.decoder, capacity, self.static_search
        if held is not None:
            if held.capacity.holds(capacity):
                return held
            wider = capacity.union(held.capacity)  # the next batch may be as the last one
            held = self._searches().pop(self)  # its memory first
            del held
        device = decoder.embed_tokens.weight.device
        if self._predicted_bytes(wider) > self._free_bytes(device):
            wider = capacity
        suppressed = self.token_indices_to_suppress
        rules = TokenRules(
            device,
            pad=self.pad,
            unk=self.unk,
            eos=self.eos,
            unk_penalty=self.unk_penalty,
            suppressed=[] if suppressed is None else suppressed.tolist(),
            min_len=self.min_len,
        )
        static = StaticSearch(
            decoder, rules, wider, beam=self.beam_size, temperature=self.temperature
        )
        self._searches()[self] = static
        return static

    @property
    def static_search(self) -> StaticSearch | None:
        """What the last batch was searched with in steps of fixed shapes, with its memory."""
        return None if self.fallback_reason else self._searches().get(self)

    def _searches(self) -> MutableMapping[Any, StaticSearch]:
        return self.model.single_model.decoder.searches()

    def _log_probs(
        self, logits: Tensor, step: int, max_len: int, beams: _Hypotheses, prefix: Tensor | None
    ) -> Tensor:
        """Scores [n * W, V] -> log-probabilities [n * W, V] in float32 that obey the options."""
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self._native is None:
            lprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        else:
            lprobs = self._native.log_softmax_(logits)
        lprobs[:, self.pad] = -math.inf
        if self.unk_penalty:
            lprobs[:, self.unk] -= self.unk_penalty
        if step >= max_len:
            lprobs[:, : self.eos] = -math.inf
            lprobs[:, self.eos + 1 :] = -math.inf
        if prefix is not None and step < min(prefix.shape[1], max_len):
            # fairseq's own rules for prefixes; they work on rows, and may rewrite the beams.
            W = self.beam_size
            rows = (beams.scores.flatten(0, 1), beams.tokens.flatten(0, 1))
            lprobs, tokens, scores = self._prefix_tokens(step, lprobs, *rows, prefix, W)
            beams.tokens, beams.scores = tokens.unflatten(0, (-1, W)), scores.unflatten(0, (-1, W))
            return lprobs
        if step < self.min_len:
            lprobs[:, self.eos] = -math.inf
        if self.token_indices_to_suppress is not None:
            lprobs[:, self.token_indices_to_suppress] = -math.inf
        return lprobs

    def _candidates(
        self, step: int, lprobs: Tensor, beams: _Hypotheses
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each sentence: scores, tokens and parent beams, [n, K] each.

        K = 2 W, so that W are left if W of them end; sampling draws W.
        """
        W, V = self.beam_size, lprobs.shape[1]
        if type(self.search) is not search.BeamSearch:
            rows = lprobs.nan_to_num(nan=-math.inf, neginf=-math.inf).view(-1, W, V)
            return self.search.step(step, rows, beams.scores[:, :, :step])
        if step == 0:  # all beams of a sentence are the same: look at the first
            values, tokens = self._best(lprobs[::W], min(2 * W, V - 1))
            return values, tokens, torch.zeros_like(tokens)
        k = min(2 * W, V)
        values, tokens = self._best(lprobs, k)
        values = values.view(-1, W, k) + beams.scores[:, :, step - 1, None]
        scores, best = values.flatten(1).topk(min(2 * W, W * V - 1))
        return scores, tokens.view(-1, W * k).gather(1, best), best // k

    def _best(self, lprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._native is not None:
            return self._native.top_k(lprobs, k)
        values, tokens = top_k(lprobs, k)
        if bool(values.isnan().any()):  # a NaN is never chosen, as in fairseq
            values, tokens = top_k(lprobs.nan_to_num(nan=-math.inf, neginf=-math.inf), k)
        return values, tokens

    def _finish(
        self,
        step: int,
        is_end: Tensor,
        scores: Tensor,
        parents: Tensor,
        beams: _Hypotheses,
        done: list[list[dict[str, Tensor]]],
    ) -> None:
        """Moves hypotheses that end among the W best candidates to their sentence's list."""
        W = self.beam_size
        rows, columns = is_end[:, :W].nonzero(as_tuple=True)
        if not rows.numel():
            return
        parent = parents[rows, columns]
        tokens = beams.tokens[rows, parent, 1 : step + 2]
        tokens[:, step] = self.eos
        total = scores[rows, columns]
        positional = beams.scores[rows, parent, : step + 1]
        positional[:, step] = total
        positional[:, 1:] = positional[:, 1:] - positional[:, :-1]
        for i, sentence in enumerate(beams.sentences[rows].tolist()):
            if len(done[sentence]) < W:
                done[sentence].append(self._hypothesis(tokens[i], positional[i], total[i]))

    def _hypothesis(self, tokens: Tensor, positional: Tensor, total: Tensor) -> dict[str, Tensor]:
        """What fairseq returns of one: its words and log-probabilities [T] and its score []."""
        length = len(tokens)
        if self.gnmt_alpha is not None:
            total = total / ((5 + length) / 6) ** self.gnmt_alpha
        elif self.normalize_scores:
            total = total / length**self.len_penalty
        return {
            "tokens": tokens,
            "score": total,
            "attention": torch.empty(0),
            "alignment": torch.empty(0),
            "positional_scores": positional,
        }

    # Memory: predicted before it is taken.

    def _fits(self, source: Tensor, max_len: int, prefix: Tensor | None) -> bool:
        """Whether there is memory to search a batch [B, S], as far as can be told before."""
        shape = StaticShape(source.shape[0], max_len + 1, source.shape[1])
        if self._takes_static(source.device, prefix):
            shape = shape_of(*shape)
            held = self.static_search
            if held is not None and held.capacity.holds(shape.capacity):
                return True  # it is there
        return self._predicted_bytes(shape.capacity) <= self._free_bytes(source.device)

    def _predicted_bytes(self, capacity: Capacity) -> int:
        """Bytes of the cache if every hypothesis grows to the limit, with room for a copy."""
        decoder = self.model.single_model.decoder
        attention = decoder.layers[0].self_attn
        sizes = cache_bytes(
            batch=1,  # all rows' tokens together
            beam=self.beam_size,
            source_tokens=capacity.sources,
            target_tokens=capacity.targets,
            layers=len(decoder.layers),
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            bytes_per_element=attention.k_proj.weight.element_size(),
        )
        return sizes["self"] + 2 * sizes["cross"]

    def _free_bytes(self, device: torch.device) -> int:
        if self.memory_limit_bytes is not None:
            return self.memory_limit_bytes
        if device.type == "cuda":
            # PyTorch keeps what was freed, and the last batch's cache can be let go.
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            held = self.static_search
            own = 0 if held is None else held.cache.memory_bytes
            return torch.cuda.mem_get_info(device)[0] + kept + own
        return psutil.virtual_memory().available

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
