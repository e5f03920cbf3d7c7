"""From text files to records, twice: every stage in a process of its own, on a tiny model."""

import lzma
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from wandb_files import runs

from experiments import benchmark, tracking
from experiments.comparison import ComparisonReport
from experiments.config import SuiteConfig
from experiments.corpus import prepare_data
from experiments.engines import FAIRSEQ_ENGINES, MULTI_HEAD_ENGINES
from experiments.layout import JobFolder
from experiments.progress import StageView
from experiments.record_parts import Training
from experiments.records import Record, read_records
from experiments.run import resolve
from experiments.storage import read_json
from experiments.train import average_checkpoints, train, train_along
from gqa_fairseq.checkpoint import allow_fairseq_checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LINES = {"train": (0, 400), "dev": (400, 417), "test": (417, 440)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name six files of real text."""
    folder = tmp_path_factory.mktemp("text")
    overrides = []
    for side, language in (("source", "en"), ("target", "de")):
        packed = ROOT / f"data_prep/corpora/sample/libreoffice-help.{language}.xz"
        lines = lzma.decompress(packed.read_bytes()).decode("utf-8").split("\n")
        for split, (start, end) in LINES.items():
            path = folder / f"{split}.{language}"
            text = "".join(f"{line}\n" for line in lines[start:end])
            path.write_text(text, encoding="utf-8", newline="\n")
            overrides.append(f"data.{split}_{side}={path}")
    return overrides


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.run", "-m", "experiment=smoke"]
    paths = [f"paths.data={folder}/data", f"paths.runs={folder}/runs"]
    return subprocess.run(
        [*command, "hardware.threads=1", *paths, *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)},  # no account of wandb's
        check=False,
    )


def jobs_of(folder: Path) -> dict[str, Record]:
    return {record.job.variant: record for record in read_records(folder / "runs")}


def test_a_multirun_gives_records_is_skipped_and_repeats(corpus: list[str], tmp_path: Path) -> None:
    sweep = [*corpus, "attention.num_kv_heads=1,4"]
    first = run(tmp_path, *sweep, "tracking=offline")
    assert first.returncode == 0, first.stderr
    records = jobs_of(tmp_path)
    assert set(records) == {"mha", "mqa"}
    check_wandb(records, runs(tmp_path))
    for record in records.values():
        check_record(record, tmp_path)
    assert records["mha"].model.parameters == records["mqa"].model.parameters
    check_engines(tmp_path, records)

    again = run(tmp_path, *sweep)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("skipped") == 2
    assert jobs_of(tmp_path) == records

    forced = run(tmp_path, *corpus, "attention.num_kv_heads=1", "force=true")
    assert forced.returncode == 0, forced.stderr
    same, repeated = records["mqa"], jobs_of(tmp_path)["mqa"]
    assert repeated.job.started_utc > same.job.started_utc
    assert repeated.job.id == same.job.id
    assert losses(repeated.training) == losses(same.training)
    assert repeated.evaluation == same.evaluation


def check_engines(folder: Path, records: dict[str, Record]) -> None:
    """The engines on each job's test set, with its weights: multi-head ones where G = heads."""
    out = folder / "engines.json"
    folders = {variant: job_path(folder, record) for variant, record in records.items()}
    jobs = [option for path in folders.values() for option in ("--job", str(path))]
    chosen = ["--engines", ",".join(FAIRSEQ_ENGINES), "--repeats", "1"]
    assert benchmark.main([*jobs, *chosen, "--out", str(out)]) == 0
    comparisons = read_json(out, ComparisonReport).comparisons
    expected = [(f"smoke/{path.name}", beam) for path in folders.values() for beam in (4, 1)]
    assert [(c.workload.model, c.workload.beam) for c in comparisons] == expected
    for comparison in comparisons:
        assert comparison.workload.sentences == 23
        assert comparison.workload.target_tokens is None
        variant = next(
            v for v, path in folders.items() if comparison.workload.model.endswith(path.name)
        )
        names = [e for e in FAIRSEQ_ENGINES if variant == "mha" or e not in MULTI_HEAD_ENGINES]
        heads = records[variant].model.num_kv_heads
        found = [(e.engine, e.num_kv_heads) for e in comparison.engines]
        assert found == [(name, heads) for name in names]
        assert {e.differing for e in comparison.engines} == {0}
        evaluation = records[variant].evaluation
        assert evaluation is not None
        [bleu] = [
            score.value_0_100
            for score in evaluation.scores
            if (score.split, score.tokenize, score.beam)
            == ("test", "13a", comparison.workload.beam)
        ]
        assert {e.bleu_0_100 for e in comparison.engines} == {bleu}


def check_wandb(records: dict[str, Record], found: dict[str, dict[str, Any]]) -> None:
    assert set(found) == {tracking.run_name(record) for record in records.values()}
    for record in records.values():
        shown = found[tracking.run_name(record)]
        assert shown["config"]["config"]["attention"] == record.config["attention"]
        assert record.training is not None
        assert set(shown["history"]) == {point.update for point in record.training.curve}
        expected = tracking.summary(record)
        assert {"dev/perplexity", "test/bleu_beam4"} <= set(expected)
        assert {key: shown["summary"][key] for key in expected} == pytest.approx(expected)


def losses(training: Training | None) -> list[tuple[float | None, float | None]]:
    assert training is not None
    return [(p.train_nll_nats_per_token, p.dev_nll_nats_per_token) for p in training.curve]


def job_path(folder: Path, record: Record) -> Path:
    return folder / "runs/smoke" / f"{record.job.variant}-seed1-{record.job.id[:12]}"


def check_record(record: Record, folder: Path) -> None:
    assert record.training is not None
    assert record.evaluation is not None
    assert record.benchmark is not None
    assert record.training.updates == 12
    # The loss of our evaluation is fairseq's last validation, which is logged to 1e-3 bits.
    last = record.training.curve[-1].dev_nll_nats_per_token
    assert record.evaluation.dev_nll_nats_per_token == pytest.approx(last, abs=1e-3)
    scores = record.evaluation.scores
    found = {(s.split, s.search, s.metric, s.tokenize) for s in scores}
    metrics = [("bleu", "13a"), ("bleu", "intl"), ("chrf", None)]
    searches = [("dev", "greedy"), ("test", "greedy"), ("test", "beam4")]
    assert found == {(*search, *metric) for search in searches for metric in metrics}
    assert {score.lines for score in scores if score.split == "test"} == {23}
    assert {(t.source_tokens, t.search) for t in record.benchmark.timings} == {
        (16, "greedy"),
        (16, "beam4"),
    }
    heads = record.model.num_kv_heads
    greedy = record.benchmark.timings[0]
    assert greedy.kv_cache_bytes == 2 * 2 * heads * 8 * 4 * (16 + 16)  # batch, K and V, D, fp32

    job = JobFolder(job_path(folder, record))
    assert job.record.exists()
    for hypotheses in ("dev.greedy", "test.greedy", "test.beam4"):
        text = (job.hypotheses / f"{hypotheses}.de").read_text(encoding="utf-8")
        assert text.count("\n") == record.data.splits[hypotheses.split(".")[0]].read
    assert {path.name for path in (job.path / "logs").iterdir()} == {
        "train.log",
        "evaluate.log",
        "benchmark.log",
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def config(corpus: list[str], prepared: Path) -> SuiteConfig:
    lengths = ["train.max_updates=60", "train.validate_every_updates=10"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["experiment=smoke", "attention=gqa2", "train.average_checkpoints=3", *lengths]
        return resolve(compose("suite", overrides=[*overrides, *corpus, f"paths.data={prepared}"]))


def test_an_interrupted_training_ends_as_if_it_had_not_been(
    config: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare_data(config)
    whole, broken = JobFolder(tmp_path / "whole"), JobFolder(tmp_path / "broken")
    train(config, whole, data, threads=1)

    def interrupt(view: StageView, text: str) -> None:
        if text.startswith("update 30"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StageView, "note", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config, broken, data, threads=1)
    assert not broken.training.exists()
    last = broken.checkpoint.read_bytes()
    broken.checkpoint.write_bytes(last[: len(last) // 2])  # killed while copying it
    train(config, broken, data, threads=1)

    log = broken.log("train").read_text(encoding="utf-8")
    assert "Loaded checkpoint" in log  # it went on and did not start over
    one, two = (read_json(job.training, Training) for job in (whole, broken))
    assert losses(one) == losses(two)
    assert one.target_tokens == two.target_tokens
    assert_same_weights(whole.checkpoint, broken.checkpoint)

    assert one.averaged_updates == two.averaged_updates == [40, 50, 60]
    last_three = [weights(path) for path in sorted(whole.checkpoints.glob("checkpoint_*_*.pt"))]
    assert len(last_three) == 3
    for job in (whole, broken):
        average_checkpoints(job, threads=1)
        assert set(job.checkpoints.iterdir()) == {job.checkpoint, job.average}
        assert job.trained == job.average
    assert_same_weights(whole.average, broken.average)
    for name, mean in weights(whole.average).items():
        expected = sum(each[name].double() for each in last_three) / 3
        torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-6)

    # Stopped between the last update and the result: not one update more than asked for.
    broken.training.unlink()
    train(config, broken, data, threads=1)
    assert losses(read_json(broken.training, Training)) == losses(one)
    assert_same_weights(whole.checkpoint, broken.checkpoint)


def test_a_suite_that_is_ended_ends_its_training(corpus: list[str], tmp_path: Path) -> None:
    """A training left behind would go on in the folder of the next run."""
    command = [sys.executable, "-m", "experiments.run", "experiment=smoke", "hardware.threads=1"]
    paths = [f"paths.data={tmp_path}/data", f"paths.runs={tmp_path}/runs"]
    endless = ["train.max_updates=1000000", "train.validate_every_updates=1000000"]
    with subprocess.Popen(
        [*command, *paths, *corpus, *endless],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        while not list(tmp_path.glob("runs/smoke/*/logs/train.log")):
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("fairseq_cli.train" in child.cmdline() for child in children)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_two_machines_train_one_model(config: SuiteConfig, tmp_path: Path) -> None:
    """As two jobs of `hardware.nodes=2` do, here on the CPU: half of an update each."""
    data = prepare_data(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    job = JobFolder(tmp_path / "job")
    short = msgspec.structs.replace(config.train, max_updates=20, average_checkpoints=None)
    configs = []
    for rank in (0, 1):
        hardware = msgspec.structs.replace(config.hardware, nodes=2, master=master, node_rank=rank)
        configs.append(msgspec.structs.replace(config, train=short, hardware=hardware))
    with ThreadPoolExecutor() as pool:
        along = pool.submit(train_along, configs[1], job, data, 1)
        train(configs[0], job, data, threads=1)
        along.result()
    result = read_json(job.training, Training)
    assert result.processes == 2
    assert result.target_tokens_per_update == pytest.approx(512, rel=0.05)
    assert result.curve[-1].dev_nll_nats_per_token is not None
    assert list(job.checkpoints.iterdir()) == [job.checkpoint]
    assert {path.name for path in job.log("train").parent.iterdir()} == {
        "train.log",
        "train-node1.log",
    }


def assert_same_weights(one: Path, two: Path) -> None:
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(two)[name]), name


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    allow_fairseq_checkpoints()
    return torch.load(checkpoint, weights_only=True)["model"]
