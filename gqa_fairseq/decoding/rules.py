"""The options of a search, one object each, the same for every driver.

    Rule           changes the log-probabilities of the next word: --min-len, --unkpen, ...
    Temperature    divides the scores of the next word
    LengthPenalty  scores a finished hypothesis by its length: --lenpen, --gnmt-alpha

beams.py asks them; `rules_of` and `penalty_of` make them from what fairseq's generator was given.
A new option is a class here and its declaration in OPTIONS: command lines and jobs' settings follow
from that. Nothing here imports torch, because jobs are checked without it.

Whether the host knows the step is up to the driver, see Clock: a rule is written once for both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from gqa_fairseq.decoding.options import Option

if TYPE_CHECKING:
    from torch import Tensor


class Clock(NamedTuple):
    """Where a search is: ints, or int64 [1] on a device whose values the host does not wait for."""

    step: int | Tensor  # words before the one that is chosen next
    last: int | Tensor  # words of the longest hypothesis, without </s>

    @property
    def is_on_host(self) -> bool:
        return isinstance(self.step, int)


class Histories(Protocol):
    """The unfinished hypotheses in a form that a rule with `needs_host` may read and rewrite."""

    tokens: Tensor  # [n, W, longest + 2], from the first word on
    scores: Tensor  # [n, W, longest + 1], cumulative


class Rule(ABC):
    """What one option does to the log-probabilities of the next word.

    `needs_host` is the option's name if it looks at values on the host, or at what only the
    sentences of one batch have, or else None: only the CPU's driver lets a rule do that.
    """

    needs_host: ClassVar[str | None] = None

    @abstractmethod
    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        """Changes float32 lprobs [n * W, V] in place, at few words: passes over V are dear.

        `histories` are None unless the driver is the CPU's.
        """

    def limit(
        self, values: Tensor, words: Tensor, lprobs: Tensor, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        """What is left of the k best words [n * W, k] of lprobs, for a clock on a device.

        For a rule that concerns all words at some steps: `change` would have to pass over V at
        every step, because the host does not know which step it is.
        """
        return values, words

    def keep(self, rows: Tensor) -> None:  # noqa: B027  most rules know nothing of sentences
        """Sentences `rows` [n'] of the n are left."""


def _forbid(lprobs: Tensor, word: int, when: bool | Tensor = True) -> None:
    if not isinstance(when, bool):
        lprobs[:, word].masked_fill_(when, -math.inf)
    elif when:
        lprobs[:, word].fill_(-math.inf)


@dataclass(frozen=True)
class NeverPadding(Rule):
    """Padding is never chosen."""

    pad: int

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        _forbid(lprobs, self.pad)


@dataclass(frozen=True)
class UnknownPenalty(Rule):
    """--unkpen: subtracted from the unknown word's log-probability."""

    unk: int
    penalty: float

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        lprobs[:, self.unk].sub_(self.penalty)


@dataclass(frozen=True)
class MinLength(Rule):
    """--min-len: so many words before the end."""

    eos: int
    words: int

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        _forbid(lprobs, self.eos, clock.step < self.words)


@dataclass(frozen=True)
class MaxLength(Rule):
    """--max-len-a, --max-len-b: at the last step only the end may come."""

    eos: int

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        if isinstance(clock.step, int) and clock.step >= clock.last:
            lprobs[:, : self.eos] = -math.inf
            lprobs[:, self.eos + 1 :] = -math.inf

    def limit(
        self, values: Tensor, words: Tensor, lprobs: Tensor, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        is_last: Any = clock.step >= clock.last  # bool [1] on the device
        end = values.new_full(values.shape, -math.inf)
        end[:, 0] = lprobs[:, self.eos]
        return end.where(is_last, values), words.masked_fill(is_last, self.eos)


@dataclass(frozen=True)
class Suppressed(Rule):
    """Words [count] that are never chosen (`tokens_to_suppress`), int64 on the search's device."""

    words: Tensor

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        lprobs.index_fill_(1, self.words, -math.inf)


@dataclass(frozen=True)
class NoRepeat(Rule):
    """--no-repeat-ngram-size: no `size` words follow each other twice in a hypothesis."""

    needs_host: ClassVar[str | None] = "--no-repeat-ngram-size"
    size: int

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        assert histories is not None
        forbid_repeats(lprobs, histories.tokens[:, :, 1 : int(clock.step) + 1], self.size)


def forbid_repeats(lprobs: Tensor, words: Tensor, size: int) -> None:
    """Forbids each word of lprobs [rows, V] that would complete a sequence that was there before.

    A word stays if a prefix or the length limit has left no other.

    Args:
        words: [..., T] of as many rows: what each hypothesis has said, without its first </s>.
        size: of the sequences that may not occur twice, in words.
    """
    words = words.flatten(0, -2)
    if words.shape[1] < size:
        return
    said = words.unfold(1, size, 1)  # [rows, T - size + 1, size]
    newest = words[:, words.shape[1] - size + 1 :]  # [rows, size - 1]
    rows, places = (said[:, :, :-1] == newest[:, None]).all(2).nonzero(as_tuple=True)
    forbidden = said[rows, places, -1]
    before = lprobs[rows, forbidden]
    lprobs[rows, forbidden] = -math.inf
    is_stuck = lprobs[rows].amax(1).isneginf()
    lprobs[rows[is_stuck], forbidden[is_stuck]] = before[is_stuck]


class Prefix(Rule):
    """--prefix-size: the words that the hypotheses of a sentence begin with.

    Args:
        words: [n, P], padding where a sentence's prefix is shorter.
        force: fairseq's SequenceGenerator._prefix_tokens. It works on rows in place, and makes all
            beams of a sentence the same where its prefix has an end.
        otherwise: the rules that hold after the prefix alone.
    """

    needs_host = "--prefix-size"

    def __init__(self, words: Tensor, force: Callable[..., Any], otherwise: list[Rule]) -> None:
        self._words, self._force, self._otherwise = words, force, otherwise

    def change(self, lprobs: Tensor, clock: Clock, histories: Histories | None) -> None:
        if clock.step >= min(self._words.shape[1], clock.last):
            for rule in self._otherwise:
                rule.change(lprobs, clock, histories)
            return
        assert histories is not None
        W = histories.tokens.shape[1]
        rows = histories.scores.flatten(0, 1), histories.tokens.flatten(0, 1)
        _, tokens, scores = self._force(clock.step, lprobs, *rows, self._words, W)
        histories.tokens = tokens.unflatten(0, (-1, W))
        histories.scores = scores.unflatten(0, (-1, W))

    def keep(self, rows: Tensor) -> None:
        self._words = self._words[rows]
        for rule in self._otherwise:
            rule.keep(rows)


@dataclass(frozen=True)
class Temperature:
    """--temperature: the scores [n * W, V] of the next word are divided by it."""

    value: float

    def __call__(self, logits: Tensor) -> Tensor:
        return logits if self.value == 1.0 else logits / self.value


class LengthPenalty(Protocol):
    def __call__(self, total: Tensor, length: int) -> Tensor:
        """Sum of log-probabilities [] of `length` words with </s> -> score []."""


@dataclass(frozen=True)
class NoPenalty:
    """--unnormalized."""

    def __call__(self, total: Tensor, length: int) -> Tensor:
        return total


@dataclass(frozen=True)
class LengthPower:
    """--lenpen, fairseq's."""

    exponent: float

    def __call__(self, total: Tensor, length: int) -> Tensor:
        return total / length**self.exponent


@dataclass(frozen=True)
class Gnmt:
    """--gnmt-alpha: ((5 + length) / 6) ** alpha (Wu et al. 2016, section 7)."""

    alpha: float

    def __call__(self, total: Tensor, length: int) -> Tensor:
        return total / ((5 + length) / 6) ** self.alpha


# Each option of a search that is a rule, a temperature or a length penalty. Rules of one place take
# effect in this order; the first length penalty that a search was asked for counts.
OPTIONS: tuple[Option, ...] = (
    Option(
        name="unkpen",
        kind=float,
        default=0.0,
        help="subtracted from the unknown word's log-probability",
        argument="unk_penalty",
        place="before",
        rule=lambda search, source: (
            UnknownPenalty(search.unk, search.unk_penalty) if search.unk_penalty else None
        ),
    ),
    Option(
        name="min_len",
        kind=int,
        default=1,
        at_least=0,
        help="so many words before the end",
        rule=lambda search, source: (
            MinLength(search.eos, search.min_len) if search.min_len else None
        ),
    ),
    Option(
        name="no_repeat_ngram_size",
        kind=int,
        default=0,
        at_least=0,
        help="no so many words follow each other twice in a translation; 0: they may",
        stock="finds no repetition without a CUDA extension",
        place="last",
        rule=lambda search, source: (
            NoRepeat(search.repeat_ngram_blocker.no_repeat_ngram_size)
            if search.repeat_ngram_blocker is not None
            else None
        ),
    ),
    Option(  # the Temperature of beams.Chooser
        name="temperature",
        kind=float,
        default=1.0,
        above=0.0,
        help="the scores of the next word are divided by it",
    ),
    Option(
        name="gnmt_alpha",
        kind=float,
        at_least=0.0,
        help="GNMT length penalty, in place of --lenpen: scores / ((5 + length) / 6) ** alpha",
        is_own=True,
        penalty=lambda search: None if search.gnmt_alpha is None else Gnmt(search.gnmt_alpha),
    ),
    Option(
        name="unnormalized",
        kind=bool,
        default=False,
        help="scores are not divided by a power of the length",
        penalty=lambda search: None if search.normalize_scores else NoPenalty(),
    ),
    Option(
        name="lenpen",
        kind=float,
        default=1.0,
        help="scores / length ** lenpen",
        argument="len_penalty",
        penalty=lambda search: LengthPower(search.len_penalty),
    ),
)
# Those that fairseq lacks.
OWN_OPTIONS = tuple(option for option in OPTIONS if option.is_own)


def rules_of(search: Any, source: Tensor, prefix: Tensor | None) -> list[Rule]:
    """The rules of fairseq's generator for one batch, in the order of their effects.

    Args:
        source: tokens [B, S].
        prefix: [B, P], the words that --prefix-size forces, or None.
    """
    made: dict[str, list[Rule]] = {"before": [], "free": [], "last": []}
    for option in OPTIONS:
        rule = option.rule(search, source) if option.rule else None
        if rule is not None:
            made[option.place].append(rule)
    free = made["free"]
    if search.token_indices_to_suppress is not None:
        free.append(Suppressed(search.token_indices_to_suppress.to(source.device)))
    if prefix is not None:
        free = [Prefix(prefix, search._prefix_tokens, free)]
    always = [NeverPadding(search.pad), *made["before"], MaxLength(search.eos)]
    return [*always, *free, *made["last"]]


def penalty_of(search: Any) -> LengthPenalty:
    """How the generator scores a finished hypothesis."""
    made = (option.penalty(search) for option in OPTIONS if option.penalty)
    return next(penalty for penalty in made if penalty is not None)
