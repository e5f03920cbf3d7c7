"""What the views (report, wandb) show of a measurement: what leads, and what a speed-up is over.

Nothing imports torch.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.records.measurement import (
    MEASUREMENT_NAME,
    FixedLengths,
    Measurement,
    Ratio,
    Samples,
    Timing,
    TrainingUpdates,
    read_measurement,
    speed_up,
)
from gqa_fairseq.parity import is_variant

Shape = tuple[int, int, int]  # sentences, source tokens, target tokens
# Shazeer's lengths at a batch that one machine holds: keys and columns that name no shape mean it.
HEADLINE_SHAPE: Shape = (64, 128, 128)


def shape_of(workload: FixedLengths) -> Shape:
    """Sentences, source tokens and target tokens."""
    return workload.batch, workload.source_tokens, workload.target_tokens


def fixed_length_timings(measurement: Measurement) -> list[tuple[FixedLengths, Timing]]:
    """Decoding to fixed lengths, the headline's shape first and the narrowest beam first."""
    found = [
        (timing.workload, timing)
        for timing in measurement.timings
        if isinstance(timing.workload, FixedLengths)
    ]
    return sorted(
        found,
        key=lambda each: (shape_of(each[0]) != HEADLINE_SHAPE, shape_of(each[0]), each[0].beam),
    )


def training_timing(measurement: Measurement) -> Timing | None:
    """The first timing of training updates."""
    found = (t for t in measurement.timings if isinstance(t.workload, TrainingUpdates))
    return next(found, None)


def decoder_speed_up(timing: Timing, samples: Samples) -> Ratio | None:
    """How many times as fast the decoder is as that of the multi-head baseline beside it.

    None where the timing has no multi-head contender of the same baseline and engine, or where
    one of the two does not tell the decoder's time apart.
    """
    own = samples.contender
    for other in timing.samples:
        baseline = other.contender
        is_beside = baseline.engine == own.engine
        if is_beside and is_variant(own.architecture, baseline.architecture):
            return speed_up(other, samples, "decoder")
    return None


def find_measurements(records: Sequence[Path], given: Sequence[Path] = ()) -> list[Measurement]:
    """The measurements of the folders `given`, or those that lie beside folders of records.

    Beside `outputs/runs/quickstart` lie `outputs/measurements/quickstart`, and what is called
    measurement.json in the folder itself; beside `results/runs`, `results/measurements`.

    Raises ExperimentError when a given folder is missing or a measurement is refused.
    """
    return [read_measurement(path) for path in measurement_files(records, given)]


def measurement_files(records: Sequence[Path], given: Sequence[Path] = ()) -> list[Path]:
    """The files of `find_measurements`; raises ExperimentError when a given folder is missing."""
    for folder in given:
        if not folder.is_dir():
            raise ExperimentError(
                f"{folder}: no such folder of measurements (measure first, or leave "
                "--measurements out)"
            )
    files: dict[Path, None] = {}
    if given:
        for folder in given:
            files |= dict.fromkeys(_measurement_files(folder))
    else:
        for folder in map(Path.absolute, records):
            files |= dict.fromkeys(sorted(folder.rglob(MEASUREMENT_NAME)))
            beside = folder.parent.parent / "measurements" / folder.name
            for place in (beside, folder.parent / "measurements"):
                files |= dict.fromkeys(_measurement_files(place))
    return list(files)


def _measurement_files(folder: Path) -> list[Path]:
    """Every measurement.json at any depth, and the other JSON files of a folder without one.

    A stage keeps its request beside its measurement.json.
    """
    named = sorted(folder.rglob(MEASUREMENT_NAME))
    return named if folder / MEASUREMENT_NAME in named else [*named, *sorted(folder.glob("*.json"))]
