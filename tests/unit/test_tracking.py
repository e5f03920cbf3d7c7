"""wandb as a view: offline runs are read back from the files that `wandb sync` would send."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from wandb_files import runs

from experiments import tracking
from experiments.errors import ExperimentError
from experiments.records import write_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home))


def test_two_jobs_of_one_process_are_two_whole_runs(tmp_path: Path) -> None:
    records = [synthetic.record(num_kv_heads=8), synthetic.record(num_kv_heads=1, seed=2)]
    for record in records:
        tracking.log_record(record, "offline", tmp_path)
    found = runs(tmp_path)
    assert set(found) == {tracking.run_name(record) for record in records}
    for record in records:
        run = found[tracking.run_name(record)]
        assert run["name"].startswith(f"{record.job.variant}-seed{record.seed}-")
        assert run["group"] == "synthetic"
        assert run["project"] == tracking.PROJECT
        assert run["exit"] == 0
        assert run["config"]["config"] == record.config
        assert run["config"]["model"] == msgspec.to_builtins(record.model)
        assert run["config"]["code"]["commit"] == record.code.commit
        assert record.training is not None
        assert len(run["history"]) == len(record.training.curve)
        for point in record.training.curve:
            values = run["history"][point.update]
            assert values["train/nll_nats_per_token"] == point.train_nll_nats_per_token
            assert values.get("dev/nll_nats_per_token") == point.dev_nll_nats_per_token
        # The final evaluation, not the curve's last point, is the summary's dev loss.
        expected = tracking.summary(record)
        assert {key: run["summary"][key] for key in expected} == pytest.approx(expected)


def test_keys_are_those_documented() -> None:
    documented = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    record = synthetic.wmt14_record()
    keys = set(tracking.summary(record)) | set(tracking.summary(synthetic.record()))
    for _, values in tracking.curve(record):
        keys |= set(values)
    missing = [key for key in keys if f"`{key}`" not in documented]
    assert missing == []


def test_the_keys_of_the_scatter_hold_their_values() -> None:
    record = synthetic.record(num_kv_heads=2)
    values = tracking.summary(record)
    assert record.evaluation is not None
    assert record.benchmark is not None
    bleu = {
        score.search: score.value_0_100
        for score in record.evaluation.scores
        if score.tokenize == "13a"
    }
    us = {
        timing.search: timing.decoder_us_per_token
        for timing in record.benchmark.timings
        if timing.source_tokens == 128
    }
    for search in ("greedy", "beam4"):
        assert values[f"test/bleu_{search}"] == bleu[search]
        assert values[f"decode/us_per_token_{search}"] == us[search]
    assert values["dev/perplexity"] == record.evaluation.dev_perplexity


def test_a_subset_and_a_penalty_have_keys_of_their_own() -> None:
    record = synthetic.wmt14_record()
    values = tracking.summary(record)
    assert record.evaluation is not None
    (shazeer,) = (
        score.value_0_100
        for score in record.evaluation.scores
        if (score.split, score.tokenize, score.search) == ("test_filtered", "intl", "beam4_gnmt")
    )
    assert values["test_filtered/bleu_intl_beam4_gnmt"] == shazeer
    # No two scores share a key.
    scored = [key for key in values if key.startswith(("dev/bleu", "test"))]
    known = len(record.evaluation.scores) + len(record.evaluation.baselines)
    assert len(scored) == known


def test_what_differs_has_a_key_of_its_own() -> None:
    """Other engines, penalties, shapes and batches never take the unsuffixed key."""
    record = synthetic.record()
    evaluation, benchmark = record.evaluation, record.benchmark
    assert evaluation is not None
    assert benchmark is not None
    beam4 = evaluation.scores[3]
    changed = msgspec.structs.replace(
        record,
        evaluation=msgspec.structs.replace(
            evaluation,
            scores=[
                *evaluation.scores,
                msgspec.structs.replace(beam4, engine="gqa", value_0_100=1.0),
                msgspec.structs.replace(
                    beam4, engine="gqa", length_penalty="gnmt", length_alpha=0.6, value_0_100=2.0
                ),
            ],
        ),
        benchmark=msgspec.structs.replace(
            benchmark,
            timings=[
                *benchmark.timings,
                msgspec.structs.replace(benchmark.timings[0], engine="gqa", kv_cache_bytes=3),
            ],
        ),
    )
    values = tracking.summary(changed)
    assert values["test/bleu_beam4"] == 1.0
    assert values["test/bleu_beam4_gnmt"] == 2.0
    assert values["test/bleu_beam4_stock"] == beam4.value_0_100
    assert values["decode/kv_cache_bytes_greedy"] == 3
    assert values["decode/kv_cache_bytes_greedy_stock"] == benchmark.timings[0].kv_cache_bytes
    per_batch = msgspec.structs.replace(
        benchmark.timings[0],
        batch=1,
        tokens_produced=128,
        encoder_us_per_token=benchmark.timings[0].encoder_us_per_token * 64,
        decoder_us_per_token=benchmark.timings[0].decoder_us_per_token * 64,
    )
    only = msgspec.structs.replace(benchmark, timings=[per_batch])
    assert "decode/us_per_token_greedy_batch1" in tracking.summary(
        msgspec.structs.replace(record, benchmark=only)
    )


def test_what_did_not_run_has_no_key() -> None:
    record = synthetic.record(stages=False)
    assert set(tracking.summary(record)) == {"model/parameters", "model/residual_parameters"}
    assert tracking.curve(record) == []


def test_none_does_not_even_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/unit')\n"
        "import synthetic_records; from experiments import tracking\n"
        "tracking.check_account('none')\n"
        "tracking.log_record(synthetic_records.record(), 'none', Path(sys.argv[1]))\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert not (tmp_path / "wandb").exists()


def test_online_without_an_account_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "records" / "record.json", synthetic.record())
    arguments = ["--records", str(tmp_path / "records"), "--dir", str(tmp_path / "out")]
    assert tracking.main([*arguments, "--mode", "online"]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.split("\n") == [shown]
    assert shown.startswith("error: tracking=online needs a wandb account (run `wandb login`")
    assert not (tmp_path / "out").exists()


def test_the_command_logs_records_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = synthetic.record()
    write_record(tmp_path / "records" / "job" / "record.json", record)
    arguments = ["--records", str(tmp_path / "records"), "--dir", str(tmp_path / "out")]
    assert tracking.main(arguments) == 0
    assert set(runs(tmp_path / "out")) == {tracking.run_name(record)}
    assert tracking.run_name(record) in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["absent", "."])
def test_no_records_is_one_clear_line(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tracking.main(["--records", str(tmp_path / folder), "--dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ExperimentError, match="the record is safe"):
        tracking.log_record(synthetic.record(), "offline", tmp_path / "file" / "below")
