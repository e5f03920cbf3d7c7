"""Many small trainings on one card: side by side, or one after the other?

The model is the study's (conf/experiment/study_multi30k.yaml) with random sentences of one length.
Each training is a process with a context of its own on the card; all begin an interval together.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from experiments.card.models import Asked
from experiments.engines.clock import now
from experiments.errors import ExperimentError
from experiments.intensity.updates import training_command
from experiments.measure.loop import turns
from experiments.measure.request import RequestedContender
from experiments.measure.session import quieten_fairseq
from experiments.measure.training import Training
from experiments.records.card import AtATime, SideBySide
from experiments.records.measurement import TrainingUpdates
from experiments.records.storage import write_json
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.parity import Baseline

# conf/model/mini.yaml with the words of conf/data/multi30k_en_de.yaml; a test compares them.
STUDY = Baseline(
    d_model=128,
    mha_d_ff=512,
    encoder_layers=4,
    decoder_layers=4,
    vocab_size=6001,
    max_source_positions=256,
    max_target_positions=256,
)
SENTENCES, TOKENS = 256, 16  # 4,096 target tokens, as in the study; captions are so short
AT_A_TIME = (1, 2, 4, 8)
UPDATES, ROUNDS = 40, 3
START_S = 120.0  # for all processes to be ready


@dataclass(frozen=True)
class Plan:
    own: Architecture
    workload: TrainingUpdates
    at_a_time: Sequence[int]
    updates: int
    rounds: int


def plan(asked: Asked) -> Plan:
    if asked.is_dry:
        workload = TrainingUpdates(batch=2, source_tokens=5, target_tokens=5)
        return Plan(asked.models((8,))[0], workload, (1, 2), 2, 1)
    workload = TrainingUpdates(batch=SENTENCES, source_tokens=TOKENS, target_tokens=TOKENS)
    return Plan(STUDY.multi_head, workload, AT_A_TIME, UPDATES, ROUNDS)


def run(asked: Asked) -> None:
    """Measure and write the record."""
    todo = plan(asked)
    with tempfile.TemporaryDirectory() as words:
        command = training_command(todo.own, Path(words), asked.device, "float32")
        with _trainings(max(todo.at_a_time), todo, command, asked) as pipes:
            rates = _measured(todo, pipes)
    record = SideBySide(
        **asked.stamp("float32"),
        parameters=todo.own.parameters,
        tokens_per_update=todo.workload.batch * todo.workload.target_tokens,
        rates=rates,
    )
    write_json(asked.folder / "seeds.json", record)
    for rate in record.rates:
        print(f"{rate.trainings} at a time: {rate.median:.1f} updates/s")


def _measured(todo: Plan, pipes: Sequence[Connection]) -> list[AtATime]:
    """Rounds in which every number of trainings has its turn."""
    found: dict[int, list[float]] = {number: [] for number in todo.at_a_time}
    for count in range(todo.rounds):
        for i in turns(len(todo.at_a_time), count):
            number = todo.at_a_time[i]
            for pipe in pipes[:number]:
                pipe.send(todo.updates)
            spans = [_answer(pipe) for pipe in pipes[:number]]
            took = max(end for _, end in spans) - min(start for start, _ in spans)
            found[number].append(number * todo.updates / took)
    return [AtATime(trainings=n, updates_per_s=rates) for n, rates in found.items()]


@contextmanager
def _trainings(
    number: int, todo: Plan, command: list[str], asked: Asked
) -> Iterator[list[Connection]]:
    """So many processes that are ready to train, and the ends of their pipes."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(number):
            mine, theirs = context.Pipe()
            arguments = (theirs, todo, command, asked.device)
            process = context.Process(target=_train, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        for pipe in pipes:
            _answer(pipe)
        yield pipes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _answer(pipe: Connection) -> Any:
    """What a training says; raises ExperimentError where it has ended."""
    if not pipe.poll(START_S):
        raise ExperimentError(f"a training did not answer within {START_S:.0f} s")
    try:
        return pipe.recv()
    except EOFError:
        raise ExperimentError("a training ended: out of memory?") from None


def _train(pipe: Connection, todo: Plan, command: list[str], device: str) -> None:
    """The process of one training: two updates to warm up, then as many as it is told."""
    quieten_fairseq()
    torch.set_num_threads(1)
    asked = RequestedContender(architecture=todo.own, engine="gqa", training_command=command)
    training, on = Training(asked, todo.workload), torch.device(device)
    for _ in range(2):
        training.run()
    now(on)
    pipe.send("ready")
    while True:
        updates = pipe.recv()
        started = now(on)
        for _ in range(updates):
            training.run()
        pipe.send((started, now(on)))
