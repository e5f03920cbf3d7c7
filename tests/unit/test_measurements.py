"""Measurements: what is written can be read, ratios are of rounds, and where files are found."""

import json
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import ExperimentError
from experiments.records.checked import median_us_per_token
from experiments.records.measurement import (
    MEASUREMENT_NAME,
    Measurement,
    Samples,
    median_ratio,
    read_measurement,
    speed_up,
    write_measurement,
)
from experiments.records.speed import decoder_speed_up, find_measurements

replace = msgspec.structs.replace


def measured(*heads: int) -> Measurement:
    return synthetic.measurement([synthetic.record(each) for each in heads or (8, 1)])


def test_a_measurement_is_read_as_it_was_written(tmp_path: Path) -> None:
    measurement = measured(8, 2, 1)
    write_measurement(tmp_path / MEASUREMENT_NAME, measurement)
    assert read_measurement(tmp_path / MEASUREMENT_NAME) == measurement
    assert measurement.jobs == {synthetic.record(each).job.id for each in (8, 2, 1)}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema_version",), 99, "schema_version: 99, but this code reads 1 (measure again)"),
        (("surprise",), 1, "top level: Object contains unknown field `surprise`"),
        (("timings",), [], "timings: Expected `array` of length >= 1"),
        (("timings", 0, "samples"), [], "samples: Expected `array` of length >= 1"),
        (("timings", 0, "samples", 0, "total_s"), [], "total_s: Expected `array` of length >= 1"),
        (("timings", 0, "samples", 0, "encoder_s"), [1.0], "different numbers of rounds"),
        (("timings", 0, "samples", 0, "encoder_s"), None, ""),
        (("timings", 0, "samples", 0, "tokens_produced"), 0, "tokens_produced: Expected `int` >="),
        (("timings", 0, "warmup_runs"), 0, "warmup_runs: Expected `int` >= 1"),
        (("timings", 0, "workload", "kind"), "other", "workload.kind: Invalid value 'other'"),
        (("provenance", "threads"), 0, "provenance.threads: Expected `int` >= 1"),
    ],
)
def test_refuses_a_measurement(
    tmp_path: Path, keys: tuple[str | int, ...], value: Any, message: str
) -> None:
    path = tmp_path / MEASUREMENT_NAME
    write_measurement(path, measured())
    whole = json.loads(path.read_text(encoding="utf-8"))
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(whole), encoding="utf-8")
    if not message:  # an engine may leave the encoder untold
        assert read_measurement(path).timings[0].samples[0].us_per_token("decoder") is None
        return
    with pytest.raises(ExperimentError) as caught:
        read_measurement(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_contenders_are_there_once_and_have_as_many_rounds() -> None:
    timing = measured().timings[0]
    first, second = timing.samples
    with pytest.raises(ValueError, match="a contender is there twice"):
        replace(timing, samples=[first, first])
    fewer = replace(second, total_s=second.total_s[1:], encoder_s=second.raw_s("encoder")[1:])
    with pytest.raises(ValueError, match="contenders have different numbers of rounds"):
        replace(timing, samples=[first, fewer])


@given(raw=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=9), tokens=st.integers(1, 2048))
def test_medians_are_those_of_the_raw_samples(raw: list[float], tokens: int) -> None:
    good = measured().timings[0].samples[0]
    samples = replace(good, tokens_produced=tokens, total_s=raw, encoder_s=[0.0] * len(raw))
    assert msgspec.json.decode(msgspec.json.encode(samples), type=Samples) == samples
    for phase in ("decoder", "total"):
        assert samples.us_per_token(phase) == median_us_per_token(raw, tokens)
        assert samples.us_per_token(phase) == 1e6 * statistics.median(raw) / tokens


@given(
    pairs=st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=12)
)
def test_a_speed_up_is_the_median_of_paired_ratios(pairs: list[tuple[float, float]]) -> None:
    base, own = measured().timings[0].samples
    base = replace(base, total_s=[b for b, _ in pairs], encoder_s=None)
    own = replace(own, total_s=[o for _, o in pairs], encoder_s=None)
    ratio = speed_up(base, own, "total")
    assert ratio == median_ratio([b / o for b, o in pairs])
    assert ratio is not None
    assert ratio.low <= ratio.median <= ratio.high
    assert speed_up(base, own, "decoder") is None


def test_a_speed_up_is_over_the_multi_head_model_of_the_same_baseline_and_engine() -> None:
    timing = measured(8, 1).timings[0]
    mha, mqa = timing.samples
    wide = replace(
        mha,
        contender=replace(
            mha.contender,
            architecture=synthetic.PAPER.multi_head,
        ),
        total_s=[10 * s for s in mha.total_s],
    )
    stock = replace(
        mha,
        contender=replace(mha.contender, engine="stock"),
        total_s=[10 * s for s in mha.total_s],
    )
    several = replace(timing, samples=[wide, stock, mha, mqa])
    assert decoder_speed_up(several, mqa) == speed_up(mha, mqa, "decoder")
    assert decoder_speed_up(replace(timing, samples=[wide, stock, mqa]), mqa) is None


def test_measurements_lie_beside_the_records(tmp_path: Path) -> None:
    """Beside a folder of runs, beside an experiment's, in the records, or where one says."""
    stages = {
        "outputs/measurements/quickstart/mha-1": 1,
        "outputs/measurements/other/mha-2": 2,
        "outputs/runs/quickstart/job": 3,
    }
    made = {
        number: replace(measured(8), created_utc=measured(8).created_utc.replace(hour=number))
        for number in (1, 2, 3, 4)
    }
    for folder, number in stages.items():
        write_measurement(tmp_path / folder / MEASUREMENT_NAME, made[number])
        # What a stage keeps beside its measurement is none.
        (tmp_path / folder / "request.json").write_text("{}", encoding="utf-8")
    write_measurement(tmp_path / "elsewhere" / "one.json", made[4])

    def found(*records: str, given: tuple[str, ...] = ()) -> list[int]:
        measurements = find_measurements(
            [tmp_path / each for each in records], [tmp_path / each for each in given]
        )
        return sorted(measurement.created_utc.hour for measurement in measurements)

    assert found("outputs/runs/quickstart") == [1, 3]
    assert found("outputs/runs/other") == [2]
    assert found("outputs/runs") == [1, 2, 3]
    assert found("outputs/runs", "outputs/runs/quickstart") == [1, 2, 3]
    assert found("outputs/runs", given=("elsewhere", "outputs/measurements/other")) == [2, 4]
    assert found("outputs/runs", given=("outputs/measurements/other/mha-2",)) == [2]
    with pytest.raises(ExperimentError, match="absent: no such folder of measurements"):
        found("outputs/runs", given=("absent",))


def test_measurements_of_a_folder_are_read_newest_first(tmp_path: Path) -> None:
    old = measured(8)
    new = replace(old, created_utc=old.created_utc.replace(year=2027))
    write_measurement(tmp_path / "a" / MEASUREMENT_NAME, old)
    write_measurement(tmp_path / "b" / MEASUREMENT_NAME, new)
    assert sorted(find_measurements([tmp_path]), key=lambda m: m.created_utc) == [old, new]
