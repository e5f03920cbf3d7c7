"""Machines: presets with their sources, files of measured rates, and this machine, measured once.

A preset has the vendor's peak rates, which no program reaches: its times are lower bounds, and its
speed-ups hold where contenders fall short of the peaks by the same factor.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import msgspec

from experiments.arguments import asked_threads
from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.records.checked import Checked, Device, Positive, Rate, Seconds, Text, require
from experiments.records.provenance import hardware
from experiments.records.storage import read_versioned, write_json
from gqa_fairseq.host_memory import available_bytes
from gqa_fairseq.roofline import BYTES, Machine

SCHEMA_VERSION = 1
MACHINES_FOLDER = Path("outputs/machines")
SHARE_OF_MEMORY = 0.85  # the rest is for Python, torch and whoever else is there
HERE: tuple[Device, ...] = ("cpu", "cuda")  # `here`, or `here-cuda`
_TPU = "N. P. Jouppi et al. 2020, A domain-specific supercomputer, CACM 63(7), a chip of two cores"
_HOPPER = {"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 66.9e12, "int8": 1978.9e12}

PRESETS = {
    machine.name: machine
    for machine in (
        Machine(
            "TPUv2",
            700e9,
            {"bfloat16": 46e12},
            16 * 2**30,
            f"{_TPU}; announced in 2017 with 600 GB/s",
            "bfloat16",
        ),
        Machine(
            "TPUv3",
            900e9,
            {"bfloat16": 123e12},
            32 * 2**30,
            f"{_TPU}; Google Cloud's documentation of v3",
            "bfloat16",
        ),
        Machine(
            "TPUv4",
            1200e9,
            {"bfloat16": 275e12, "int8": 275e12},
            32 * 2**30,
            "N. P. Jouppi et al. 2023, TPU v4, ISCA; Google Cloud's documentation of v4, a chip",
            "bfloat16",
        ),
        Machine(
            "V100",
            900e9,
            {"float16": 125e12, "float32": 15.7e12},
            32 * 10**9,
            "NVIDIA's data sheet of V100 SXM2, 32 GB",
            "float16",
        ),
        Machine(
            "A100",
            2039e9,
            {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12, "int8": 624e12},
            80 * 10**9,
            "NVIDIA's data sheet of A100 SXM, 80 GB, without sparsity",
            "bfloat16",
        ),
        Machine(
            "H100",
            3350e9,
            _HOPPER,
            80 * 10**9,
            "NVIDIA's data sheet of H100 SXM, without sparsity",
            "bfloat16",
        ),
        Machine(
            "H200",
            4800e9,
            _HOPPER,
            141 * 10**9,
            "NVIDIA's data sheet of H200 SXM, without sparsity",
            "bfloat16",
        ),
        Machine(
            "CPU",
            2 * 3200e6 * 8,
            {"float32": 8 * 3.5e9 * 32, "int8": 8 * 3.5e9 * 128},
            32 * 10**9,
            "derived: 2 channels of DDR4-3200; 8 cores x 3.5 GHz x 32 operations a cycle (AVX2), "
            "128 in 8 bits (AVX-VNNI)",
        ),
    )
}


class MachineFile(Checked, frozen=True, kw_only=True):
    """Measured rates of a machine. `measured` is the day, `step_overhead_s` as in `Machine`."""

    schema_version: int
    name: Text
    bytes_per_s: Rate
    flops_per_s: dict[str, Rate]
    memory_bytes: Positive
    source: Text
    measured: datetime.date
    usual: str = "float32"
    step_overhead_s: Seconds = 0.0

    def check(self) -> None:
        unknown = sorted(set(self.flops_per_s) - set(BYTES))
        require(not unknown, f"flops_per_s has {', '.join(unknown)}, not one of {', '.join(BYTES)}")
        require(self.usual in self.flops_per_s, f"flops_per_s has no rate for {self.usual}")

    @property
    def machine(self) -> Machine:
        return Machine(
            self.name,
            self.bytes_per_s,
            self.flops_per_s,
            self.memory_bytes,
            f"{self.source}, measured on {self.measured}",
            self.usual,
            self.step_overhead_s,
        )


def find_machine(asked: str, again: bool = False) -> Machine:
    """A preset's name, `here`, `here-cuda`, or the path of a machine file.

    `here` is measured once, in a process of its own, and `again` measures it anew.

    Raises:
        ExperimentError: one line; for an unknown name it has the list.
    """
    for device in HERE:
        if asked.lower() in (f"here-{device}", "here" if device == "cpu" else ""):
            return _this_machine(device, again).machine
    by_name = {name.lower(): machine for name, machine in PRESETS.items()}
    if asked.lower() in by_name:
        return by_name[asked.lower()]
    path = Path(asked)
    if path.suffix != ".json" and not path.exists():
        raise ExperimentError(
            f"--machine {asked} is unknown: choose one of {', '.join(PRESETS)}, here, here-cuda, "
            "or a file of measured rates (.json)"
        )
    return _read(path).machine


def usable_bytes(machine: Machine, device: Device) -> int:
    """Memory that a measurement here may take: a share of a GPU's, or of what a CPU has free."""
    found = machine.memory_bytes if device == "cuda" else available_bytes()
    return int(SHARE_OF_MEMORY * found)


def _read(path: Path) -> MachineFile:
    return read_versioned(path, MachineFile, SCHEMA_VERSION, "measure it again")


def _this_machine(device: Device, again: bool) -> MachineFile:
    found, threads = hardware(), asked_threads()
    if device == "cpu":
        name = f"{found.cpu_model}, {threads} threads"
    elif found.gpus:
        name = found.gpus[0]
    else:
        raise ExperimentError("--machine here-cuda: there is no GPU (choose here, or a preset)")
    letters = "".join(c if c.isalnum() else "-" for c in name)
    path = MACHINES_FOLDER / f"{letters}.json"
    if path.exists() and not again:
        return _read(path)
    probe = _probe(device, threads)
    measured = MachineFile(
        schema_version=SCHEMA_VERSION,
        name=name,
        bytes_per_s=probe.bytes_per_s,
        flops_per_s=probe.flops_per_s,
        memory_bytes=probe.memory or found.memory_bytes,
        source="experiments/measure/machine.py",
        measured=datetime.date.today(),
        usual="float32" if device == "cpu" else "float16",
    )
    write_json(path, measured)
    return measured


class _Probe(msgspec.Struct):
    bytes_per_s: float
    flops_per_s: dict[str, float]
    memory: int | None


def _probe(device: Device, threads: int) -> _Probe:
    print(f"measuring this machine's {device}, which is kept", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.measure.machine", device],
        capture_output=True,
        text=True,
        check=False,
        env=compute_environment(threads),
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").split("\n")[-1]
        raise ExperimentError(f"the machine cannot be measured: {last} (choose a preset)")
    return msgspec.convert(json.loads(done.stdout), _Probe)
