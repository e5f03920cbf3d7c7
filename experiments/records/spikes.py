"""Loss spikes: where a training loss jumps far above what the points before it were like."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.records.parts import TrainPoint

# OLMo 2 (arXiv 2501.00656, section 3.1, after Karpathy): a value of a loss or a gradient norm is a
# spike at seven standard deviations or more from the rolling mean of the values before it.
DEVIATIONS = 7.0
# There it is 1,000 values, one an update. Points here are means over the updates between two log
# lines: 20 are 1,000 updates in conf/experiment/wmt14.yaml. With fewer, seven estimated deviations
# are no longer rare: for normal noise a point is that high by chance once in a million with 20
# points, and once in 20,000 with 10 (Student's t).
WINDOW = 20
# fairseq logs losses with three decimals, in bits: no deviation can be told below that.
RESOLUTION_NATS = 1e-3 * math.log(2)


@dataclass(frozen=True)
class Spike:
    """Consecutive points of a curve that are high, in updates.

    `rise_nats` is how far the highest of them is above the mean of the points before the spike.
    """

    first_update: int
    last_update: int
    highest_update: int
    rise_nats: float


def loss_spikes(curve: Sequence[TrainPoint]) -> list[Spike]:
    """The spikes of a training loss, by update.

    A point is high when its train loss is at least DEVIATIONS sample standard deviations above the
    mean of the last WINDOW points before it that are not high themselves. High points that follow
    each other are one spike, however long the loss takes to come down. Points without a train loss
    are passed over, and the first WINDOW points are never high: they have too few before them.

    What this does not see: a jump of a single update that the mean between two log lines hides, and
    a jump while the loss still falls fast, because that fall is in the deviation. A training that
    diverges is told of by its record (`Diverged`); its spikes are those before its end.
    """
    spikes: list[Spike] = []
    calm: list[float] = []
    is_high = False
    for update, loss in _train_losses(curve):
        before = calm[-WINDOW:]
        was_high, is_high = is_high, False
        if len(before) == WINDOW:
            rise = loss - statistics.fmean(before)
            is_high = rise >= DEVIATIONS * max(statistics.stdev(before), RESOLUTION_NATS)
        if not is_high:
            calm.append(loss)
        elif not was_high:
            spikes.append(Spike(update, update, update, rise))
        else:
            spike = replace(spikes.pop(), last_update=update)
            if rise > spike.rise_nats:
                spike = replace(spike, highest_update=update, rise_nats=rise)
            spikes.append(spike)
    return spikes


def judged_points(curve: Sequence[TrainPoint]) -> int:
    """How many points of a curve `loss_spikes` judges: those with WINDOW points before them."""
    return max(0, len(_train_losses(curve)) - WINDOW)


def _train_losses(curve: Sequence[TrainPoint]) -> list[tuple[int, float]]:
    return [
        (point.update, point.train_nll_nats_per_token)
        for point in curve
        if point.train_nll_nats_per_token is not None
    ]
