"""What a record says of its data, out of the manifest that `python -m data_prep` writes."""

from pathlib import Path

import msgspec

from experiments.record_parts import DataInfo, Overlap, SplitCounts
from experiments.storage import read_json


class _Split(msgspec.Struct):
    read: int
    kept: int
    dropped: dict[str, int]


class _Manifest(msgspec.Struct):
    """The part of the manifest that records keep; data_prep's own reader is the strict one."""

    name: str
    source_lang: str
    target_lang: str
    vocab_size: int
    checksum: str
    files: dict[str, str]
    splits: dict[str, _Split]
    overlap: dict[str, Overlap]


def read_data_info(path: Path) -> DataInfo:
    """The data of a manifest; raises ExperimentError, one line, when it cannot be used."""
    manifest = read_json(path, _Manifest)
    return DataInfo(
        name=manifest.name,
        source_lang=manifest.source_lang,
        target_lang=manifest.target_lang,
        vocab_size=manifest.vocab_size,
        checksum=manifest.checksum,
        files=manifest.files,
        splits={
            name: SplitCounts(read=split.read, kept=split.kept, dropped=split.dropped)
            for name, split in manifest.splits.items()
        },
        overlap=manifest.overlap,
    )
