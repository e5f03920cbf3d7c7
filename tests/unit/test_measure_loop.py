"""Contenders take turns, are counted and compared; intervals hold what they say."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
from contenders import CPU, MHA, MQA, fixed

from experiments.errors import ExperimentError
from experiments.measure.loop import Competitor, measure, turns
from experiments.measure.memory import Peak
from experiments.records.measurement import Contender, RealText, Timing, median_ratio
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.costs import Work


def test_set(**changes: Any) -> RealText:
    values: dict[str, Any] = {
        "name": "job",
        "batch": 4,
        "sentences": 2,
        "source_tokens": 12,
        "beam": 4,
    }
    return RealText(**(values | changes))


# Not a test, whatever its name says; pytest reads this mark, which functions are not typed to have.
test_set.__test__ = False  # type: ignore[attr-defined]


class Fake(Competitor):
    """Notes its turns; one batch of two sentences, `tokens` each."""

    def __init__(
        self, name: str, log: list[str], tokens: list[int], architecture: Architecture = MHA
    ) -> None:
        self.contender = Contender(architecture=architecture, engine=name, weights="random")
        self.name, self.log, self.left = name, log, tokens
        self.encoder_s = None if name == "ctranslate2" else 1e-9  # less than its turn
        self.last = 0

    def run(self) -> None:
        self.log.append(self.name)
        self.last = self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def tokens(self) -> int:
        return 2 * self.last

    def best(self) -> list[list[int]]:
        return [[len(self.name)] * self.last, [3] * self.last]

    def is_comparable(self) -> bool:
        return self.name != "ctranslate2"

    def work(self) -> Work:
        return Work({"weights": 100}, 1000)


def probe(log: list[str]) -> Any:
    rates = iter(range(1, 100))
    return SimpleNamespace(
        device=CPU,
        read_bytes_per_s=lambda: log.append("read") or float(next(rates)),
        flops_per_s=lambda: log.append("matrix") or 7.0,
        int8_flops_per_s=lambda: 9.0,
        step_flops_per_s=float,
    )


def run_fakes(competitors: list[Fake], workload: Any, log: list[str], **more: Any) -> Timing:
    bleu = (lambda best: float(len(best))) if isinstance(workload, RealText) else None
    options = {"warmup_runs": 1, "repeats": 2} | more
    return measure(competitors, workload, probe(log), bleu=bleu, **options)


def test_contenders_take_turns_and_the_first_round_is_warm_up() -> None:
    log: list[str] = []
    rounds: list[tuple[int, int]] = []
    competitors = [Fake(name, log, [5]) for name in ("a", "bb", "ctranslate2")]
    competitors[0].peak = Peak(5, "process_rss")
    result = run_fakes(competitors, fixed(), log, on_round=lambda *done: rounds.append(done))
    probed = ["read", "matrix"]
    assert log == [
        *("a", "bb", "ctranslate2", *probed),
        *("ctranslate2", "bb", "a", *probed),
        *("bb", "ctranslate2", "a", *probed),
    ]
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    assert result.read_bytes_per_s == [2.0, 3.0]
    assert result.matrix_flops_per_s == [7.0, 7.0]
    assert result.int8_flops_per_s == [9.0, 9.0]
    assert result.step_flops_per_s == [8.0, 8.0]  # of 2 sentences with 4 beams
    first, second, third = result.samples
    assert [len(s.total_s) for s in result.samples] == [2, 2, 2]
    assert first.encoder_s == [1e-9, 1e-9]
    assert third.encoder_s is third.raw_s("decoder") is None
    assert {s.tokens_produced for s in result.samples} == {10}
    assert (first.differing, second.differing) == (0, 1)
    assert third.differing is None  # it ends a forced length in its own way
    assert (first.peak_memory_bytes, second.peak_memory_bytes) == (5, None)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_order_is_followed_by_its_reverse_and_everyone_comes_first(count: int) -> None:
    orders = [turns(count, i) for i in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in range(0, 2 * count, 2))
    assert {order[0] for order in orders} == set(range(count))


@pytest.mark.parametrize(("rounds", "order"), [(2, [0, 1]), (4, [0, 1, 2])])
def test_a_steady_drift_cancels_from_every_pair(rounds: int, order: list[int]) -> None:
    at = itertools.count(100)
    seconds: dict[int, list[float]] = {i: [] for i in order}
    for count in range(rounds):
        for i in turns(len(order), count):
            seconds[i].append(float(next(at)))
    for i, j in itertools.combinations(order, 2):
        differences = [a - b for a, b in zip(seconds[i], seconds[j], strict=True)]
        assert sum(differences) == 0


def test_hypotheses_are_compared_within_an_architecture() -> None:
    log: list[str] = []
    competitors = [Fake("a", log, [4]), Fake("bb", log, [3], MQA)]
    found = run_fakes(competitors, test_set(), log).samples
    assert [s.differing for s in found] == [0, 0]
    assert [s.bleu for s in found] == [2.0, 2.0]  # of the best of the two sentences


@pytest.mark.parametrize(
    ("workload", "words"), [(fixed(), "bb: 8 tokens, not 10"), (test_set(), "8 tokens, not 10")]
)
def test_other_tokens_than_forced_or_than_before_are_an_error(workload: Any, words: str) -> None:
    log: list[str] = []
    competitors = [Fake("a", log, [5]), Fake("bb", log, [5, 4])]
    with pytest.raises(ExperimentError, match=words):
        run_fakes(competitors, workload, log)


@pytest.mark.parametrize("rounds", [3, 5, 6, 9, 20])
def test_the_interval_has_the_true_median_as_often_as_it_says(rounds: int) -> None:
    draw = random.Random(rounds)
    trials, hits, confidence = 4000, 0, 0.0
    for _ in range(trials):
        found = median_ratio([draw.lognormvariate(0.3, 0.5) for _ in range(rounds)])
        confidence = found.confidence
        assert found.low <= found.median <= found.high
        hits += found.low <= 2.718281828459045**0.3 <= found.high
    deviation = (confidence * (1 - confidence) / trials) ** 0.5
    assert abs(hits / trials - confidence) < 4 * deviation
    assert (confidence >= 0.95) == (rounds >= 6)
