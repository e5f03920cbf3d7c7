"""One job: prepare, train, evaluate, benchmark, record.

Each stage is a process of its own whose result is one file, written whole. What is there is not
done again, so an interrupted job goes on where it stopped; the id in the folder's name answers for
config, data and code. This process imports neither torch nor fairseq nor the plugin.
"""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from experiments import provenance, tracking
from experiments.config import SuiteConfig, job_id
from experiments.corpus import check_lengths, prepare_data, read_data_info
from experiments.errors import ExperimentError
from experiments.layout import JobFolder, job_folder
from experiments.plan import MODULES, describe
from experiments.progress import StageView, console
from experiments.record_parts import Benchmark, Evaluation, JobInfo, ModelInfo, Training
from experiments.records import SCHEMA_VERSION, Record, write_record
from experiments.stage import run_stage
from experiments.storage import read_json, write_json
from experiments.train import average_checkpoints, train, train_along, train_command


def run_job(config: SuiteConfig) -> bool:
    """Do what is left of a job; False when its record was there already.

    On the second and further of several machines that is its part of the training alone.

    Raises ExperimentError, one line, when a stage fails or another process runs the same job.
    """
    data = prepare_data(config)
    check_lengths(config.model, data)
    info = read_data_info(data.manifest)
    code = provenance.code_info()
    identity = job_id(config, info.checksum, code.version)
    job = job_folder(config, identity)
    threads = config.hardware.threads or len(os.sched_getaffinity(0))
    if config.hardware.node_rank:
        if not job.training.exists():
            train_along(config, job, data, threads)
        return True
    with _only_one(job):
        if job.record.exists() and not config.force:
            console.print(f"{job.path.name}: has its record, skipped (force=true runs it again)")
            return False
        if config.force:
            _empty(job)
        started, clock = datetime.now(UTC), time.monotonic()
        write_json(job.config, config)
        if not job.training.exists():
            for line in describe(config):
                console.print(f"{job.path.name}: {line}")
            train(config, job, data, threads)
        average_checkpoints(job, threads)
        if not job.evaluation.exists():
            _run_module("evaluate", job, threads)
        if not job.benchmark.exists():
            _run_module("benchmark", job, threads)
        record = Record(
            schema_version=SCHEMA_VERSION,
            job=JobInfo(
                id=identity,
                experiment=config.experiment_name,
                variant=config.variant,
                started_utc=started,
                wall_s=time.monotonic() - clock,
            ),
            config=msgspec.json.decode(msgspec.json.encode(config)),
            commands={"train": train_command(config, data.binarized, job.checkpoints)},
            code=code,
            versions=provenance.versions(),
            hardware=provenance.hardware(),
            seed=config.seed,
            data=info,
            model=read_json(job.model, ModelInfo),
            training=read_json(job.training, Training),
            evaluation=read_json(job.evaluation, Evaluation),
            benchmark=read_json(job.benchmark, Benchmark),
        )
        write_record(job.record, record)
    _summarize(record, job)
    tracking.log_record(record, config.tracking.mode, Path(config.paths.runs).parent)
    return True


def _run_module(stage: str, job: JobFolder, threads: int) -> None:
    """Run a stage's module on the job in a fresh process."""
    with StageView(f"{job.path.name}: {stage}") as view:
        command = [sys.executable, "-m", MODULES[stage], str(job.path)]
        try:
            run_stage(command, job.log(stage), threads, view.status)
        except ExperimentError as error:
            raise ExperimentError(f"{stage} failed: {error}") from error


@contextmanager
def _only_one(job: JobFolder) -> Iterator[None]:
    """Hold the job's lock, which the system frees when the process ends, however it ends."""
    lock = job.path / ".lock"
    try:
        job.path.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w", encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"{lock}: {error.strerror} (set paths.runs=FOLDER)") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExperimentError(
                f"{job.path.name}: another process runs this job (wait for it)"
            ) from None
        yield


def _empty(job: JobFolder) -> None:
    """Remove an earlier run. The record goes first: without it, nothing counts as done."""
    job.record.unlink(missing_ok=True)
    for path in job.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _summarize(record: Record, job: JobFolder) -> None:
    assert record.evaluation is not None
    assert record.benchmark is not None
    bleu = [
        f"{score.value_0_100:.1f} ({score.search})"
        for score in record.evaluation.scores
        if (score.split, score.tokenize) == ("test", "13a")
    ]
    console.print(
        f"{job.path.name}: dev {record.evaluation.dev_nll_nats_per_token:.3f} nats/token, "
        f"test BLEU {', '.join(bleu)}; {job.record}"
    )
