"""Records: what is written can be read, and nothing else can."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from experiments.record_parts import (
    DataInfo,
    ModelInfo,
    SplitCounts,
    Timing,
    TrainPoint,
    median_us_per_token,
)
from experiments.storage import read_json, write_json, write_text
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import ExperimentError
from experiments.records import Record, read_record, read_records, write_record


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
@pytest.mark.parametrize("stages", [True, False])
def test_round_trip(tmp_path: Path, num_kv_heads: int, placement: str, stages: bool) -> None:
    record = synthetic.record(num_kv_heads, placement=placement, stages=stages)
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
    assert synthetic.model_info(num_kv_heads, placement).variant == variant


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema_version",), 99, "schema_version: 99, but this code reads 1"),
        (("surprise",), 1, "top level: Object contains unknown field `surprise`"),
        (("model", "surprise"), 1, "model: Object contains unknown field `surprise`"),
        (("model", "num_heads"), "8", "model.num_heads: Expected `int`, got `str`"),
        (("model", "num_heads"), 8.5, "model.num_heads: Expected `int`, got `float`"),
        (("model", "num_kv_heads"), 3, "model: num_kv_heads 3 does not divide num_heads 8"),
        (("model", "num_kv_heads"), 16, "model: num_kv_heads 16 does not divide num_heads 8"),
        (("model", "residual"), 7, "model: residual 7 is not parameters - parameters_mha"),
        (("model", "parameters_predicted"), 7, "differ from the predicted 7"),
        (("model", "placement"), "encoder", "model.placement: Invalid enum value 'encoder'"),
        (("job", "variant"), "mha", "job.variant mha is not the model's gqa2"),
        (("job", "id"), "not hex", "job.id: Expected `str` matching regex"),
        (("job", "started_utc"), "2026-01-01T00:00:00", "job.started_utc: Expected"),
        (("code", "dirty"), None, "code: commit and dirty go together"),
        (("seed",), 5, "top level: seed is not config's seed"),
        (("data", "checksum"), "abc", "data.checksum: Expected `str` matching regex"),
        (("data", "splits", "train", "kept"), 1, "kept + dropped is 101, read is 10000"),
        (("data", "overlap", "test", "lines_covered_share"), 1.5, "lines_covered_share: Expected"),
        (("data", "overlap", "train2"), None, "data.overlap[...]: Expected `object`, got `null`"),
        (("training", "curve"), [], "training.curve: Expected `array` of length >= 1"),
        (("training", "updates"), 599, "training: curve goes beyond the number of updates"),
        (("training", "target_tokens_per_update"), 1.0, "but the other fields give 4000"),
        (("training", "us_per_target_token"), 1.0, "but the other fields give 100"),
        (("training", "curve", 1, "update"), 50, "training: curve's updates do not increase"),
        (("evaluation", "dev_perplexity"), 2.0, "dev_perplexity is 2, but the other fields give"),
        (("evaluation", "scores", 0, "value_0_100"), 100.5, "value_0_100: Expected `float` <= 100"),
        (("evaluation", "scores", 0, "tokenize"), None, "tokenize belongs to bleu"),
        (("evaluation", "scores", 0, "tokenize"), "zh", "the signature does not say tok:zh"),
        (("evaluation", "scores", 0, "beam"), 4, "evaluation: scores has the same score twice"),
        (("evaluation", "scores", 0, "lines"), 499, "a score on test has 499 lines"),
        (("evaluation", "scores", 0, "split"), "train9", "on train9, which data does not hold"),
        (("data", "subsets", "filtered"), 9, "subsets.filtered is not named as a part of test"),
        (("data", "subsets", "test_filtered"), 501, "has 501 lines, more than test"),
        (("data", "subsets", "test_filtered"), 0, "data.subsets[...]: Expected `int` >= 1"),
        (("evaluation", "baselines", 0, "baseline"), "nearest", "has the same score twice"),
        (("benchmark", "timings", 0, "decoder_s"), [], "decoder_s: Expected `array` of length >="),
        (("benchmark", "timings", 0, "decoder_s"), [1.0], "different numbers of runs"),
        (("benchmark", "timings", 0, "decoder_us_per_token"), 1.0, "decoder_us_per_token is 1,"),
        (("benchmark", "timings", 0, "tokens_produced"), 5, "not batch * target_tokens"),
        (("benchmark", "timings", 0, "beam"), 4, "timings has the same shape twice"),
        (("benchmark", "training", "us_per_target_token"), 1.0, "benchmark.training: us_per_"),
        (("benchmark", "threads"), 0, "benchmark.threads: Expected `int` >= 1"),
    ],
)
def test_refuses(path: Path, keys: tuple[str | int, ...], value: Any, message: str) -> None:
    assert message in refusal(path, *keys, value=value)


def test_a_subset_is_scored_on_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = synthetic.wmt14_record(num_kv_heads=2)
    write_record(path, record)
    assert read_record(path) == record
    assert record.evaluation is not None
    of_subset = [score.split for score in record.evaluation.scores].index("test_filtered")
    refused = refusal(path, "evaluation", "scores", of_subset, "lines", value=500)
    assert "a score on test_filtered has 500 lines, the data has 450" in refused


def test_what_was_written_before_a_field_was_there_is_still_read(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    del whole["data"]["subsets"], whole["data"]["note"]
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert read_record(path).data.subsets == {}


def test_the_committed_records_are_read() -> None:
    runs = Path(__file__).resolve().parents[2] / "results" / "runs"
    assert {record.job.variant for record in read_records(runs)} >= {"mha", "mqa"}


def test_refuses_a_missing_field(path: Path) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name in list(whole):
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


def test_a_truncated_record_is_refused_at_every_length(path: Path) -> None:
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ExperimentError):
            read_record(path)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_float_is_ever_infinite(number: float) -> None:
    raw = [1.0, number, 1.0]
    good = synthetic.timing(8, 1, 128)
    with pytest.raises(ValueError, match=r"encoder_s is .*, not a finite number"):
        msgspec.structs.replace(good, decoder_s=raw, encoder_s=raw)
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
    bad = msgspec.structs.replace(good, job=msgspec.structs.replace(good.job, id="X"))
    with pytest.raises(ExperimentError, match=r"record\.json: not written: job\.id: "):
        write_record(target, bad)
    assert list(tmp_path.iterdir()) == []


@given(
    num_heads=st.integers(1, 64),
    num_kv_heads=st.integers(1, 64),
    placement=st.sampled_from(["all", "decoder"]),
)
def test_heads_divide_or_are_refused(num_heads: int, num_kv_heads: int, placement: str) -> None:
    good = synthetic.model_info()
    fields = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "placement": placement}
    if num_heads % num_kv_heads == 0:
        model = msgspec.structs.replace(good, **fields)
        encoded = msgspec.json.encode(model)
        assert msgspec.json.decode(encoded, type=ModelInfo) == model
    else:
        with pytest.raises(ValueError, match="does not divide"):
            msgspec.structs.replace(good, **fields)


@given(raw=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=9), batch=st.integers(1, 2048))
def test_medians_are_those_of_the_raw_samples(raw: list[float], batch: int) -> None:
    fields = {
        "engine": "gqa",
        "beam": 4,
        "batch": batch,
        "source_tokens": 7,
        "target_tokens": 5,
        "tokens_produced": batch * 5,
        "warmup_runs": 0,
        "encoder_s": raw,
        "decoder_s": raw,
        "encoder_us_per_token": median_us_per_token(raw, batch * 5),
        "kv_cache_bytes": 1,
    }
    median_us = median_us_per_token(raw, batch * 5)
    timing = Timing(**fields, decoder_us_per_token=median_us)
    assert msgspec.json.decode(msgspec.json.encode(timing), type=Timing) == timing
    with pytest.raises(ValueError, match="decoder_us_per_token"):
        Timing(**fields, decoder_us_per_token=median_us * 1.001)


@given(
    kept=st.integers(0, 10**9),
    dropped=st.dictionaries(st.text(min_size=1), st.integers(0, 10**6), max_size=4),
    error=st.integers(-3, 3),
)
def test_every_line_is_accounted_for(kept: int, dropped: dict[str, int], error: int) -> None:
    read = kept + sum(dropped.values()) + error
    if error == 0:
        assert SplitCounts(read=read, kept=kept, dropped=dropped).read == read
    else:
        with pytest.raises(ValueError, match=r"kept \+ dropped"):
            SplitCounts(read=read, kept=kept, dropped=dropped)


def test_held_out_lines_are_never_dropped() -> None:
    data = synthetic.data_info()
    splits = data.splits | {"test": SplitCounts(read=500, kept=499, dropped={"too long": 1})}
    with pytest.raises(ValueError, match=r"splits\.test drops lines"):
        DataInfo(**(msgspec.structs.asdict(data) | {"splits": splits}))


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
from experiments import storage
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
