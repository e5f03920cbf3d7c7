"""What counts as a loss spike, on curves made by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.records.parts import TrainPoint
from experiments.records.spikes import (
    DEVIATIONS,
    RESOLUTION_NATS,
    WINDOW,
    Spike,
    judged_points,
    loss_spikes,
)

# Twenty losses around 3: their mean is 3, their sample deviation 0.1 * sqrt(20 / 19).
CALM = [2.9, 3.1] * (WINDOW // 2)
DEVIATION = 0.1 * math.sqrt(WINDOW / (WINDOW - 1))


def curve(*losses: float | None) -> list[TrainPoint]:
    """A point every 50 updates; None is a point with a dev loss alone."""
    return [
        TrainPoint(
            update=50 * number,
            train_nll_nats_per_token=loss,
            dev_nll_nats_per_token=4.0,
            learning_rate=1e-3,
            target_tokens=number,
            wall_s=float(number),
        )
        for number, loss in enumerate(losses, start=1)
    ]


def test_a_point_that_jumps_is_a_spike() -> None:
    [spike] = loss_spikes(curve(*CALM, 5.0, 3.0, 3.1))
    assert spike == Spike(1050, 1050, 1050, pytest.approx(2.0))


@pytest.mark.parametrize(("deviations", "spikes"), [(0.99 * DEVIATIONS, 0), (DEVIATIONS, 1)])
def test_seven_deviations_are_a_spike_and_less_is_none(deviations: float, spikes: int) -> None:
    jump = 3.0 + deviations * DEVIATION + 1e-9
    assert len(loss_spikes(curve(*CALM, jump, 3.0))) == spikes


def test_high_points_in_a_row_are_one_spike_until_the_loss_is_down() -> None:
    [spike] = loss_spikes(curve(*CALM, 4.5, 6.0, 5.0, 4.0, 3.1, 2.9))
    assert spike == Spike(1050, 1200, 1100, pytest.approx(3.0))


def test_a_spike_does_not_hide_the_next_one() -> None:
    """High points are not among those that later ones are compared with."""
    found = loss_spikes(curve(*CALM, 9.0, 3.0, 5.0, 3.0))
    assert [(spike.first_update, spike.last_update) for spike in found] == [
        (1050, 1050),
        (1150, 1150),
    ]
    assert found[1].rise_nats == pytest.approx(2.0, abs=0.01)


def test_a_loss_that_stays_up_is_one_spike() -> None:
    [spike] = loss_spikes(curve(*CALM, *[5.0] * 30))
    assert (spike.first_update, spike.last_update) == (1050, 2500)


def test_the_first_points_are_not_judged() -> None:
    early = curve(*CALM[:-1], 50.0)
    assert len(early) == WINDOW
    assert loss_spikes(early) == []
    assert judged_points(early) == 0
    assert judged_points(curve(*CALM, 3.0, None, 3.0)) == 2


def test_points_without_a_train_loss_are_passed_over() -> None:
    [spike] = loss_spikes(curve(*CALM, 5.0, None, 5.0, None, 3.0))
    assert (spike.first_update, spike.last_update) == (1050, 1150)


def test_a_flat_curve_has_no_spike_below_what_the_log_resolves() -> None:
    flat = [3.0] * WINDOW
    assert loss_spikes(curve(*flat, 3.0 + 0.99 * DEVIATIONS * RESOLUTION_NATS)) == []
    assert len(loss_spikes(curve(*flat, 3.0 + 1.01 * DEVIATIONS * RESOLUTION_NATS))) == 1


@given(st.floats(10, 500), st.floats(0, 5), st.integers(0, 200))
def test_a_loss_that_only_falls_has_no_spike(decay: float, floor: float, more: int) -> None:
    losses = [floor + 9 * math.exp(-number / decay) for number in range(WINDOW + more)]
    assert loss_spikes(curve(*losses)) == []


@given(st.lists(st.floats(1, 9), max_size=80))
def test_spikes_are_apart_and_in_order(losses: list[float]) -> None:
    found = loss_spikes(curve(*losses))
    updates = [u for spike in found for u in (spike.first_update, spike.last_update)]
    assert updates == sorted(updates)
    for spike in found:
        assert spike.first_update <= spike.highest_update <= spike.last_update
        assert losses[spike.highest_update // 50 - 1] == max(
            losses[spike.first_update // 50 - 1 : spike.last_update // 50]
        )
        assert spike.rise_nats > 0
