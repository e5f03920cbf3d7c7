"""The entry point: Hydra composes the jobs and runs each, wherever its launcher does.

    python -m experiments.run experiment=quickstart attention=mqa
    python -m experiments.run -m experiment=quickstart attention.num_kv_heads=1,2,4,8 seed=1,2,3

All jobs are composed, checked and shown before the first one starts, and measured side by side
after the last one (experiments/stages/sweep.py). Neither torch nor fairseq is imported here:
fairseq would put a config of its own into Hydra's store.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.arguments import command
from experiments.errors import ExperimentError
from experiments.stages.folders import Outcome
from experiments.stages.graph import job_of
from experiments.stages.job import run_job
from experiments.stages.sweep import (
    CONFIG_NAME,
    check_overrides,
    one_line_errors,
    resolve,
    with_search_options,
)

CONF = Path(__file__).resolve().parents[1] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)
def run(config: DictConfig) -> Outcome:
    """One job of the command line; what it returns is Hydra's, and in the job's folder."""
    try:
        return run_job(job_of(resolve(config)))
    except ExperimentError as error:  # all jobs were checked before: something has changed since
        print(f"error: {error}", file=sys.stderr)
        return Outcome(job="unknown", status="failed", message=str(error))


@command(resumes=True)
def main() -> int:
    """Run the jobs of the command line, or say what they would do; returns the exit code."""
    check_overrides(sys.argv[1:])
    sys.argv[1:] = with_search_options(sys.argv[1:])
    with one_line_errors():
        run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
