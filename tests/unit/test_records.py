"""Records: what is written can be read, and nothing else can."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from kept_results import read_records

from data_prep.spec import Manifest
from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of
from experiments.records.hypotheses import read_hypotheses
from experiments.records.parts import TrainPoint, updates_more
from experiments.records.record import (
    RECORD_NAME,
    read_record,
    record_files,
    write_record,
)

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


@given(st.integers(2, 5), st.integers(0, 3), st.floats(30, 4000))
def test_the_rate_of_training_leaves_out_where_it_stood_still(
    validated: int, paused: int, pause_s: float
) -> None:
    """A pause changes the rate of the whole record, and not that of the lines that ran."""
    every, updates, us = 50, 1000, 0.4 / 4000 * 1e6
    plain = synthetic.training(updates=updates)
    at = every * (1 + validated * paused + 1)  # the line before it had no validation
    curve = [
        msgspec.structs.replace(
            point,
            dev_nll_nats_per_token=3.0 if point.update % (every * validated) == 0 else None,
            wall_s=point.wall_s + (pause_s if point.update >= at else 0.0),
        )
        for point in synthetic.curve(updates=updates)
    ]
    slow = (updates * 0.4 + pause_s) / (updates * 4000)
    seen = msgspec.structs.replace(
        plain,
        curve=curve,
        us_per_target_token=1e6 * slow,
        update_wall_s=updates * 0.4 + pause_s,
    )
    assert plain.running_us_per_target_token == plain.us_per_target_token
    assert seen.running_us_per_target_token == pytest.approx(us)


def test_what_was_written_before_a_field_was_there_is_still_read(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    del whole["data"]["subsets"], whole["data"]["note"]
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert read_record(path).data.subsets == {}


RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"


def test_the_committed_records_are_read() -> None:
    assert {record.variant for record in read_records(RUNS)} >= {"mha", "mqa"}


# Of Multi30k's test, whose two files follow one another.
SUBSETS = {"test_2016_flickr": slice(1000), "test_2017_flickr": slice(1000, 2000)}


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
            part = SUBSETS.get(score.split, slice(None))
            assert score_of(scorer, counts.lines[part]) == score.value
            if score in evaluation.model_free:
                assert not kept.lines
            else:
                assert len(kept.lines[part]) == score.lines


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
def test_a_damaged_record_says_what_to_do(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        read_record(path)
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
    good = synthetic.measurement([synthetic.record(8)]).timings[0].samples[0]
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
        record_files(tmp_path / "absent")
