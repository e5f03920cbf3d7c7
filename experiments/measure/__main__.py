"""Measure what a request asks for.

    python -m experiments.measure REQUEST.json OUT.json

The request is a `Request` of experiments/measure/request.py. OUT is a `Measurement`, written anew
after every workload. Standard output has a line for each contender that is left out, and then such
as `greedy, batch 8: 128 source and 128 target tokens: 3/6 rounds`, and `: written` when a workload
is in OUT. Run it under the environment of experiments/environment.py: OpenMP reads its variables
when it is loaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.arguments import command
from experiments.measure.request import Request, check_request
from experiments.records.measurement import Measurement, write_measurement
from experiments.records.storage import read_json


@command()
def main(arguments: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request", type=Path, help="what to measure")
    parser.add_argument("out", type=Path, help="the measurement")
    args = parser.parse_args(arguments)
    request = read_json(args.request, Request)
    for line in check_request(request):
        print(line, flush=True)
    from experiments.measure.session import run_request  # torch and fairseq: seconds

    def write(measurement: Measurement) -> None:
        write_measurement(args.out, measurement)
        print(f"{measurement.timings[-1].workload.title}: written", flush=True)

    run_request(
        request,
        on_timing=write,
        on_round=lambda title, done, rounds: print(f"{title}: {done}/{rounds} rounds", flush=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
