"""Reads wandb's offline runs back, for tests."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32 * 1024


def frames(path: Path) -> Iterator[bytes]:
    """The payloads of wandb's log: LevelDB's log format after a header of 7 bytes.

    wandb 0.31 has no reader of its own in Python, so this one checks every checksum.
    """
    raw = path.read_bytes()
    magic, version = struct.unpack("<4xHB", raw[:7])
    assert raw[:4] == b":W&B"
    assert (magic, version) == (0xBEE1, 0)
    position, payload = 7, b""
    while position < len(raw):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < 7:  # A frame's header never crosses a block's border.
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", raw[position : position + 7])
        content = raw[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + content) == checksum
        position += 7 + length
        payload += content
        if kind in (1, 4):  # Whole, or the last of several.
            yield payload
            payload = b""


def read_run(path: Path) -> dict[str, Any]:
    """Name, group, config, history by step, summary and artifacts of an offline run.

    `tables` has those of the summary: columns and rows. `artifacts` has the files of each, by type
    and name.
    """
    from wandb.proto import wandb_internal_pb2

    run: dict[str, Any] = {"history": {}, "summary": {}, "exit": None, "artifacts": {}}
    run |= {"tables": {}, "steps": []}
    for payload in frames(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "group": record.run.run_group}
            run["id"] = record.run.run_id
            run["project"] = record.run.project
            run["job_type"] = record.run.job_type
            run["config"] = {
                item.key: json.loads(item.value_json) for item in record.run.config.update
            }
        elif kind == "config":
            for item in record.config.update:
                run["config"][item.key or item.nested_key[0]] = json.loads(item.value_json)
        elif kind == "history":
            values = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            run["history"][values["_step"]] = values
            run["steps"].append(values["_step"])
        elif kind == "summary":
            for item in record.summary.update:
                run["summary"][item.key or item.nested_key[0]] = json.loads(item.value_json)
        elif kind == "artifact":
            files = {
                entry.path: Path(entry.local_path).read_bytes()
                for entry in record.artifact.manifest.contents
            }
            run["artifacts"][record.artifact.type, record.artifact.name] = files
        elif kind == "files":
            for item in record.files.files:
                if item.path.startswith("media/table/"):
                    key = item.path.removeprefix("media/table/").rsplit("_summary_")[0]
                    table = json.loads((path.parent / "files" / item.path).read_bytes())
                    run["tables"][key] = table["columns"], table["data"]
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def all_runs(folder: Path) -> list[dict[str, Any]]:
    """Every offline run, in the order in which `wandb sync` sends those of one id."""
    return [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs by name as they are after syncing: the last of one id replaces the others."""
    return {run["name"]: run for run in all_runs(folder)}
