"""Whether a variant is worse than a baseline, and how sure that is, from kept counts alone.

Corpus scores are not means of sentence scores, so everything here adds up sacrebleu's counts
(experiments.metrics.sentence_statistics) of lines that are drawn anew, and scores the sums. A
*side* is one system: counts [seeds, lines, counts], the same lines in the same order on both sides.

- Paired bootstrap and paired approximate randomization of one run of each side (Koehn 2004; Riezler
  and Maxwell 2005): the draws are sacrebleu's, so the p-values are those of its `--paired-bs` and
  `--paired-ar` with as many resamples. But a shuffle whose difference is the one that was found
  counts against it here: of systems that differ in one line every shuffle is such.
- All seeds together: each draw takes lines, the same for all runs, and trainings. S values drawn
  from S differ too little: intervals that should have 95 % had 80 % with three seeds. So trainings
  are drawn as Student's t has them: the mean of the seeds' differences on the drawn lines, plus
  their standard error times a draw of t with S - 1 degrees of freedom. One seed says nothing of
  other trainings; then lines alone are drawn.
- Non-inferiority: the variant is worse by less than a margin fixed beforehand if the lower end of
  the one-sided 95 % interval of its difference is above -margin. Equivalence (two one-sided tests,
  TOST) if the two-sided 90 % interval lies within the margin on both sides.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.records.significance import AllSeeds, Interval, SeedTests, Settings

Floats = NDArray[np.float64]
# Corpus scores [draws] of summed counts [draws, counts].
Scorer = Callable[[Floats], Floats]

# Lines are drawn for so many resamples at a time. NumPy draws bits in words of 32: with a multiple
# of it the draws are those of one call.
CHUNK = 512


def compare(
    baseline: Floats, variant: Floats, score: Scorer, settings: Settings, margin: float | None
) -> tuple[list[SeedTests], AllSeeds]:
    """The tests of each seed, and of all together: seed i of one side with seed i of the other.

    Raises:
        ValueError: the sides have different seeds, lines or counts, or no line.
    """
    if baseline.shape != variant.shape or baseline.ndim != 3 or not baseline.size:
        raise ValueError(f"the sides' counts have the shapes {baseline.shape} and {variant.shape}")
    found = score(variant.sum(1)) - score(baseline.sum(1))
    drawn = _bootstrap(baseline, variant, score, settings)
    seeds = [
        SeedTests(
            difference=float(found[seed]),
            interval=_interval(drawn[seed], settings.level),
            p_bootstrap=_bootstrap_p(drawn[seed], found[seed]),
            p_randomization=_randomization_p(one, other, score, settings, found[seed]),
        )
        for seed, (one, other) in enumerate(zip(baseline, variant, strict=True))
    ]
    return seeds, _all_seeds(found, drawn, settings, margin)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_interval(values: Sequence[float], level: float) -> Interval | None:
    """Of the mean of values that are normally distributed; None of one value."""
    if len(values) < 2:
        return None
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    half = t_quantile(level, len(values) - 1) * float(error)
    mean = float(np.mean(values))
    return Interval(low=mean - half, high=mean + half, level=level)


def t_quantile(level: float, degrees: int) -> float:
    """What Student's t stays within, on both sides of 0, with probability `level`."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_within(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle)) (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    is_odd = degrees % 2
    term, total = math.cos(angle) if is_odd else 1.0, 0.0
    for step in range(1 + is_odd, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * step / (step + 1)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if is_odd else total


def _bootstrap(baseline: Floats, variant: Floats, score: Scorer, settings: Settings) -> Floats:
    """Differences [seeds, resamples] on lines drawn anew, the same for all seeds of both sides."""
    rng = np.random.default_rng(settings.random_seed)
    lines = baseline.shape[1]
    drawn = []
    for size in _chunks(settings.resamples):
        # How often each line is drawn, [size, lines].
        places = rng.choice(lines, size=(size, lines)) + lines * np.arange(size)[:, None]
        times = np.bincount(places.ravel(), minlength=size * lines).reshape(size, lines)
        weights = times.astype(np.float64)
        drawn.append(
            [
                score(weights @ other) - score(weights @ one)
                for one, other in zip(baseline, variant, strict=True)
            ]
        )
    return np.concatenate(drawn, axis=1)


def _bootstrap_p(drawn: Floats, found: float) -> float:
    """As sacrebleu has it: distances from 0 are centred at their mean.

    Where nothing differs it is below 0.05 in a tenth of all tests, as a one-sided p-value is.
    """
    distances = np.abs(drawn)
    return _p_value(distances - distances.mean(), abs(found))


def _randomization_p(
    baseline: Floats, variant: Floats, score: Scorer, settings: Settings, found: float
) -> float:
    """Two-sided: how often sides whose lines are exchanged at random differ as much."""
    rng = np.random.default_rng(settings.random_seed)
    shuffled = []
    for size in _chunks(settings.resamples):
        own = rng.integers(2, size=(size, len(baseline)), dtype=bool).astype(np.float64)
        one = own @ baseline + (1 - own) @ variant
        shuffled.append(score(one) - score(baseline.sum(0) + variant.sum(0) - one))
    # A shuffle that differs as much counts, up to rounding: lines that are alike make many of them.
    return _p_value(np.abs(np.concatenate(shuffled)), abs(found) * (1 - 1e-9))


def _all_seeds(found: Floats, drawn: Floats, settings: Settings, margin: float | None) -> AllSeeds:
    differences = drawn.mean(0)
    seeds, resamples = drawn.shape
    if seeds > 1:
        rng = np.random.default_rng([settings.random_seed, seeds])
        errors = drawn.std(0, ddof=1) / math.sqrt(seeds)
        differences = differences + errors * rng.standard_t(seeds - 1, size=resamples)
    tost = _interval(differences, 2 * settings.level - 1)
    return AllSeeds(
        difference=float(found.mean()),
        interval=_interval(differences, settings.level),
        tost=tost,
        p_worse=None if margin is None else _p_value(-differences, margin),
    )


def _chunks(resamples: int) -> Iterator[int]:
    for start in range(0, resamples, CHUNK):
        yield min(CHUNK, resamples - start)


def _interval(values: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), level=round(level, 6))


def _p_value(values: Floats, found: float) -> float:
    """The share of draws beyond `found`, never 0 (Riezler and Maxwell 2005).

    A system against itself has p = 1, where sacrebleu gives the smallest that there is.
    """
    if found == 0 and not values.any():
        return 1.0
    return float((np.sum(values > found) + 1) / (len(values) + 1))
