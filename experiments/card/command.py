"""Carries out the parts: a process each, with a time limit and a log, and a summary at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from experiments.arguments import Parser, asked_threads, command, whole_number
from experiments.card.models import Asked
from experiments.card.parts import BY_NAME, PARTS, Part
from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.records import provenance
from experiments.records.card import SUMMARY_NAME, Outcome, PartEnd, lines_of, read_summary
from experiments.records.checked import Device
from experiments.records.storage import write_bytes, write_json, write_text
from experiments.tied import tied

ROOT = Path(__file__).resolve().parents[2]
# Where records go: those of a card are committed.
KEPT: dict[Device, Path] = {
    "cuda": Path("results/measurements/gpu"),
    "cpu": Path("outputs/gpu/dry"),
}
LOGS = Path("outputs/gpu/logs")
LEAST_S = 20.0  # a part that has less is not begun
LOOK_EVERY_S, PACK_EVERY_S, GRACE_S = 0.2, 15.0, 5.0
SHOWN_LINES = 12  # of a part's log


def part_command(part: Part, asked: Asked) -> list[str]:
    """The process of a part."""
    return [
        sys.executable, "-m", "experiments.card", part.name, "--device", asked.device,
        "--out", str(asked.folder.absolute()), "--limit", str(asked.limit_s),
    ]  # fmt: skip


class Call:
    """One call of the command: what it asks of this card, and where everything goes.

    `bring` gets a copy of all records and logs as one archive, and the summary, after each part and
    while one runs: a call that is ended from outside leaves what there was.
    """

    def __init__(
        self,
        asked: Asked,
        logs: Path,
        bring: Path | None,
        command_of: Callable[[Part, Asked], list[str]] = part_command,
    ) -> None:
        self.asked, self.logs, self.bring = asked, logs, bring
        self._command_of = command_of
        self.made_by = asked.provenance()
        self._ends = time.monotonic() + asked.limit_s
        self._packed = 0.0
        self.summary = read_summary(asked.folder)
        self._kept = KEPT[asked.device] / asked.folder.name
        self._before = {folder: read_summary(folder) for folder in (asked.folder, self._kept)}

    def carry_out(self, parts: Sequence[Part], again: bool) -> bool:
        """One after the other; returns whether all are done."""
        ends = []
        for part in parts:
            end = None if again else self._done(part)
            if end is None:
                end = self._ended(part)
                self.summary = self.summary.with_end(end)
                write_json(self.asked.folder / SUMMARY_NAME, self.summary)
            ends.append(end)
        lines = lines_of(ends)
        if self.bring:
            self._pack()
            write_text(self.bring / "summary.txt", "\n".join(lines) + "\n")
        print(f"\n{self.card}")
        print("\n".join(lines), flush=True)
        return all(end.outcome == "done" for end in ends)

    @property
    def card(self) -> str:
        """The card, and what drives it."""
        made_by = self.made_by
        names = made_by.hardware.gpus if self.asked.device == "cuda" else ()
        versions = [
            f"{name} {made_by.versions[name]}"
            for name in ("nvidia-driver", "torch", "triton")
            if name in made_by.versions
        ]
        processor = ", ".join(names) or made_by.hardware.cpu_model
        return ", ".join([processor, *versions, f"code {made_by.code.label}"])

    def _done(self, part: Part) -> PartEnd | None:
        """How the part ended before, where its record lies beside the summary that says so."""
        for folder, summary in self._before.items():
            record = folder / part.record
            end = summary.done(part.name, self.made_by, self.asked.device)
            if end and record.exists():
                print(f"{part.name}: done before by the same code on this card: {record}")
                return end
        return None

    def _ended(self, part: Part) -> PartEnd:
        """Run a part within its time."""
        limit = min(part.limit_s, self._ends - time.monotonic())
        if limit < LEAST_S:
            return self._end(part, "no time", 0.0, f"less than {LEAST_S:.0f} s were left")
        print(f"{part.name}: {part.answers} (at most {limit:.0f} s)", flush=True)
        log = self.logs / f"{part.name}.log"
        started = time.monotonic()
        # In a folder of its own: what is found is of this run, and an earlier record stays until
        # there is a new one.
        work = self.asked.folder / f".{part.name}"
        shutil.rmtree(work, ignore_errors=True)
        outcome = self._run(part, work, log, limit)
        took = time.monotonic() - started
        lines = log.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
        print("\n".join(f"  {line}" for line in lines[-SHOWN_LINES:]), flush=True)
        found = lines[-1].removeprefix("error: ").strip()
        if not self._keep(part, work):
            outcome = "failed" if outcome == "done" else outcome
        elif outcome != "failed":
            try:
                found = part.found(self.asked.folder / part.record)
            except (ExperimentError, ValueError, LookupError) as error:
                outcome, found = "failed", f"its record says nothing: {error}"
        return self._end(part, outcome, took, found)

    def _keep(self, part: Part, work: Path) -> bool:
        """Put the record, also one that was left half made, in its place; false without one."""
        made, record = work / part.record, self.asked.folder / part.record
        if has_record := made.exists():
            if record.is_dir():
                shutil.rmtree(record)
            made.replace(record)
        shutil.rmtree(work, ignore_errors=True)
        return has_record

    def _end(self, part: Part, outcome: Outcome, wall_s: float, found: str) -> PartEnd:
        return PartEnd(
            created_utc=datetime.now(UTC),
            provenance=self.made_by,
            device=self.asked.device,
            dtype=self.asked.dtype,
            part=part.name,
            outcome=outcome,
            wall_s=wall_s,
            found=found,
        )

    def _run(self, part: Part, work: Path, log: Path, limit_s: float) -> Outcome:
        own = self._command_of(part, replace(self.asked, folder=work, limit_s=limit_s))
        log.parent.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + limit_s
        with log.open("wb") as stream:
            process = subprocess.Popen(
                tied(own),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env=compute_environment(self.asked.threads), cwd=ROOT,
                start_new_session=True,  # its own processes end with it
            )  # fmt: skip
            try:
                while process.poll() is None:
                    if time.monotonic() > ends:
                        return "timed out"
                    if self.bring and time.monotonic() > self._packed + PACK_EVERY_S:
                        self._pack()
                    time.sleep(LOOK_EVERY_S)
            finally:
                _end_group(process)
        return "failed" if process.returncode else "done"

    def _pack(self) -> None:
        """Records and logs in one archive, as they lie below the project's root."""
        assert self.bring is not None
        self._packed = time.monotonic()
        try:
            packed = self._archive()
        except FileNotFoundError:  # the part that runs has just removed a file
            return
        write_bytes(self.bring / "gpu.tar.gz", packed)

    def _archive(self) -> bytes:
        with tempfile.TemporaryFile() as stream:
            with tarfile.open(fileobj=stream, mode="w:gz") as archive:
                for folder, name in (
                    (self.asked.folder, self._kept),
                    (self.logs, LOGS),
                ):
                    if folder.exists():
                        archive.add(folder, str(name))
            stream.seek(0)
            return stream.read()


