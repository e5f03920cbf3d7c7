"""The measure stage: all architectures of a sweep side by side, in a fresh process.

Its result is a measurement, to which the jobs are linked by their ids.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config import SuiteConfig
from experiments.environment import usable_cores
from experiments.errors import ExperimentError
from experiments.measure.request import (
    DTYPES,
    Request,
    RequestedContender,
    RequestedTraining,
    check_request,
)
from experiments.progress import StageView
from experiments.records.measurement import MEASUREMENT_NAME, Measurement
from experiments.records.storage import read_bytes, read_json, write_json
from experiments.stages.folders import JobFolder, Measured
from experiments.stages.graph import Job, Stage
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt, run_stage
from experiments.stages.uptraining.uptrain import base_command
from gqa_fairseq.architecture import Architecture, distinct_names

# By decode.engine: `stock` is this plugin's model under fairseq's search.
ENGINES_OF = {"gqa": "gqa", "stock": "gqa+stock"}


def measure(stage: Stage, jobs: Sequence[Job]) -> Measurement:
    """The measurement of the jobs, which are trained; raises ExperimentError when it fails."""
    config = jobs[0].config
    # Of models of one architecture the one that was trained the longest lends its weights.
    trained_last = sorted(jobs, key=lambda job: -job.config.uptrain.alpha)
    request = measure_request(config, [contender(job) for job in trained_last])
    check_request(request)

    def work(attempt: Attempt) -> Measured:
        asked, found = attempt.folder / "request.json", attempt.folder / MEASUREMENT_NAME
        write_json(asked, request)
        command = [sys.executable, "-m", "experiments.measure", str(asked), str(found)]
        with StageView(f"measure {', '.join(_names(jobs))}") as view:
            log = attempt.folder / "logs" / "measure.log"
            try:
                run_command(command, log, attempt.threads, view.status, attempt.lock)
            except ExperimentError as error:
                raise ExperimentError(f"measure failed: {error}") from error
        read_json(found, Measurement)  # it can be read
        return Measured(sha256=_digest(found))

    done = run_stage(stage, Measured, work, config.hardware.threads)
    path = stage.folder / MEASUREMENT_NAME
    if not path.exists() or _digest(path) != done.result.sha256:
        raise ExperimentError(
            f"{path}: this is not what was measured (measure again: rerun=measure)"
        )
    return read_json(path, Measurement)


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def contender(job: Job) -> RequestedContender:
    """A trained job's architecture with the engine of its config."""
    folder = JobFolder(job.folder)
    data = folder.data()
    command = base_command(job, data.binarized, Path("unused"))
    # Of a parent with sinusoidal positions decoding alone is measured, with learned ones.
    is_timed = job.architecture.max_source_positions > 0
    return RequestedContender(
        architecture=job.architecture,
        engine=ENGINES_OF[job.config.decode.engine],
        checkpoint=str(folder.checkpoint()),
        data=str(data.binarized),
        jobs=[job.id],
        training_command=command if is_timed else [],
    )


def measure_request(config: SuiteConfig, contenders: Sequence[RequestedContender]) -> Request:
    """What a sweep measures; seeds of one architecture are one contender."""
    merged: dict[tuple[Architecture, str], RequestedContender] = {}
    for one in contenders:
        same = merged.setdefault((one.architecture, one.engine), one)
        if same is not one:
            same.jobs.extend(one.jobs)
    settings = config.measure
    return Request(
        contenders=list(merged.values()),
        shapes=[(settings.batch, source, target) for source, target in settings.shapes],
        beams=[1, config.decode.beam],
        training=(
            RequestedTraining(batch=settings.training_batch, repeats=settings.training_repeats)
            if any(one.training_command for one in contenders)
            else None
        ),
        warmup_runs=settings.warmup_runs,
        repeats=settings.repeats,
        device=config.hardware.device,
        dtype=DTYPES[config.hardware.precision],
        threads=config.hardware.threads or usable_cores(),
    )


def _names(jobs: Sequence[Job]) -> list[str]:
    return list(distinct_names(job.architecture for job in jobs).values())
