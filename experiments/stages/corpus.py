"""The prepare stage, and what a job asks of its corpus: every held-out line must fit the model."""

import functools
import subprocess
import sys
from pathlib import Path

import msgspec
import sentencepiece

from data_prep.spec import DataSpec
from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.records.storage import read_bytes, read_lines
from experiments.stages.folders import DataFolder
from experiments.stages.graph import Stage


def prepare_command(data: DataSpec, folder: Path) -> list[str]:
    """The `python -m data_prep` command that prepares a corpus: an option for each setting."""
    command = [sys.executable, "-m", "data_prep", data.name, "--out", str(folder)]
    for field in msgspec.structs.fields(data):
        value = getattr(data, field.name)
        if field.name != "name" and value is not None:
            command += [f"--{field.encode_name.replace('_', '-')}", str(value)]
    return command


def prepare_data(config: SuiteConfig, stage: Stage, *, again: bool = False) -> DataFolder:
    """Have the corpus prepared, which does nothing where that is done.

    The command shows its own progress and its own error.

    Raises ExperimentError when it fails, or its data lacks what a job needs.
    """
    command = prepare_command(config.data, stage.folder)
    if _run_once((*command, "--force") if again else tuple(command)):
        raise ExperimentError("the data could not be prepared: its message is above")
    data = DataFolder(stage.folder, config.data.source_lang, config.data.target_lang)
    for name, subset in data.manifest().subsets.items():
        if not subset.lines:
            raise ExperimentError(
                f"{data.manifest_path}: no line of test is in {name} (get its archives again)"
            )
    return data


@functools.cache
def _run_once(command: tuple[str, ...]) -> int:
    """Run `command` at its first call; returns its exit code. Jobs of a sweep share their data."""
    return subprocess.run([*command, "--config-names"], check=False).returncode


def check_lengths(longest: int, data: DataFolder) -> None:
    """Raise ExperimentError for the first held-out line of more than `longest` tokens.

    No line may be skipped, so this is found before the training. The reference of a test line is
    only compared as text: its length does not matter.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))
    source, target = data.source_lang, data.target_lang
    for split, language in (("dev", source), ("dev", target), ("test", source)):
        path = data.text(split, language)
        for number, line in enumerate(pieces.encode(read_lines(path)), start=1):
            tokens = len(line) + 1  # and the end of the sentence
            if tokens > longest:
                raise ExperimentError(
                    f"{path}, line {number}: {tokens} tokens, more than model.max_positions="
                    f"{longest} (raise it: no line is skipped)"
                )


def read_subsets(data: DataFolder, test_lines: int) -> dict[str, list[int]]:
    """Indices from 0, among `test_lines` of test, of each subset of the manifest, by its name.

    Raises ExperimentError unless a subset has the manifest's number of lines, each of them once
    and in test.
    """
    found = {}
    for name, subset in data.manifest().subsets.items():
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