def _end_group(process: subprocess.Popen) -> None:
    """End a part's process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _folder(out: Path, device: Device) -> Path:
    """A card has a folder of its own, named after it: no two share a record."""
    found = provenance.hardware()
    name = found.gpus[0] if device == "cuda" else found.cpu_model
    return out / "-".join("".join(c if c.isalnum() else " " for c in name).split())


def _parts(text: str) -> list[Part]:
    names = text.split(",")
    if unknown := [name for name in names if name not in BY_NAME]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is unknown: choose of {', '.join(BY_NAME)}"
        )
    return [part for part in PARTS if part.name in names]


@command(resumes=True)
def main(arguments: list[str] | None, description: str | None) -> int:
    """Carry out the parts; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.gpu",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part.name:<12} {part.answers}" for part in PARTS),
    )
    parser.add_argument(
        "--parts", type=_parts, default=list(PARTS), help="some of them, with commas (default: all)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--out", type=Path, help=f"records (default {KEPT['cuda']}; of a dry run {KEPT['cpu']})"
    )
    parser.add_argument("--bring", type=Path, help="a folder for one archive of all, and a summary")
    parser.add_argument(
        "--seconds", type=whole_number, default=3600, help="for all parts (default %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="also what is done already")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not provenance.hardware().gpus:
        raise ExperimentError(
            "no GPU is there: nvidia-smi names none (--device cpu is a dry run with tiny shapes)"
        )
    folder = _folder(args.out or KEPT[args.device], args.device)
    call = Call(Asked(args.device, folder, args.seconds, asked_threads()), LOGS, args.bring)
    print(call.card, flush=True)
    return 0 if call.carry_out(args.parts, args.again) else 1
