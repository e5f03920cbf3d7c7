"""One job: its unfinished stages, then its record. It returns an outcome and does not raise.

A job that fails leaves the others of its sweep alone; what it did is there for the next run.
"""

import functools
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from experiments.config import SuiteConfig
from experiments.environment import usable_cores
from experiments.errors import ExperimentError
from experiments.progress import StageView, console
from experiments.records.parts import (
    Evaluation,
    JobInfo,
    StageInfo,
    Uptraining,
    search_name,
    updates_more,
)
from experiments.records.record import SCHEMA_VERSION, Finished, Record, read_record, write_record
from experiments.records.storage import read_json, write_json
from experiments.stages.corpus import check_lengths, prepare_data
from experiments.stages.describe import command_of, describe, trained_config
from experiments.stages.evaluation.request import (
    EVALUATION_NAME,
    REQUEST_NAME,
    EvaluationRequest,
)
from experiments.stages.folders import (
    DataFolder,
    Diverged,
    Done,
    JobFolder,
    Model,
    ModelFolder,
    ModelResult,
    Outcome,
    Status,
    TrainResult,
    model_of,
)
from experiments.stages.graph import Job
from experiments.stages.live import Tracker
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt, run_stage
from experiments.stages.training.train import train, train_along
from experiments.stages.uptraining.convert import convert
from experiments.stages.uptraining.uptrain import uptrain

HYPOTHESES = "hypotheses"


def run_job(job: Job) -> Outcome:
    """Do what is left of a job, and write how it ended into its folder."""
    folder = JobFolder(job.folder)
    try:
        outcome = _run(job, folder)
    except ExperimentError as error:
        console.print(f"{job.name}: error: {error}")
        outcome = Outcome(job=job.name, status="failed", message=str(error))
    except Exception as error:  # a fault of ours: the other jobs are tried all the same
        traceback.print_exc()
        outcome = Outcome(job=job.name, status="failed", message=f"{type(error).__name__}: {error}")
    try:
        write_json(folder.outcome_path, outcome)
    except ExperimentError as error:
        console.print(f"{job.name}: error: {error}")
        outcome = Outcome(job=job.name, status="failed", message=str(error))
    return outcome


def _run(job: Job, folder: JobFolder) -> Outcome:
    config = job.config
    data = prepare_data(config, job.prepare)
    check_lengths(job.parent.max_positions if job.parent else config.model.max_positions, data)
    threads = config.hardware.threads or usable_cores()
    if config.hardware.node_rank:
        if not ModelFolder(job.train.folder).result.exists():
            train_along(config, job.train.folder, data, threads)
        return Outcome(job=job.name, status="done")
    if done := _existing_record(folder):
        console.print(f"{job.name}: has its record, skipped")
        return _outcome_of(job, done, "skipped")
    folder.write_links(config, {stage.name: stage.folder for stage in job.stages})
    with Tracker(job) as tracker:
        record = _record(job, folder, data, threads, tracker)
        write_record(folder.record_path, record)
        _summarize(record, folder)
        tracker.finish(record.job.started_utc)
    return _outcome_of(job, record, "done")


def _recorded(config: SuiteConfig) -> dict[str, Any]:
    """The config without its mirror: a folder of this machine, or an address with a password."""
    shown = replace(config, data=replace(config.data, mirror=None))
    return msgspec.json.decode(msgspec.json.encode(shown))


def _record(
    job: Job, folder: JobFolder, data: DataFolder, threads: int, tracker: Tracker
) -> Record:
    """Do what is left of the stages; returns what all of them found."""
    config = job.config
    infos: list[StageInfo] = []
    found = _model(job, data, threads, infos, tracker)
    result: Finished | Diverged
    if isinstance(found, Model):
        evaluated = _evaluated(job, data, found, threads)
        infos.append(evaluated.info)
        result = Finished(training=found.training, evaluation=evaluated.result)
        _copy_hypotheses(job, folder)
    else:
        result = found
    return Record(
        schema_version=SCHEMA_VERSION,
        job=JobInfo(
            id=job.id,
            experiment=config.experiment_name,
            started_utc=min(info.started_utc for info in infos),
            wall_s=sum(info.wall_s for info in infos),
        ),
        config=_recorded(config),
        commands={
            # The interpreter's path is this machine's, and says nothing to another.
            stage.name: ["python" if w == sys.executable else w for w in command_of(stage, job)]
            for stage in job.stages
            if stage.name in WORK and stage.key in [info.key for info in infos]
        },
        stages=infos,
        seed=config.seed,
        data=data.manifest(),
        architecture=job.architecture,
        result=result,
        uptraining=_uptraining(job),
    )


