"""wandb as a view: offline runs are read back from the files that `wandb sync` would send."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_records import metric_tests
from wandb_files import all_runs, runs

from experiments.errors import ExperimentError
from experiments.records import measurement as schema
from experiments.records.hypotheses import Hypotheses, write_hypotheses
from experiments.records.measurement import (
    MEASUREMENT_NAME,
    speed_up,
    write_measurement,
)
from experiments.records.record import Record, write_record
from experiments.tracking import means
from experiments.tracking.__main__ import main
from experiments.tracking.keys import (
    curve,
    flat_config,
    run_config,
    seed_summary,
    seeds_summary,
    speed_summary,
    summary,
)
from experiments.tracking.runs import PROJECT, log_record, run_id

replace = msgspec.structs.replace
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home))


def id_of(record: Record) -> str:
    return run_id(record.job.experiment, record.job.id, record.job.started_utc)


def test_two_jobs_of_one_process_are_two_whole_runs(tmp_path: Path) -> None:
    records = [synthetic.record(num_kv_heads=8), synthetic.record(num_kv_heads=1, seed=2)]
    for record in records:
        log_record(record, "offline", tmp_path)
    found = runs(tmp_path)
    assert set(found) == {record.name for record in records}
    for record in records:
        run = found[record.name]
        assert run["name"].startswith(f"{record.variant}-seed{record.seed}-")
        assert run["id"] == id_of(record)
        assert run["id"].startswith(f"{record.job.id}-")
        assert run["id"].endswith(f"-{record.job.started_utc:%Y%m%d%H%M%S}")
        assert run["group"] == "synthetic"
        assert run["project"] == PROJECT
        assert run["exit"] == 0
        assert run["config"]["config"] == record.config
        assert run["config"]["architecture"] == msgspec.to_builtins(record.architecture)
        assert run["config"]["stages"] == msgspec.to_builtins(record.stages)
        training = synthetic.finished(record).training
        assert len(run["history"]) == len(training.curve)
        for point in training.curve:
            values = run["history"][point.update]
            assert values["train/nll_nats_per_token"] == point.train_nll_nats_per_token
            assert values.get("dev/nll_nats_per_token") == point.dev_nll_nats_per_token
        # The final evaluation, not the curve's last point, is the summary's dev loss.
        expected = summary(record)
        assert {key: run["summary"][key] for key in expected} == pytest.approx(expected)
        assert not [key for key in run["summary"] if key.startswith("decode/")]


FLAT = ("variant", "num_kv_heads", "placement", "seed", "data", "model")


def test_two_experiments_that_share_a_job_have_a_run_of_it_each(tmp_path: Path) -> None:
    record = synthetic.record()
    other = replace(record, job=replace(record.job, experiment="other"))
    for each in (record, other):
        log_record(each, "offline", tmp_path)
    found = {run["id"]: run["group"] for run in all_runs(tmp_path)}
    assert found == {id_of(record): "synthetic", id_of(other): "other"}
    assert len(id_of(record)) <= 128  # what wandb allows


def test_runs_are_grouped_by_flat_text(tmp_path: Path) -> None:
    """wandb groups by neither numbers nor what is nested, and takes a dot for nesting."""
    records = [
        synthetic.record(num_kv_heads=1, seed=3, uptrained=("mean", 0.05)),
        synthetic.record(num_kv_heads=2, placement="decoder"),
        synthetic.record(),
        synthetic.record(baseline=synthetic.PAPER),
    ]
    found = [{key: run_config(record)[key] for key in FLAT} for record in records]
    assert found[0] == {
        "variant": "mqa-ff768-mean-0.05",
        "num_kv_heads": "1",
        "placement": "all",
        "seed": "3",
        "data": "sample_en_de",
        "model": "d192-layers2+2-parameters3034368",
    }
    assert (found[1]["variant"], found[1]["placement"]) == ("gqa2-dec", "decoder")
    # All variants of one baseline are of one model.
    assert len({flat["model"] for flat in found[:3]}) == 1
    assert found[3]["model"] not in {flat["model"] for flat in found[:3]}
    log_record(records[0], "offline", tmp_path)
    [shown] = all_runs(tmp_path)
    assert found[0].items() <= shown["config"].items()
    assert shown["config"]["manifest"] == msgspec.to_builtins(records[0].data)


def test_tokens_a_second_are_those_of_the_last_points() -> None:
    """Over 20 s at least: the log has whole seconds."""
    points = synthetic.curve()
    assert [point.wall_s for point in points[:3]] == [20.0, 40.0, 60.0]
    rates = [values["train/target_tokens_per_s"] for _, values in curve(points)]
    assert rates == [pytest.approx(10_000.0)] * len(points)
    fast = [replace(p, wall_s=p.wall_s / 4) for p in points[:6]]  # 5, 10, 15, 20, 25, 30 s
    slower = replace(points[6], wall_s=50.0)
    found = [v.get("train/target_tokens_per_s") for _, v in curve([*fast, slower])]
    assert found[:3] == [None] * 3
    assert found[3:6] == [pytest.approx(40_000.0)] * 3
    assert found[6] == pytest.approx(50 * 4000 / 20)


@pytest.mark.parametrize("step_s", [0.001, 1.0, 30.0])
def test_a_curve_is_gone_through_once_however_long_it_is(step_s: float) -> None:
    looks = 0

    class Point(SimpleNamespace):
        """A point that counts how often its time is asked for."""

        @property
        def wall_s(self) -> float:
            nonlocal looks
            looks += 1
            return self.update * step_s

    [template] = synthetic.curve()[:1]
    values = {name: getattr(template, name) for name in template.__struct_fields__}
    del values["wall_s"]
    points: list[Any] = [Point(**values | {"update": n, "target_tokens": n}) for n in range(1, 501)]
    found = curve(points)
    assert looks <= 5 * len(points)
    rates = [values.get("train/target_tokens_per_s") for _, values in found]
    timed = [n * step_s >= 20.0 for n in range(1, 501)]
    assert [rate is not None for rate in rates] == timed
    assert [r for r in rates if r] == pytest.approx([1 / step_s] * sum(timed))


def test_the_record_is_an_artifact_and_the_translations_are_a_table(tmp_path: Path) -> None:
    record = synthetic.record()
    lines = {
        ("dev", "greedy"): ["Eins."] * 400,
        ("test", "greedy"): [f"Zeile {n}" for n in range(500)],
        ("test", "beam4"): [f"Satz {n}" for n in range(500)],
    }
    folder = tmp_path / "job" / "hypotheses"
    digests = {key: write_hypotheses(folder, Hypotheses(text, [])) for key, text in lines.items()}
    scores = synthetic.finished(record).evaluation.scores
    dev = synthetic.model_score(1, "bleu", 20.0, "dev")
    kept = [
        replace(score, hypotheses_sha256=digests[score.split, score.search])
        for score in [dev, *scores]
    ]
    record = synthetic.with_evaluation(record, scores=kept)
    log_record(record, "offline", tmp_path, hypotheses=folder)
    [run] = all_runs(tmp_path)
    assert run["tables"]["dev/hypotheses"] == (
        ["line", "greedy"],
        [[n, "Eins."] for n in range(1, 401)],
    )
    columns, rows = run["tables"]["test/hypotheses"]
    assert columns == ["line", "greedy", "beam4"]
    assert rows[1] == [2, "Zeile 1", "Satz 1"]
    assert len(rows) == 500
    assert {"dev/hypotheses", "test/hypotheses"} <= set(run["summary"])
    content = run["artifacts"]["record", record.name]["record.json"]
    assert msgspec.json.decode(content, type=Record) == record
    # They wait for `wandb sync` beside the run's file.
    assert (tmp_path / "wandb/data").is_dir()


def test_a_measurement_adds_speed_to_the_runs_of_its_jobs(tmp_path: Path) -> None:
    """wandb replaces a run by a later one of its id, so the later one is whole."""
    mha, mqa, other = records = [synthetic.record(8), synthetic.record(1), synthetic.record(2)]
    for record in records:
        log_record(record, "offline", tmp_path)
    measurement = synthetic.measurement([mha, mqa])
    for record in (mha, mqa):
        log_record(record, "offline", tmp_path, measurements=[measurement])
    made = all_runs(tmp_path)
    assert sorted(run["id"] for run in made) == sorted(
        [id_of(mha), id_of(mha), id_of(mqa), id_of(mqa), id_of(other)]
    )
    found = runs(tmp_path)
    for record in (mha, mqa):
        expected = summary(record) | speed_summary(measurement, record.job.id)
        shown = found[record.name]
        assert {key: shown["summary"][key] for key in expected} == pytest.approx(expected)
        assert set(shown["history"]) == {point.update for point in record.result.curve}
        assert shown["config"]["config"] == record.config
    assert "decode/us_per_token_greedy" not in found[other.name]["summary"]


def test_keys_are_those_documented() -> None:
    documented = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    record = synthetic.wmt14_record()
    diverged = synthetic.record(1, diverged_after=150)
    keys = set(summary(record)) | set(summary(synthetic.record())) | set(summary(diverged))
    keys |= set(speed_summary(synthetic.measurement([record]), record.job.id))
    for _, values in curve(record.result.curve):
        keys |= set(values)
    tests = metric_tests("bleu", -0.2, 0.3)
    keys |= set(seed_summary("test/bleu_beam4", tests.seeds[0]))
    keys |= set(seeds_summary("test/bleu_beam4", tests))
    keys |= set(flat_config("mha", record.architecture, 1, "sample_en_de"))
    keys |= {"test/hypotheses", means.TABLE}
    missing = [key for key in keys if f"`{key}`" not in documented]
    assert missing == []
    assert len(keys) > 50


def test_the_keys_of_the_scatter_hold_their_values() -> None:
    record = synthetic.record(num_kv_heads=2)
    evaluation = synthetic.finished(record).evaluation
    measurement = synthetic.measurement([synthetic.record(8), record])
    values = summary(record) | speed_summary(measurement, record.job.id)
    bleu = {s.search: s.value for s in evaluation.scores if s.metric == "bleu"}
    for timing, search in zip(measurement.timings, ("greedy", "beam4"), strict=False):
        mha, own = timing.samples
        assert values[f"test/bleu_{search}"] == bleu[search]
        assert values[f"decode/us_per_token_{search}"] == own.us_per_token("decoder")
        assert values[f"encode/us_per_token_{search}"] == own.us_per_token("encoder")
        assert values[f"decode/kv_cache_bytes_{search}"] == own.kv_cache_bytes
        ratio = speed_up(mha, own, "decoder")
        assert ratio is not None
        assert values[f"decode/speed_up_{search}"] == ratio.median
        assert values[f"decode/speed_up_{search}_low"] == ratio.low
        assert values[f"decode/speed_up_{search}_high"] == ratio.high
    assert values["dev/perplexity"] == evaluation.dev_perplexity
    assert values["test/bleu_baseline_copy"] == 3.1
    updates = measurement.timings[-1].samples[1]
    assert values["benchmark/train_us_per_target_token"] == updates.us_per_token("total")
    decoding = [timing.samples[1].peak_memory_bytes or 0 for timing in measurement.timings[:-1]]
    assert values["benchmark/peak_memory_bytes"] == max(decoding)


def test_a_subset_and_a_penalty_have_keys_of_their_own() -> None:
    record = synthetic.wmt14_record()
    evaluation = synthetic.finished(record).evaluation
    values = summary(record)
    (shazeer,) = (
        score.value
        for score in evaluation.scores
        if (score.split, score.metric, score.search) == ("test_filtered", "bleu_intl", "beam4_gnmt")
    )
    assert values["test_filtered/bleu_intl_beam4_gnmt"] == shazeer
    # No two scores share a key.
    scored = [key for key in values if key.startswith(("dev/bleu", "test"))]
    assert len(scored) == len(evaluation.scores) + len(evaluation.model_free)


def test_what_differs_has_a_key_of_its_own() -> None:
    """Other penalties, lengths, texts and batches never take the unsuffixed key."""
    record = synthetic.record()
    scores = synthetic.finished(record).evaluation.scores
    beam4 = scores[3]
    gnmt = replace(beam4, length_penalty="gnmt", length_alpha=0.6, value=2.0)
    values = summary(synthetic.with_evaluation(record, scores=[*scores, gnmt]))
    assert values["test/bleu_beam4"] == beam4.value
    assert values["test/bleu_beam4_gnmt"] == 2.0
    measurement = synthetic.measurement(
        [record],
        [
            synthetic.fixed_lengths(1, 512),
            synthetic.fixed_lengths(4, batch=1),
            synthetic.fixed_lengths(1, 512, batch=32),
        ],
    )
    text = schema.RealText(name="newstest", batch=64, sentences=9, source_tokens=99, beam=4)
    on_text = replace(measurement.timings[0], workload=text)
    measurement = replace(measurement, timings=[*measurement.timings, on_text])
    found = {
        key.removeprefix("decode/us_per_token_")
        for key in speed_summary(measurement, record.job.id)
        if key.startswith("decode/us_per_token_")
    }
    assert found == {"greedy_512x128", "beam4_batch1", "greedy_512x128_batch32", "beam4_newstest"}


def test_without_mha_there_is_no_speed_up() -> None:
    record = synthetic.record(1)
    values = speed_summary(synthetic.measurement([record]), record.job.id)
    assert "decode/us_per_token_greedy" in values
    assert not [key for key in values if "speed_up" in key]


def test_what_is_not_there_has_no_key() -> None:
    diverged = synthetic.record(1, diverged_after=150)
    assert summary(diverged) == {
        "model/parameters": 3_034_368,
        "model/residual_parameters": 0,
        "train/loss_spikes": 0,
        "train/diverged_after_update": 150,
    }
    assert [update for update, _ in curve(diverged.result.curve)] == [50, 100, 150]
    measurement = synthetic.measurement([synthetic.record(8)])
    assert speed_summary(measurement, diverged.job.id) == {}


def test_none_does_not_even_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/unit')\n"
        "import synthetic_records as synthetic; from experiments.tracking import runs\n"
        "import experiments.tracking.__main__\n"
        "runs.check_account('none')\n"
        "record, folder = synthetic.record(), Path(sys.argv[1])\n"
        "runs.log_record(record, 'none', folder)\n"
        "import experiments.stages.sweep\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert not (tmp_path / "wandb").exists()


def test_online_without_an_account_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "records" / "record.json", synthetic.record())
    arguments = ["--records", str(tmp_path / "records"), "--dir", str(tmp_path / "out")]
    assert main([*arguments, "--mode", "online"]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.split("\n") == [shown]
    assert shown.startswith("error: tracking=online needs a wandb account (run `wandb login`")
    assert not (tmp_path / "out").exists()


def test_the_command_logs_records_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = synthetic.record()
    write_record(tmp_path / "runs" / "sweep" / "job" / "record.json", record)
    measurement = synthetic.measurement([record])
    write_measurement(tmp_path / "measurements" / "sweep" / MEASUREMENT_NAME, measurement)
    newer = replace(
        synthetic.measurement([record], [synthetic.fixed_lengths(1, 64)]),
        created_utc=measurement.created_utc.replace(year=2027),
    )
    write_measurement(tmp_path / "newer" / "newer.json", newer)
    records = ["--records", str(tmp_path / "runs" / "sweep")]
    assert main([*records, "--dir", str(tmp_path / "out")]) == 0
    run = runs(tmp_path / "out")[record.name]
    assert speed_summary(measurement, record.job.id).items() <= run["summary"].items()
    said = capsys.readouterr().out
    assert record.name in said
    folder = tmp_path / "out/wandb"
    assert said.endswith(f"wandb: runs are in {folder}: wandb sync {folder}/offline-run-*\n")
    assert list(folder.glob("offline-run-*"))
    folders = [tmp_path / "newer", tmp_path / "measurements"]
    given = [argument for folder in folders for argument in ("--measurements", str(folder))]
    assert main([*records, *given, "--dir", str(tmp_path / "given")]) == 0
    run = runs(tmp_path / "given")[record.name]
    assert speed_summary(newer, record.job.id).items() <= run["summary"].items()
    assert "decode/us_per_token_greedy" not in run["summary"]


@pytest.mark.parametrize("folder", ["absent", "."])
def test_no_records_is_one_clear_line(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--records", str(tmp_path / folder), "--dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ExperimentError, match="the record is safe"):
        log_record(synthetic.record(), "offline", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "foreign",
    [
        {"WANDB_RUN_ID": "somebody-elses", "WANDB_NAME": "theirs", "WANDB_RESUME": "must"},
        {
            "WANDB_SWEEP_ID": "abcd1234",
            "WANDB_RUN_ID": "of-the-agent",
            "WANDB_SWEEP_PARAM_PATH": "/nowhere/config.yaml",
            "WANDB_PROJECT": "theirs",
            "WANDB_RUN_GROUP": "theirs",
            "WANDB_MODE": "disabled",
        },
        {"WANDB_DISABLED": "true", "WANDB_DIR": "/nowhere", "WANDB_JOB_TYPE": "theirs"},
    ],
)
def test_a_run_is_its_records_whatever_the_environment_says(
    foreign: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    records = [synthetic.record(num_kv_heads=8), synthetic.record(num_kv_heads=1)]
    for record in records:
        log_record(record, "offline", tmp_path)
    found = runs(tmp_path)
    assert {run["id"] for run in found.values()} == {id_of(record) for record in records}
    assert set(found) == {record.name for record in records}
    for run in found.values():
        assert (run["project"], run["group"]) == (PROJECT, "synthetic")
        assert run["history"]
    # The user's own run goes on with its variables.
    assert {name: os.environ.get(name) for name in foreign} == foreign


def test_whatever_wandb_raises_is_one_line_and_the_record_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_user(**arguments: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("wandb.init", no_user)
    with pytest.raises(ExperimentError, match=r"wandb: .*uid not found.* \(the record is safe"):
        log_record(synthetic.record(), "offline", tmp_path)
