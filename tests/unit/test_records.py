"""Records: what is written can be read, and nothing else can."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st

from data_prep.spec import Manifest
from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of
from experiments.records.checked import median_us_per_token
from experiments.records.hypotheses import read_hypotheses
from experiments.records.measurement import (
    MEASUREMENT_NAME,
    Measurement,
    Samples,
    median_ratio,
    read_measurement,
    speed_up,
    write_measurement,
)
from experiments.records.parts import TrainPoint, updates_more
from experiments.records.record import (
    RECORD_NAME,
    Record,
    read_record,
    read_records,
    write_record,
)
from experiments.records.speed import decoder_speed_up, find_measurements
from experiments.records.storage import read_json, write_json, write_text

replace = msgspec.structs.replace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record file that `refusal` changes."""
    target = tmp_path / "runs" / "job" / "record.json"
    write_record(target, synthetic.record(num_kv_heads=2))
    return target


def refusal(path: Path, *keys: str | int, value: Any) -> str:
    """The message with which the record is refused once the field at `keys` holds `value`."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        read_record(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("placement", ["all", "decoder"])
@pytest.mark.parametrize("diverged_after", [None, 120])
def test_round_trip(
    tmp_path: Path, num_kv_heads: int, placement: str, diverged_after: int | None
) -> None:
    record = synthetic.record(num_kv_heads, placement=placement, diverged_after=diverged_after)
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record


@pytest.mark.parametrize(
    ("num_kv_heads", "placement", "variant"),
    [
        (8, "all", "mha"),
        (8, "decoder", "mha"),
        (4, "all", "gqa4"),
        (2, "decoder", "gqa2-dec"),
        (1, "all", "mqa"),
        (1, "decoder", "mqa-dec"),
    ],
)
def test_variant_is_derived(num_kv_heads: int, placement: str, variant: str) -> None:
    record = synthetic.record(num_kv_heads, placement=placement, seed=3)
    assert record.variant == variant
    assert record.name == f"{variant}-seed3-{record.job.id[:12]}"


@pytest.mark.parametrize("num_kv_heads", [1, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.05, 1.0])
def test_an_uptrained_model_has_a_record_and_a_name_of_its_own(
    tmp_path: Path, num_kv_heads: int, alpha: float
) -> None:
    record = synthetic.record(num_kv_heads, seed=2, uptrained=("svd-product", alpha))
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record
    name = {1: "mqa-ff768", 8: "mha"}[num_kv_heads] + f"-svd-product-{alpha:g}"
    assert record.variant == name
    assert record.name == f"{name}-seed2-{record.job.id[:12]}"
    assert (record.training is None) == (alpha == 0)
    assert (record.result.curve == []) == (alpha == 0)


@pytest.mark.parametrize(
    ("alpha", "parent_updates", "updates"),
    [
        (0.0, 550, 0),
        (0.05, 550, 28),
        (0.1, 550, 55),  # 0.1 * 550 is 55.00000000000001 in floats
        (0.07, 100, 7),  # and 0.07 * 100 is 7.000000000000001
        (1e-05, 100_000, 1),
        (1.0, 12, 12),
    ],
)
def test_a_share_of_updates_is_rounded_up_as_it_is_written(
    alpha: float, parent_updates: int, updates: int
) -> None:
    assert updates_more(alpha, parent_updates) == updates


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("uptraining", "updates"), 29, "updates is 29, but 0.05 of 600 is 30"),
        (("uptraining", "alpha"), 1.5, "uptraining.alpha: Expected `float` <= 1.0"),
        (("uptraining", "method"), "median", "uptraining.method: Invalid enum value 'median'"),
        (("uptraining",), None, "result.training is null, which only a converted model may have"),
        (("result", "training"), None, "uptraining.updates is 30, training has 0"),
    ],
)
def test_an_uptraining_that_contradicts_itself_is_refused(
    tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    path = tmp_path / "record.json"
    alpha = 0.0 if keys == ("uptraining",) else 0.05
    write_record(path, synthetic.record(1, uptrained=("mean", alpha)))
    assert message in refusal(path, *keys, value=value)


EVALUATION, TRAINING = ("result", "evaluation"), ("result", "training")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema_version",), 99, "schema_version: 99, but this code reads 2"),
        (("surprise",), 1, "top level: Object contains unknown field `surprise`"),
        (("job", "surprise"), 1, "job: Object contains unknown field `surprise`"),
        (
            ("architecture", "d_model"),
            "192",
            "architecture.d_model: Expected `int`, got `str`",
        ),
        (
            ("architecture", "decoder_heads", "num_heads"),
            8.5,
            "architecture.decoder_heads.num_heads: Expected `int`, got `float`",
        ),
        (("architecture", "decoder_heads", "num_kv_heads"), 4, "the model has 3034368 parameters"),
        ((*EVALUATION, "parameters"), 7, "has 7 parameters, its architecture 3034368"),
        ((*EVALUATION, "engine"), "other", "result.evaluation.engine: Invalid enum value"),
        (("result", "outcome"), "killed", "result.outcome: Invalid value 'killed'"),
        (("job", "id"), "not hex", "job.id: Expected `str` matching regex"),
        (("job", "started_utc"), "2026-01-01T00:00:00", "job.started_utc: Expected"),
        (("stages",), [], "stages: Expected `array` of length >= 1"),
        (
            ("stages", 0, "provenance", "code", "dirty"),
            None,
            "provenance.code: commit and dirty go together",
        ),
        (("stages", 0, "provenance", "threads"), 0, "provenance.threads: Expected `int` >= 1"),
        (("stages", 0, "recipe"), 0, "recipe: Expected `int` >= 1"),
        (("seed",), 5, "top level: seed is not config's seed"),
        (("data", "checksum"), "abc", "data.checksum: Expected `str` matching regex"),
        (("data", "splits", "train", "kept"), 1, "kept + dropped is 101, read is 10000"),
        (("data", "overlap", "test", "lines_covered_share"), 1.5, "lines_covered_share: Expected"),
        (("data", "overlap", "train2"), None, "data.overlap[...]: Expected `object`, got `null`"),
        ((*TRAINING, "curve"), [], "result.training.curve: Expected `array` of length >= 1"),
        ((*TRAINING, "updates"), 599, "training: curve goes beyond the number of updates"),
        ((*TRAINING, "target_tokens_per_update"), 1.0, "but the other fields give 4000"),
        ((*TRAINING, "us_per_target_token"), 1.0, "but the other fields give 100"),
        ((*TRAINING, "curve", 1, "update"), 50, "training: curve's updates do not increase"),
        ((*EVALUATION, "dev_perplexity"), 2.0, "dev_perplexity is 2, but the other fields give"),
        ((*EVALUATION, "scores", 0, "value"), 100.5, "bleu is 100.5, not within 0 and 100"),
        ((*EVALUATION, "scores", 0, "metric"), "ter", "ter is none of bleu, bleu_intl, chrf"),
        ((*EVALUATION, "scores", 0, "beam"), 4, "evaluation: scores has the same score twice"),
        ((*EVALUATION, "scores", 0, "lines"), 499, "a score on test has 499 lines"),
        ((*EVALUATION, "scores", 0, "split"), "train9", "on train9, which data does not hold"),
        (
            ("data", "subsets", "filtered"),
            {"file": "f", "lines": 501},
            "has 501 lines, more than test",
        ),
        ((*EVALUATION, "model_free", 0, "name"), "nearest", "has the same score twice"),
        ((*EVALUATION, "model_free", 0, "name"), "other", "name: Invalid enum value 'other'"),
    ],
)
def test_refuses(path: Path, keys: tuple[str | int, ...], value: Any, message: str) -> None:
    assert message in refusal(path, *keys, value=value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("after_update",), 99, "result: curve goes beyond the number of updates"),
        (("after_update",), -1, "result.after_update: Expected `int` >= 0"),
        (("reason",), "", "result.reason: Expected `str` of length >= 1"),
        (("evaluation",), None, "result: Object contains unknown field `evaluation`"),
    ],
)
def test_refuses_a_diverged_training(
    tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    path = tmp_path / "record.json"
    write_record(path, synthetic.record(2, diverged_after=120))
    assert message in refusal(path, "result", *keys, value=value)


def test_a_subset_is_scored_on_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = synthetic.wmt14_record(num_kv_heads=2)
    write_record(path, record)
    assert read_record(path) == record
    scores = synthetic.finished(record).evaluation.scores
    of_subset = [score.split for score in scores].index("test_filtered")
    refused = refusal(path, *EVALUATION, "scores", of_subset, "lines", value=500)
    assert "a score on test_filtered has 500 lines, the data has 450" in refused


def test_what_was_written_before_a_field_was_there_is_still_read(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    del whole["data"]["subsets"], whole["data"]["note"]
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert read_record(path).data.subsets == {}


RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"


def test_the_committed_records_are_read() -> None:
    assert {record.variant for record in read_records(RUNS)} >= {"mha", "mqa"}


def test_committed_scores_follow_from_the_counts_beside_them() -> None:
    """So every test of significance can be made from results/ alone, without a reference."""
    for path in sorted(RUNS.rglob(RECORD_NAME)):
        evaluation = read_record(path).evaluation
        assert evaluation is not None
        for score in [*evaluation.scores, *evaluation.model_free]:
            kept = read_hypotheses(path.parent / "hypotheses", score.hypotheses_sha256)
            counts = kept.of(score.metric)
            assert counts.signature == score.signature
            scorer = METRICS[score.metric].scorer("de")
            assert score_of(scorer, counts.lines) == score.value
            assert len(kept.lines) == (score.lines if score in evaluation.scores else 0)


def test_refuses_a_missing_field(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    later = {"uptraining"}  # records that were written before have none
    for name in set(whole) - later:
        part = {key: value for key, value in whole.items() if key != name}
        path.write_text(json.dumps(part), encoding="utf-8")
        with pytest.raises(ExperimentError, match=f"missing required field `{name}`"):
            read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema_version": NaN}', b"[]"])
def test_refuses_what_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 2, "job"'])
def test_a_damaged_record_in_a_folder_says_what_to_do(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        read_records(path.parent.parent)
    assert str(caught.value) == (
        f"{path}: not JSON: Input data was truncated (the file is damaged: remove it and make it "
        "again)"
    )


def test_a_truncated_record_is_refused_at_every_length(path: Path) -> None:
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ExperimentError):
            read_record(path)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_float_is_ever_infinite(number: float) -> None:
    raw = [1.0, number, 1.0]
    good = measured().timings[0].samples[0]
    with pytest.raises(ValueError, match=r"_s is .*, not a finite number"):
        replace(good, total_s=raw, encoder_s=raw)
    with pytest.raises(ValueError, match="dev_nll_nats_per_token is"):
        TrainPoint(
            update=1,
            train_nll_nats_per_token=None,
            dev_nll_nats_per_token=number,
            learning_rate=None,
            target_tokens=1,
            wall_s=0.0,
        )


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    """Constraints of the types are not checked on construction, so they are on writing."""
    target = tmp_path / "record.json"
    good = synthetic.record()
    bad = replace(good, job=replace(good.job, id="X"))
    with pytest.raises(ExperimentError, match=r"record\.json: not written: job\.id: "):
        write_record(target, bad)
    assert list(tmp_path.iterdir()) == []


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


@given(
    kept=st.integers(0, 10**9),
    dropped=st.dictionaries(st.text(min_size=1), st.integers(0, 10**6), max_size=4),
    error=st.integers(1, 3),
)
def test_every_line_is_accounted_for(kept: int, dropped: dict[str, int], error: int) -> None:
    manifest = msgspec.to_builtins(synthetic.manifest())
    train = manifest["splits"]["train"]
    train |= {"read": kept + sum(dropped.values()), "kept": kept, "dropped": dropped}
    assert msgspec.convert(manifest, Manifest).splits["train"].kept == kept
    train["read"] += error
    with pytest.raises(msgspec.ValidationError, match=r"kept \+ dropped"):
        msgspec.convert(manifest, Manifest)


def test_held_out_lines_are_never_dropped(path: Path) -> None:
    counts = msgspec.to_builtins(synthetic.manifest().splits["test"])
    dropping = counts | {"kept": 499, "dropped": {"too long": 1}}
    refused = refusal(path, "data", "splits", "test", value=dropping)
    assert "data.splits.test drops lines, which only train may" in refused


def test_reads_a_folder_in_order_and_nothing_but_records(tmp_path: Path) -> None:
    written = [synthetic.record(seed=seed) for seed in (1, 2, 3)]
    for seed, record in enumerate(written):
        write_record(tmp_path / "experiment" / f"job{seed}" / "record.json", record)
    (tmp_path / "experiment" / "job0" / ".record.json.x.tmp").write_text("half", encoding="utf-8")
    (tmp_path / "experiment" / "other.json").write_text("{}", encoding="utf-8")
    assert read_records(tmp_path) == written


def test_reading_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such folder of records"):
        read_records(tmp_path / "absent")


def test_one_bad_record_refuses_the_folder(path: Path) -> None:
    path.with_name("more").mkdir()
    (path.with_name("more") / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"more/record\.json: not JSON"):
        read_records(path.parent)


_KILLED_WHILE_REPLACING = """
import os, sys, signal
from pathlib import Path
from experiments.records import storage
storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
storage.write_text(Path(sys.argv[1]), "new" * 100_000)
"""


def test_a_kill_between_write_and_replace_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    write_text(target, "old")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_REPLACING, str(target)],
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert killed.returncode == -9
    assert target.read_text(encoding="utf-8") == "old"
    write_text(target, "new")  # What the killed one left behind is in nobody's way.
    assert target.read_text(encoding="utf-8") == "new"


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "record.json"
    write_text(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExperimentError, match=r"record\.json: cannot be written: No space left"):
        write_text(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ExperimentError, match="cannot be written"):
        write_text(tmp_path / "file" / "record.json", "text")


def test_files_are_as_readable_as_the_umask_allows(tmp_path: Path) -> None:
    write_text(tmp_path / "atomic", "")
    (tmp_path / "plain").write_text("", encoding="utf-8")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_stages_write_and_read_parts(tmp_path: Path) -> None:
    part = synthetic.evaluation()
    write_json(tmp_path / "evaluation.json", part)
    assert read_json(tmp_path / "evaluation.json", type(part)) == part
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_json(tmp_path / "absent.json", Record)