def _model(
    job: Job, data: DataFolder, threads: int, infos: list[StageInfo], tracker: Tracker
) -> Model | Diverged:
    """The job's model, or how its training, or its parent's, diverged.

    Stages that it does or finds done are added to `infos`.
    """
    checkpoint = job.parent.path if job.parent else Path()
    if job.parent and (unknown := job.parent.check_dictionaries(data)):
        console.print(f"{job.name}: {unknown}")
    found: Model | Diverged | None = None
    for stage in job.stages:
        if stage.name not in WORK:
            continue
        work = functools.partial(WORK[stage.name], job=job, data=data, checkpoint=checkpoint)
        if stage.key == job.model.key:
            work = functools.partial(_tracked, work=work, infos=infos, tracker=tracker)
        # A union is no `type` to mypy; msgspec reads one by its tag.
        done = run_stage(stage, ModelResult, work, threads)  # type: ignore[arg-type]
        infos.append(done.info)
        found = model_of(done.result, job.config.uptrain.alpha)
        if isinstance(found, Diverged):
            break
        data.check(found.data_checksum, stage.title)
        checkpoint = stage.folder.resolve() / found.checkpoint
    assert found is not None  # every job has a model of some kind
    return found


def _train(attempt: Attempt, job: Job, data: DataFolder, checkpoint: Path) -> TrainResult:
    config = trained_config(job)
    for line in describe(config):
        console.print(f"{attempt.stage.title}: {line}")
    return train(attempt, config, data)


def _tracked(
    attempt: Attempt,
    work: Callable[[Attempt], ModelResult],
    infos: list[StageInfo],
    tracker: Tracker,
) -> ModelResult:
    """The work on the job's own model, shown while it goes on."""
    tracker.follow(min([info.started_utc for info in infos] + [attempt.started_utc]))
    return work(attempt)


# What each stage that gives a model does with the one before.
WORK: dict[str, Callable[..., ModelResult]] = {
    "train": _train,
    "convert": convert,
    "uptrain": uptrain,
}


def _uptraining(job: Job) -> Uptraining | None:
    if job.method is None:
        return None
    alpha = job.config.uptrain.alpha
    return Uptraining(
        method=job.method,
        alpha=alpha,
        parent_updates=job.parent_updates,
        updates=updates_more(alpha, job.parent_updates),
        parent=job.parent.sha256 if job.parent else job.train.key,
    )


def _evaluated(job: Job, data: DataFolder, model: Model, threads: int) -> Done[Evaluation]:
    request = EvaluationRequest(
        checkpoint=job.model.folder.resolve() / model.checkpoint,
        data=msgspec.structs.replace(data, path=data.path.resolve()),
        decode=job.config.decode,
        device=job.config.hardware.device,
    )

    def evaluate(attempt: Attempt) -> Evaluation:
        folder = attempt.folder
        write_json(folder / REQUEST_NAME, request)
        command = [sys.executable, "-m", "experiments.stages.evaluation", str(folder)]
        with StageView(job.evaluate.title) as view:
            log = folder / "logs" / "evaluate.log"
            try:
                ended = run_command(command, log, attempt.threads, view.status, attempt.lock)
            except ExperimentError as error:
                raise ExperimentError(f"evaluate failed: {error}") from error
        attempt.seen(ended.peak_rss_bytes)
        return read_json(folder / EVALUATION_NAME, Evaluation)

    return run_stage(job.evaluate, Evaluation, evaluate, threads)


def _copy_hypotheses(job: Job, folder: JobFolder) -> None:
    """Keep the translations with the record, which is copied and published as a folder."""
    shutil.rmtree(folder.hypotheses, ignore_errors=True)
    shutil.copytree(job.evaluate.folder / HYPOTHESES, folder.hypotheses)


def _existing_record(folder: JobFolder) -> Record | None:
    """The job's record; None where there is none, or one that cannot be read."""
    if not folder.record_path.exists():
        return None
    try:
        return read_record(folder.record_path)
    except ExperimentError as error:
        console.print(f"{error}: it is made again")
        return None


def _outcome_of(job: Job, record: Record, status: Status) -> Outcome:
    if isinstance(record.result, Diverged):
        message = f"training diverged after update {record.result.after_update}"
        return Outcome(job=job.name, status="diverged", message=message)
    return Outcome(job=job.name, status=status)


def _summarize(record: Record, folder: JobFolder) -> None:
    if isinstance(record.result, Diverged):
        result = record.result
        line = f"training diverged after update {result.after_update}: {result.reason}"
    else:
        evaluation = record.result.evaluation
        bleu = [
            f"{score.value:.1f} ({search_name(score.beam, score.length_penalty)})"
            for score in evaluation.scores
            if (score.split, score.metric) == ("test", "bleu")
        ]
        line = (
            f"dev {evaluation.dev_nll_nats_per_token:.3f} nats/token, test BLEU {', '.join(bleu)}"
        )
    console.print(f"{record.name}: {line}; {folder.record_path}")
