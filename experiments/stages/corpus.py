"""The corpus of a job: have it prepared, check that every held-out line fits, say what it is."""

import functools
import subprocess
import sys
from pathlib import Path

import msgspec
import sentencepiece

from experiments.config import ModelConfig, SuiteConfig
from experiments.errors import ExperimentError
from experiments.layout import SOURCE, TARGET, DataFolder, data_folder
from experiments.record_parts import DataInfo, Overlap, SplitCounts
from experiments.storage import read_bytes, read_json


class _Split(msgspec.Struct):
    read: int
    kept: int
    dropped: dict[str, int]


class _Subset(msgspec.Struct):
    file: str
    lines: int


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
    subsets: dict[str, _Subset] = {}
    note: str = ""


def prepare_command(config: SuiteConfig) -> list[str]:
    """The `python -m data_prep` command that prepares the corpus of a job."""
    data = config.data
    command = [sys.executable, "-m", "data_prep", data.name, "--out", str(data_folder(config).path)]
    options = {
        "--vocab-size": data.vocab_size,
        "--max-pieces": data.max_pieces,
        "--max-ratio": data.max_ratio,
        "--mirror": data.mirror,
        "--sources": data.sources,
        "--train-source": data.train_source,
        "--train-target": data.train_target,
        "--dev-source": data.dev_source,
        "--dev-target": data.dev_target,
        "--test-source": data.test_source,
        "--test-target": data.test_target,
    }
    for name, value in options.items():
        if value is not None:
            command += [name, str(value)]
    return command


def prepare_data(config: SuiteConfig) -> DataFolder:
    """Have the corpus prepared, which does nothing where that is done.

    The command shows its own progress and its own error: SystemExit with its exit code when it
    fails.
    """
    _run_once(tuple(prepare_command(config)))
    return data_folder(config)


@functools.cache
def _run_once(command: tuple[str, ...]) -> None:
    """Run `command` at its first call: jobs of a sweep share their data."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, split at "\n" alone: text holds other separators as characters."""
    # Bytes, as read_text would turn a carriage return into a line of its own.
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def check_lengths(model: ModelConfig, data: DataFolder) -> None:
    """Raise ExperimentError for the first held-out line that the model has no positions for.

    No line may be skipped, so this is found before the training. The reference of a test line is
    only compared as text: its length does not matter.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))
    longest = model.max_positions
    for split, language in (("dev", SOURCE), ("dev", TARGET), ("test", SOURCE)):
        path = data.text(split, language)
        for number, line in enumerate(pieces.encode(read_lines(path)), start=1):
            tokens = len(line) + 1  # and the end of the sentence
            if tokens > longest:
                raise ExperimentError(
                    f"{path}, line {number}: {tokens} tokens, more than model.max_positions="
                    f"{longest} (raise it: no line is skipped)"
                )


def read_data_info(path: Path) -> DataInfo:
    """The data of a manifest; raises ExperimentError, one line, when it cannot be used."""
    manifest = read_json(path, _Manifest)
    for name, subset in manifest.subsets.items():
        if not subset.lines:
            raise ExperimentError(f"{path}: no line of test is in {name} (get its archives again)")
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
        subsets={_subset_name(name): subset.lines for name, subset in manifest.subsets.items()},
        note=manifest.note,
    )


def read_subsets(data: DataFolder, test_lines: int) -> dict[str, list[int]]:
    """Indices from 0, among `test_lines` of test, of each subset of the manifest, by its name.

    Raises ExperimentError unless a subset has the manifest's number of lines, each of them once
    and in test.
    """
    found = {}
    for name, subset in read_json(data.manifest, _Manifest).subsets.items():
        path = data.path / subset.file
        numbers = read_bytes(path).decode("utf-8", errors="replace").split()
        known = {str(number): number - 1 for number in range(1, test_lines + 1)}
        indices = [known[number] for number in dict.fromkeys(numbers) if number in known]
        if not len(indices) == len(numbers) == subset.lines:
            raise ExperimentError(
                f"{path}: not {subset.lines} different numbers of test's {test_lines} lines "
                "(prepare the data again)"
            )
        found[_subset_name(name)] = indices
    return found


def _subset_name(name: str) -> str:
    """Such as `test_filtered`: the name that scores, records and views use."""
    return f"test_{name}"
