"""When a step runs, warms up, is captured and is replayed: each call is one step, whatever happens.

CUDA itself is played: a capture records and does not run, a replay runs. What a GPU makes of it is
tested there, by tests/kernel_search.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from gqa_fairseq.decoding.gpu import graphs
from gqa_fairseq.decoding.gpu.graphs import GraphedStep, LateReads

CUDA = torch.device("cuda", 0)


class Player:
    """A function that counts its effects, and the parts of torch.cuda that GraphedStep uses."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.effects = 0
        self.events: list[str] = []
        self.is_capturing = False
        self.pools: list[object] = []  # of the captures
        self.stream = main = self.new_stream()  # the current one
        player = self

        class Graph:
            def replay(self) -> None:
                player.effects += 1
                player.events.append("replay")

        @contextmanager
        def on(stream: object):
            previous, player.stream = player.stream, stream
            try:
                yield
            finally:
                player.stream = previous

        @contextmanager
        def capture(graph: Graph, pool: object, stream: object, capture_error_mode: str):
            """As torch's: it synchronizes, and after a failure it stays on its stream."""
            assert player.stream is main
            previous, player.stream = player.stream, stream
            player.pools.append(pool)
            player.is_capturing = True
            yield
            player.is_capturing = False
            player.stream = previous

        self.cuda = SimpleNamespace(
            CUDAGraph=Graph,
            graph=capture,
            graph_pool_handle=lambda: object(),
            current_stream=lambda device: player.stream,
            Stream=lambda device: self.new_stream(),
            stream=on,
        )

    def new_stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.events.append("wait"))

    def step(self) -> None:
        if not self.is_capturing:
            self.effects += 1
            self.events.append("run")
            return
        self.events.append("capture")
        if self.fails:
            self.is_capturing = False
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.fixture
def player(monkeypatch, request) -> Iterator[Player]:
    result = Player(fails=getattr(request, "param", False))
    monkeypatch.setattr(graphs.torch, "cuda", result.cuda)
    graphs._side_stream.cache_clear()
    yield result
    graphs._side_stream.cache_clear()


def test_the_first_call_of_a_key_warms_up_the_second_captures(player: Player) -> None:
    step = GraphedStep(CUDA)
    for _ in range(3):
        step(player.step, (8, 32))
    assert player.events == ["wait", "run", "wait", "capture", "replay", "replay"]
    player.events.clear()
    for key in ((4, 32), (8, 32), (4, 32), (4, 32)):
        step(player.step, key)
    assert player.events == ["wait", "run", "wait", "replay", "capture", "replay", "replay"]
    assert player.effects == 7


@pytest.mark.parametrize("player", [True], indirect=True)
def test_a_failed_capture_goes_on_without_graphs(player: Player, caplog) -> None:
    step, stream = GraphedStep(CUDA), player.stream
    with caplog.at_level(logging.WARNING):
        for key in (1, 1, 1, 2, 2):
            step(player.step, key)
    assert player.effects == 5
    assert player.events.count("capture") == 1
    assert not step.is_graphed
    assert player.stream is stream
    assert caplog.messages == [
        "decoding without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_graphs_that_were_let_go_take_their_pool_along(player: Player, monkeypatch) -> None:
    """torch refuses a capture into a pool that no graph holds any more."""
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 2)
    step = GraphedStep(CUDA)
    for key in (1, 1, 2, 2, 3, 3, 4, 4):
        step(player.step, key)
    first, second, third, fourth = player.pools
    assert first is second
    assert third is fourth
    assert first is not third
    assert player.effects == 8


def test_a_cpu_calls_the_function() -> None:
    calls: list[int] = []
    step = GraphedStep(torch.device("cpu"))
    for _ in range(4):
        step(lambda: calls.append(1), "key")
    assert len(calls) == 4


def test_late_reads_are_values_of_their_time() -> None:
    x = torch.zeros(2, dtype=torch.int64)
    reads = LateReads(lag=2)
    seen = []
    for _ in range(5):
        x += 1
        reads.push(x)
        value = reads.pop()
        seen.append(None if value is None else value.tolist())
    assert seen == [None, None, [1, 1], [2, 2], [3, 3]]
    reads.clear()
    reads.push(x)
    assert reads.pop() is None
