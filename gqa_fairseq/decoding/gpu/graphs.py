"""CUDA graphs, and reading a GPU's results without waiting for it.

A decoding step is some two hundred launches of a few microseconds each; launched one by one they
cost more than the work. A graph launches them at once. On a CPU, and where a capture fails, the
functions are called without a graph.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 128  # at most so many are kept; each takes some hundred kilobytes


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where steps warm up and are captured: one a device, because cuBLAS keeps 32 MiB for each."""
    return torch.cuda.Stream(device)


class GraphedStep:
    """Calls a function on a GPU by replaying a graph of it, one for every key.

    The function takes and returns nothing, and works in place on tensors of `device` that keep
    their addresses as long as this object lives. What it does may depend on the key and on values
    on the device, and not on any other value of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None  # the graphs share their temporaries' memory
        self.is_graphed = device.type == "cuda"

    def __call__(self, function: Callable[[], None], key: Hashable) -> None:
        """One call. The first of a key runs without a graph: it compiles kernels and warms up."""
        if not self.is_graphed:
            function()
        elif key not in self._graphs:
            if len(self._graphs) == _MOST_GRAPHS:
                self._graphs.clear()
                self._pool = None  # a pool whose graphs are all gone takes no new one
            self._graphs[key] = None
            self._warm_up(function)
        else:
            graph = self._graphs[key]
            if graph is None:
                graph = self._graphs[key] = self._capture(function)
            if graph is None:
                function()
            else:
                graph.replay()

    def _warm_up(self, function: Callable[[], None]) -> None:
        """On the stream of the captures: libraries prepare their workspaces by stream."""
        side, current = _side_stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            function()
        current.wait_stream(side)

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Records the function without running it; None, with a note in the log, if that fails."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        capture = torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=_side_stream(self._device),
            capture_error_mode="thread_local",  # other threads (NCCL's, pinned loaders') may go on
        )
        try:
            # A capture that fails stays on its stream: the outer context comes back from there.
            with torch.cuda.stream(torch.cuda.current_stream(self._device)), capture:
                function()
        except RuntimeError as error:
            self.is_graphed = False
            self._graphs.clear()
            logger.warning("decoding without CUDA graphs: %s", str(error).splitlines()[0])
            return None
        return graph


class LateReads:
    """Values of a device tensor as the host sees them some calls later, when they have arrived.

    Args:
        lag: how many later values are already on their way when one is read.
    """

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def push(self, x: Tensor) -> None:
        """Sends a copy of `x`, as it is at this point of the stream, to the host."""
        if not x.is_cuda:
            self._pending.append((x.clone(), None))
            return
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(x.device))
        self._pending.append((host, event))

    def pop(self) -> Tensor | None:
        """The oldest value once `lag` newer ones have been pushed, else None."""
        if len(self._pending) <= self._lag:
            return None
        host, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        return host

    def clear(self) -> None:
        self._pending.clear()
