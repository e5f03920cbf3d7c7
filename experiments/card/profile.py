"""Where does a step's time go? torch's profiler over one search, multi-head and multi-query."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.card.decoding import DRY_SEARCHES, SEARCHES
from experiments.card.models import Asked
from experiments.engines.clock import now
from experiments.measure.decoding import Decoder, Translating
from experiments.measure.request import FixedSearch, RequestedContender
from experiments.measure.session import quieten_fairseq
from experiments.records.card import KernelTime, Profiles, SearchProfile
from experiments.records.measurement import FixedLengths
from experiments.records.storage import write_json
from gqa_fairseq.architecture import Architecture

KERNELS = 20  # the longest ones are kept
WARM_UP = 3  # the first compiles, the second captures graphs


def run(asked: Asked) -> None:
    """Profile each search; the record is written anew after each."""
    quieten_fairseq()
    torch.set_num_threads(asked.threads)
    searches: list[SearchProfile] = []
    for search in (DRY_SEARCHES if asked.is_dry else SEARCHES)[:2]:
        for own in asked.models((8, 1)):
            searches.append(profiled(asked, own, search))
            write_json(asked.folder / "profile.json", Profiles(**asked.stamp(), searches=searches))
            print("\n".join(lines_of(searches[-1])), flush=True)
            gc.collect()


def profiled(asked: Asked, own: Architecture, search: FixedSearch) -> SearchProfile:
    """One search by the plugin's engine, warmed up."""
    batch, source, target, beam = search
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    workload = FixedLengths(
        batch=batch,
        source_tokens=source,
        target_tokens=target,
        beam=beam,
        max_positions=own.max_target_positions,
    )
    contender = RequestedContender(architecture=own, engine="gqa")
    decoder = Decoder(contender, device, dtype, is_alone=True)
    try:
        ready = decoder.take(workload, "random", None)
        wall_s, events = _events(ready, device, 1 if asked.is_dry else WARM_UP)
    finally:
        decoder.close()
    times = [(event, _device_s(event, device)) for event in events]
    longest = sorted((pair for pair in times if pair[1] > 0), key=lambda pair: -pair[1])
    return SearchProfile(
        beam=beam,
        num_kv_heads=own.num_kv_heads,
        steps=target,
        wall_s=wall_s,
        device_s=sum(seconds for _, seconds in times),
        kernels=[
            KernelTime(name=event.key[:120], calls=event.count, device_s=seconds)
            for event, seconds in longest[:KERNELS]
        ],
    )


def _events(ready: Translating, device: torch.device, warm_up: int) -> tuple[float, list[Any]]:
    """Seconds of a search without the profiler, and what it saw in the next one."""
    for _ in range(warm_up):
        ready.run()
    started = now(device)
    ready.run()
    wall_s = now(device) - started
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds = [ProfilerActivity.CUDA]  # the host's side would slow it down
    with profile(activities=kinds) as seen:
        ready.run()
        now(device)
    return wall_s, list(seen.key_averages())


def _device_s(event: Any, device: torch.device) -> float:
    """Its own seconds on the device; on a CPU that is the host."""
    if device.type == "cuda":
        return event.self_device_time_total / 1e6
    return event.self_cpu_time_total / 1e6


def lines_of(search: SearchProfile) -> list[str]:
    lines = [
        f"beam {search.beam}, G = {search.num_kv_heads}: {1e3 * search.wall_s:.1f} ms, "
        f"{1e3 * search.device_s:.1f} ms on the device"
    ]
    lines += [
        f"  {one.device_s / search.device_s:6.1%} {one.calls:7,} x {one.name}"
        for one in search.kernels
    ]
    return lines
