"""What is done, what runs and what is left, of jobs, of the stages that they share, and of sweeps.

    python -m experiments.status
    python -m experiments.status --disk      # and what takes how much

`python -m experiments.clean` says what can be removed.
"""

import argparse
import sys

from experiments.arguments import Parser, add_outputs, command
from experiments.errors import ExperimentError
from experiments.stages.status.expected import sweeps
from experiments.stages.status.inventory import Outputs, in_bytes, size_of, state_of_job


def show(outputs: Outputs, *, disk: bool) -> None:
    """Print a line a job, a stage and a sweep; raises ExperimentError where there is nothing."""
    outputs.check()
    jobs = outputs.jobs()
    rows = [("job", "/".join(job.parts[-2:]), state_of_job(job).line, job) for job in jobs]
    rows += [(s.kind, s.path.name, s.line, s.path) for s in outputs.stages()]
    if not rows:
        raise ExperimentError(
            f"{outputs.path}: neither jobs nor stages in it (run an experiment, or give the folder "
            "that has runs/ in it)"
        )
    widths = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    for kind, name, state, path in rows:
        size = f"{in_bytes(size_of(path)):>8}  " if disk else ""
        print(f"{size}{kind:<{widths[0]}}  {name:<{widths[1]}}  {state}")
    for sweep in sweeps(jobs):
        print(sweep.line)
    if disk:
        print(f"{in_bytes(size_of(outputs.path)):>8}  all of {outputs.path}")


@command()
def main(arguments: list[str] | None = None) -> int:
    """Show what is there; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_outputs(parser)
    parser.add_argument("--disk", action="store_true", help="what takes how much")
    options = parser.parse_args(arguments)
    show(Outputs(options.outputs), disk=options.disk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
