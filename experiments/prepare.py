"""`python -m experiments.prepare data=wmt14_en_de`: a job's data and nothing more.

It takes the overrides of `experiments.run`, and puts the data where jobs of that config look.
"""

import sys

import hydra
from omegaconf import DictConfig

from experiments.arguments import command
from experiments.errors import ExperimentError
from experiments.stages.corpus import prepare_data
from experiments.stages.graph import job_of
from experiments.stages.sweep import check_overrides, one_line_errors, resolve, with_search_options


@hydra.main(version_base="1.3", config_path="../conf", config_name="suite")
def prepare(config: DictConfig) -> None:
    """Prepare the data of one job of the command line; ends the process where that fails."""
    try:
        job = job_of(resolve(config))
        prepare_data(job.config, job.prepare, again=job.config.rerun == "prepare")
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@command(resumes=True)
def main() -> int:
    """Prepare what the command line asks for; returns the exit code."""
    # Nothing is trained: nothing to measure or report. Overrides stand side by side.
    first = next((i for i, given in enumerate(sys.argv) if "=" in given), len(sys.argv))
    sys.argv.insert(first, "~hydra.callbacks.sweep")
    check_overrides(sys.argv[1:])
    sys.argv[1:] = with_search_options(sys.argv[1:])
    with one_line_errors():
        prepare()
    return 0


if __name__ == "__main__":
    sys.exit(main())
