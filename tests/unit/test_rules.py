"""The options of a search, each by itself: by hand, and the same for both kinds of clock."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gqa_fairseq.decoding.beams import BeamSearch, Chooser, DiverseGroups, Sampling
from gqa_fairseq.decoding.gpu.search import GpuSearch
from gqa_fairseq.decoding.rules import (
    OWN_OPTIONS,
    Clock,
    Gnmt,
    LengthPower,
    MaxLength,
    MinLength,
    NeverPadding,
    NoPenalty,
    NoRepeat,
    Prefix,
    Rule,
    Suppressed,
    Temperature,
    UnknownPenalty,
    penalty_of,
    rules_of,
)

PAD, EOS, UNK = 1, 2, 3
SOURCE = torch.tensor([[5, 6, 2]])
LAST = 9
ALL: dict[str, Rule] = {
    "padding": NeverPadding(PAD),
    "unknown word": UnknownPenalty(UNK, 0.7),
    "minimum": MinLength(EOS, 4),
    "maximum": MaxLength(EOS),
    "suppressed": Suppressed(torch.tensor([5, 7])),
}


def on_device(step: int, last: int = LAST) -> Clock:
    return Clock(torch.tensor([step]), torch.tensor([last]))


def chooser_of(*rules: Rule, beam: int = 3, strategy: Any = None) -> Chooser:
    return Chooser(beam, EOS, Temperature(1.0), list(rules), strategy or BeamSearch())


def changed(rule: Rule, step: int) -> dict[int, float]:
    """What the rule makes of ten zeros: the words it changes, with their values."""
    lprobs = torch.zeros(2, 10)
    rule.change(lprobs, Clock(step, LAST), None)
    assert torch.equal(lprobs[0], lprobs[1])
    return {word: float(lprobs[0, word]) for word in lprobs[0].nonzero().flatten().tolist()}


def test_what_each_rule_changes() -> None:
    never = -math.inf
    assert changed(ALL["padding"], 0) == {PAD: never}
    assert changed(ALL["unknown word"], 0) == {UNK: pytest.approx(-0.7)}
    assert changed(ALL["minimum"], 3) == {EOS: never}
    assert changed(ALL["minimum"], 4) == {}
    assert changed(ALL["maximum"], LAST - 1) == {}
    assert changed(ALL["maximum"], LAST) == {word: never for word in range(10) if word != EOS}
    assert changed(ALL["suppressed"], 0) == {5: never, 7: never}


@pytest.mark.parametrize("names", [*([name] for name in ALL), list(ALL)], ids=" and ".join)
@pytest.mark.parametrize("beam", [1, 3])
def test_both_clocks_have_the_same_candidates(names: list[str], beam: int) -> None:
    """A NaN is never chosen; what is -inf may be any word."""
    draw = torch.Generator().manual_seed(0)
    chooser = chooser_of(*(ALL[name] for name in names), beam=beam)
    for step in (1, 3, 4, LAST - 1, LAST):
        logits = torch.randn(4 * beam, 300, generator=draw)
        totals = torch.randn(4, beam, generator=draw)
        found = [
            chooser.candidates(chooser.log_probs(logits, clock), totals, clock)
            for clock in (Clock(step, LAST), on_device(step))
        ]
        assert torch.equal(found[0].scores, found[1].scores)
        is_possible = found[0].scores > -math.inf
        assert bool(is_possible.any(1).all())
        for a, b in zip(found[0][1:], found[1][1:], strict=True):
            assert torch.equal(a[is_possible], b[is_possible])
        ends = [chooser.ends(candidates) for candidates in found]
        assert torch.equal(*ends)
        if step == LAST and "maximum" in names:
            assert ends[0].sum(1).tolist() == [beam] * 4


@pytest.mark.parametrize("clock", [Clock(2, LAST), on_device(2)])
def test_what_is_not_a_number_is_never_chosen(clock: Clock) -> None:
    chooser = chooser_of(NeverPadding(PAD), beam=1)
    lprobs = torch.full((2, 300), -5.0)
    lprobs[0, 8], lprobs[1, 9] = math.nan, -1.0
    candidates = chooser.candidates(lprobs, torch.zeros(2, 1), clock)
    assert not bool(candidates.scores.isnan().any())
    assert candidates.words[1, 0] == 9
    assert 8 not in candidates.words[0][candidates.scores[0] > -math.inf]


def test_ended_and_dead_beams_come_behind_all_others() -> None:
    chooser = chooser_of(beam=2)
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -math.inf]])
    words = torch.tensor([[EOS, 6, EOS, 8], [EOS, EOS, 9, EOS]])
    lprobs = torch.zeros(4, 2)  # two words: parents do not matter here
    candidates = chooser.candidates(lprobs, torch.zeros(2, 2), Clock(1, LAST))._replace(
        scores=scores, words=words, parents=torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    )
    is_end = chooser.ends(candidates, torch.tensor([[False, False], [False, True]]))
    assert is_end.tolist() == [[True, False, True, False], [True, False, False, False]]
    going_on, is_dead = chooser.going_on(
        candidates, is_end, torch.tensor([[False, False], [False, True]])
    )
    assert going_on.words.tolist() == [[6, 8], [9, EOS]]
    assert going_on.parents.tolist() == [[0, 1], [0, 1]]
    assert not bool(is_dead.any())
    is_end[1] = True
    assert chooser.going_on(candidates, is_end)[1].tolist() == [[False, False], [True, True]]


def test_rules_that_hold_after_the_prefix_alone() -> None:
    forced: list[int] = []

    def force(step: int, lprobs: Tensor, scores: Tensor, tokens: Tensor, words: Tensor, beam: int):
        forced.append(step)
        assert words.shape == (2, 2)
        assert beam == 3
        return lprobs, tokens, scores

    histories = SimpleNamespace(tokens=torch.zeros(2, 3, 11).long(), scores=torch.zeros(2, 3, 10))
    prefix = Prefix(torch.full((4, 2), 6), force, [ALL["minimum"]])
    prefix.keep(torch.tensor([0, 2]))
    for step, expected in ((0, 0.0), (1, 0.0), (2, -math.inf), (4, 0.0)):
        lprobs = torch.zeros(6, 10)
        prefix.change(lprobs, Clock(step, LAST), histories)
        assert lprobs[:, EOS].tolist() == [expected] * 6
    assert forced == [0, 1]
    lprobs = torch.zeros(6, 10)
    prefix.change(lprobs, Clock(1, 1), histories)  # the last step belongs to the end
    assert forced == [0, 1]


def test_length_penalties() -> None:
    total = torch.tensor(-6.0)
    assert NoPenalty()(total, 4) == -6
    assert LengthPower(0.5)(total, 4) == -3
    assert Gnmt(1.0)(total, 7) == -3
    assert float(Gnmt(0.6)(total, 4)) == pytest.approx(-6 / 1.5**0.6)


def options(**changes: Any) -> SimpleNamespace:
    plain = {
        "pad": PAD,
        "unk": UNK,
        "eos": EOS,
        "unk_penalty": 0.0,
        "min_len": 0,
        "token_indices_to_suppress": None,
        "repeat_ngram_blocker": None,
        **{option.name: option.default for option in OWN_OPTIONS},
        "normalize_scores": True,
        "len_penalty": 1.0,
        "_prefix_tokens": None,
    }
    return SimpleNamespace(**(plain | changes))


def test_each_option_is_one_object() -> None:
    plain: list[Rule] = [NeverPadding(PAD), MaxLength(EOS)]
    assert rules_of(options(), SOURCE, None) == plain
    assert UnknownPenalty(UNK, 0.5) in rules_of(options(unk_penalty=0.5), SOURCE, None)
    assert MinLength(EOS, 3) in rules_of(options(min_len=3), SOURCE, None)
    suppressing = rules_of(options(token_indices_to_suppress=torch.tensor([4])), SOURCE, None)
    assert [type(rule) for rule in suppressing] == [NeverPadding, MaxLength, Suppressed]
    forcing = rules_of(options(min_len=3), SOURCE, torch.zeros(1, 1).long())
    assert [type(rule) for rule in forcing] == [NeverPadding, MaxLength, Prefix]
    blocker = SimpleNamespace(no_repeat_ngram_size=3)
    assert rules_of(options(repeat_ngram_blocker=blocker), SOURCE, None) == [*plain, NoRepeat(3)]
    assert penalty_of(options()) == LengthPower(1.0)
    assert penalty_of(options(normalize_scores=False)) == NoPenalty()
    assert penalty_of(options(gnmt_alpha=0.6)) == Gnmt(0.6)


def test_the_gpu_driver_says_what_it_cannot_do() -> None:
    prefix = Prefix(torch.zeros(1, 1).long(), lambda: None, [])
    refused = {
        "--prefix-size looks at values at every step": chooser_of(prefix),
        "--no-repeat-ngram-size looks at values at every step": chooser_of(NoRepeat(2)),
        "--sampling looks at values at every step": chooser_of(strategy=Sampling(lambda: None)),
        "--diverse-beam-groups looks at values at every step": chooser_of(
            strategy=DiverseGroups(lambda: None)
        ),
        "32 beams are more than 31": chooser_of(beam=32),
    }
    for reason, chooser in refused.items():
        assert GpuSearch.refusal(chooser, 100) == reason
    few_words = GpuSearch.refusal(chooser_of(beam=20), 40)
    assert few_words == "40 words are not more than twice 20 beams"
    assert GpuSearch.refusal(chooser_of(*ALL.values(), beam=20), 41) is None
