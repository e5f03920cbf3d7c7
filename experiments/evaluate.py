"""Evaluate a job's model again, and compare with what its record says.

    python -m experiments.evaluate outputs/runs/quickstart/mqa-seed1-0123456789ab

The record stays as it is; `python -m experiments.run ... rerun=evaluate` makes a new one. Data that
is not what the model was trained on is refused.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from experiments.arguments import Parser, command
from experiments.environment import usable_cores
from experiments.errors import ExperimentError
from experiments.metrics import METRICS
from experiments.progress import StageView
from experiments.records.parts import Evaluation
from experiments.records.storage import read_json, write_json
from experiments.stages.evaluation.request import (
    EVALUATION_NAME,
    REQUEST_NAME,
    EvaluationRequest,
)
from experiments.stages.folders import JobFolder
from experiments.stages.process import run_command

DIFFERENT = 3  # exit code


def evaluate_again(job: JobFolder, folder: Path) -> Evaluation:
    """What the job's model gives now; raises ExperimentError."""
    config = job.config()
    request = EvaluationRequest(
        checkpoint=job.checkpoint(),
        data=job.data(),
        decode=config.decode,
        device=config.hardware.device,
    )
    write_json(folder / REQUEST_NAME, request)
    command = [sys.executable, "-m", "experiments.stages.evaluation", str(folder)]
    threads = config.hardware.threads or usable_cores()
    with StageView(f"evaluate {job.path.name}") as view:
        run_command(command, folder / "evaluate.log", threads, view.status)
    return read_json(folder / EVALUATION_NAME, Evaluation)


def report(found: Evaluation, recorded: Evaluation) -> bool:
    """Print both side by side; returns whether all hypotheses are the same."""
    print(f"{'':<28} {'now':>10} {'record':>10}")
    now, then = found.dev_nll_nats_per_token, recorded.dev_nll_nats_per_token
    print(f"{'dev nats/token':<28} {now:>10.3f} {then:>10.3f}")
    same = True
    for score in found.scores:
        key = (score.split, score.metric, score.search)
        other = next((s for s in recorded.scores if (s.split, s.metric, s.search) == key), None)
        if other is None:  # a metric that is younger than the record
            continue
        metric = METRICS[score.metric]
        name = f"{score.split} {metric.label} {score.search}"
        digits = metric.digits
        print(f"{name:<28} {score.value:>10.{digits}f} {other.value:>10.{digits}f}")
        same &= score.hypotheses_sha256 == other.hypotheses_sha256
    print("the translations are the same" if same else "the translations are not the same")
    return same


@command()
def main(arguments: list[str] | None = None) -> int:
    """Evaluate one job; returns the exit code, 3 where the translations differ."""
    parser = Parser(
        prog="python -m experiments.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, help="the job's folder")
    job = JobFolder(parser.parse_args(arguments).job)
    recorded = job.record().evaluation
    if recorded is None:
        raise ExperimentError(f"{job.path}: its training diverged: there is no model")
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate_again(job, Path(folder))
    return 0 if report(found, recorded) else DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
