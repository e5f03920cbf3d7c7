"""What each part of a card's questions says in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from card_records import case_of, measurement_of, samples_of, stamp, timing_of_decoding, two_models

from experiments.card.correctness import _RESULT
from experiments.card.models import Asked, flops_of_an_update, predicted_peak_bytes
from experiments.card.parts import BY_NAME
from experiments.errors import ExperimentError
from experiments.records.card import (
    AtATime,
    AttentionCases,
    Check,
    Checks,
    SideBySide,
)
from experiments.records.measurement import (
    FixedLengths,
    Timing,
    TrainingUpdates,
    write_measurement,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_figures_of_decoding(asked: Asked) -> None:
    timing = timing_of_decoding()
    assert isinstance(timing.workload, FixedLengths)
    path = asked.folder / "decoding.json"
    write_measurement(path, measurement_of(asked, timing))
    # 4 / 2 over 3 / 1; 2 s over the 1 s that 100 bytes take.
    assert BY_NAME["decoding"].found(path) == (
        "beam 4 batch 2: 4.0 x stock (5), MQA/MHA 0.67 of predicted (0.9), 2.00 x roofline (1.2)"
    )
    predicted = predicted_peak_bytes(two_models()[0], timing.workload, "float32")
    assert f"beam 4 G = 8 {1000 / predicted:.2f}," in BY_NAME["memory"].found(path)


def test_the_figures_of_training(asked: Asked) -> None:
    multi_head, _ = two_models()
    workload = TrainingUpdates(batch=2, source_tokens=6, target_tokens=5)
    timing = Timing(
        workload=workload,
        warmup_runs=1,
        samples=[samples_of(multi_head, "fairseq", 2.0), samples_of(multi_head, "stock", 5.0)],
        read_bytes_per_s=[1.0],
        matrix_flops_per_s=[flops_of_an_update(multi_head, workload) / 1.0],
    )
    path = asked.folder / "training.json"
    write_measurement(path, measurement_of(asked, timing))
    assert BY_NAME["training"].found(path) == "50% of the measured rate (40 %), 2.50 x stock (1.5)"


def test_the_own_kernel_wins_where_it_is_faster_by_more_than_a_tenth(asked: Asked) -> None:
    cases = [case_of(own=1.0, sdpa=1.1, flex=3.0), case_of(own=1.0, flex=1.2), case_of(own=1.0)]
    assert [case.times_as_fast for case in cases] == [1.1, 1.2, None]
    record = AttentionCases(**stamp(asked), read_bytes_per_s=[1.0], cases=cases)
    assert "more than 1.1 in 1 of 2 cases (1.10 to 1.20)" in record.found


def test_what_was_not_compared_has_no_figure(asked: Asked) -> None:
    with pytest.raises(ExperimentError, match="no cell was measured within the time"):
        BY_NAME["predicted"].found(asked.folder / "predicted")
    cases = AttentionCases(**stamp(asked), read_bytes_per_s=[1.0], cases=[case_of(own=1.0)])
    assert cases.found == "in no case did both the own kernel and a library run"


def test_other_figures(asked: Asked) -> None:
    checks = [Check(name=f"t{i}", outcome="passed") for i in range(3)]
    assert Checks(**stamp(asked), checks=checks).are_green
    bad = Checks(**stamp(asked), checks=[*checks, Check(name="x", outcome="unfinished")])
    assert not bad.are_green
    assert bad.found == "3 of 4 tests passed, 1 unfinished (to reach: all)"
    rates = [AtATime(trainings=1, updates_per_s=[2.0]), AtATime(trainings=4, updates_per_s=[5.0])]
    found = SideBySide(**stamp(asked), parameters=1, tokens_per_update=1, rates=rates).found
    assert found == "updates/s over one after the other: 4 at a time 2.50 (alone 2.0)"


def test_the_outcome_of_each_test_is_read_from_the_log() -> None:
    log = (
        "tests/a.py::test_x[1-self beam] PASSED   [ 50%]\n"
        "tests/a.py::test_y FAILED [ 75%]\ntests/b.py::test_z SKIPPED (no GPU) [100%]\n"
        "tests/b.py::test_half\nFAILED tests/a.py::test_y - assert\n"
    )
    assert _RESULT.findall(log) == [
        ("tests/a.py::test_x[1-self beam]", "PASSED"),
        ("tests/a.py::test_y", "FAILED"),
        ("tests/b.py::test_z", "SKIPPED"),
    ]
