"""Searches drawn at random, with odd shapes, equal fairseq's own search.

Ten seconds' worth are drawn from fixed seeds. More, from other seeds:

    RANDOM_SEARCH_S=3600 python -m pytest -n 0 tests/unit/test_random_search.py
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import torch
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import (
    PlainRepeatBlock,
    build,
    dictionary,
    random_lines,
    randomize,
    source_batch,
)
from torch import Tensor

from gqa_fairseq.decoding.search import GroupedQueryGenerator

CASES = 40
SECONDS = float(os.environ.get("RANDOM_SEARCH_S", "0"))


def random_shape(draw: random.Random) -> dict[str, Any]:
    """A model whose heads may be one wide, odd, or alone, and see a few positions only."""
    head_width = draw.choice((1, 1, 2, 3, 5, 8))
    # Narrower models tie: a norm makes 0 of a width of 1, and signs of a width of 2.
    heads = draw.choice([n for n in (1, 2, 3, 4, 6, 8, 9) if n * head_width >= 8])
    divisors = [g for g in range(1, heads + 1) if heads % g == 0]
    width, own_width, placement = heads * head_width, {}, draw.choice(("all", "decoder"))
    encoder_heads = heads
    if draw.random() < 0.4:  # heads that are together narrower or wider than the model
        width = draw.choice((8, 9, 12, 20))
        own_width = {"encoder_head_dim": head_width, "decoder_head_dim": head_width}
        encoder_heads = draw.choice((1, 2, heads)) if placement == "decoder" else heads
    is_learned = width % 2 == 1 or draw.random() < 0.5  # sinusoids come in pairs
    is_pre_norm = draw.random() < 0.5
    return {
        "encoder_embed_dim": width,
        "decoder_embed_dim": width,
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": heads,
        "num_kv_heads": draw.choice(divisors),
        "attention_placement": placement,
        "decoder_window": draw.choice((None, None, 1, 2, 3, 8)),
        "encoder_ffn_embed_dim": draw.choice((1, 7, 16)),
        "decoder_ffn_embed_dim": draw.choice((1, 7, 16)),
        "encoder_layers": 1,
        "decoder_layers": draw.choice((1, 2)),
        "encoder_normalize_before": is_pre_norm,
        "decoder_normalize_before": is_pre_norm,
        "encoder_learned_pos": is_learned,
        "decoder_learned_pos": is_learned,
        "share_all_embeddings": draw.random() < 0.5,
        "use_bias": draw.random() < 0.5,
        "activation_fn": draw.choice(("relu", "relu", "gelu")),
        **own_width,
    }


def random_options(draw: random.Random) -> dict[str, Any]:
    """Options of a search, some of which may exclude each other."""
    return {
        "beam_size": draw.choice((1, 1, 2, 3, 4, 5, 8, 13)),
        "max_len_a": draw.choice((0, 0, 0.5, 1.3)),
        "max_len_b": draw.choice((0, 1, 2, 7, 15)),
        "min_len": draw.choice((0, 1, 1, 3)),
        "len_penalty": draw.choice((-0.5, 0.0, 0.6, 1.0, 2.0)),
        "unk_penalty": draw.choice((0.0, 0.0, 1.5, -2.0)),
        "temperature": draw.choice((1.0, 1.0, 0.5, 3.0)),
        "normalize_scores": draw.random() < 0.8,
        "match_source_len": draw.random() < 0.1,
        "no_repeat_ngram_size": draw.choice((0, 0, 0, 2)),
    }


def outcome(generator: Any, model: Any, sample: dict, prefix: Tensor | None) -> Any:
    """Hypotheses, or None where the options are refused."""
    if type(generator) is SequenceGenerator and generator.repeat_ngram_blocker is not None:
        size = generator.repeat_ngram_blocker.no_repeat_ngram_size
        generator.repeat_ngram_blocker = PlainRepeatBlock(size)
    try:
        return generator.generate([model], sample, prefix_tokens=prefix)
    except (AssertionError, ValueError):
        return None


def assert_scores_are_the_models(model: Any, vocabulary: Any, sample: dict, found: Any) -> None:
    """Each hypothesis has the scores that a pass over its whole sequence gives it."""
    net_input = sample["net_input"]
    for sentence, hypotheses in enumerate(found):
        source = net_input["src_tokens"][sentence, None]
        source = source[:, source[0] != vocabulary.pad()]
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            before = torch.cat((tokens.new_tensor([vocabulary.eos()]), tokens[:-1]))
            lengths = torch.tensor([source.shape[1]])
            with torch.no_grad():
                scores = model.get_normalized_probs(model(source, lengths, before[None]), True)[0]
            expected = scores.gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(
                hypothesis["positional_scores"], expected, atol=2e-3, rtol=1e-3
            )


def run_case(seed: int) -> int:
    """Draws one case; returns how many hypotheses were compared."""
    draw = random.Random(seed)
    vocabulary = dictionary(draw.choice((1, 2, 5, 40)))
    model = build(vocabulary, seed=seed, **random_shape(draw))
    randomize(model, scale=draw.choice((0.5, 1.5, 4.0)), seed=seed)
    lines = random_lines(draw.randint(1, 6), vocabulary, longest=draw.choice((1, 3, 12)), seed=seed)
    sample = source_batch(lines, vocabulary)
    plain = {"beam_size": draw.choice((1, 2, 4, 7)), "max_len_b": 9}
    model.decoder.is_native = draw.random() < 0.7
    single = GroupedQueryGenerator([model], vocabulary, **plain).generate([model], sample)
    assert_scores_are_the_models(model, vocabulary, sample, single)

    options = random_options(draw)
    prefix = None
    if draw.random() < 0.3:
        words = [line[: draw.randint(1, 2)] for line in lines]
        prefix = torch.nn.utils.rnn.pad_sequence(words, True, vocabulary.pad())
    model = model.double()
    ours, theirs = (
        outcome(kind([model], vocabulary, **options), model, sample, prefix)
        for kind in (GroupedQueryGenerator, SequenceGenerator)
    )
    assert (ours is None) == (theirs is None), options
    if ours is None:
        return 0
    for a, b in zip(ours, theirs, strict=True):
        scores = torch.stack([h["score"] for h in b])
        torch.testing.assert_close(torch.stack([h["score"] for h in a]), scores, atol=1e-4, rtol=0)
        gaps = (scores[:, None] - scores).abs().fill_diagonal_(1)
        is_tie = (gaps < 1e-3).any(1).tolist()  # in float32, either may come first
        for x, y, tie in zip(a, b, is_tie, strict=True):
            assert tie or x["tokens"].tolist() == y["tokens"].tolist(), options
    return sum(map(len, ours))


def test_random_searches_are_fairseqs() -> None:
    compared, seed, started = 0, 0, time.monotonic()
    while seed < CASES or time.monotonic() - started < SECONDS:
        try:
            compared += run_case(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        seed += 1
    print(f"{seed} cases, {compared} hypotheses")
    assert compared > CASES
