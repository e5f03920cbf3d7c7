"""`python -m experiments.prepare data=wmt14_en_de`: a job's data and nothing more.

It takes the overrides of `experiments.run`, and puts the data where jobs of that config look.
"""

import sys

from experiments.corpus import prepare_data
from experiments.errors import ExperimentError
from experiments.run import compose_jobs


def main() -> int:
    """Prepare the data of each job of the command line; returns the exit code."""
    try:
        for config in compose_jobs():
            prepare_data(config)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
