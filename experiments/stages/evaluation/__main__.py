"""The evaluate stage's process.

    python -m experiments.stages.evaluation FOLDER

reads FOLDER/request.json, and writes FOLDER/evaluation.json and FOLDER/hypotheses: each file of
translations by its digest, with every metric's counts of each line.
"""

import sys
from pathlib import Path

from data_prep.system.surroundings import settle
from experiments.errors import ExperimentError
from experiments.records.checked import ContradictionError
from experiments.records.storage import read_json, write_json
from experiments.stages.evaluation.evaluate import evaluate
from experiments.stages.evaluation.request import (
    EVALUATION_NAME,
    REQUEST_NAME,
    EvaluationRequest,
)


def main(arguments: list[str]) -> int:
    """Evaluate what a stage's folder asks for; returns the exit code."""
    settle()
    folder = Path(arguments[0])
    hypotheses = folder / "hypotheses"
    try:
        request = read_json(folder / REQUEST_NAME, EvaluationRequest)
        write_json(folder / EVALUATION_NAME, evaluate(request, hypotheses))
    except ContradictionError as error:
        print(f"error: {error} (the translations are kept in {hypotheses})", file=sys.stderr)
        return 2
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
