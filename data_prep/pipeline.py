"""A corpus from its text to what fairseq trains on, as steps that are done once.

    fetch -> extract -> clean -> vocabulary -> encode -> binarize
                                                 +----> compare (overlap with train, baselines)

Steps work below DIR/work. When all are done, what they made moves to its place and manifest.json is
written, last: a folder that has it is complete.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from data_prep.baselines import write_baselines
from data_prep.binarize import binarize
from data_prep.clean import Cleaned, clean_splits
from data_prep.corpora import open_corpus
from data_prep.corpus import Corpus
from data_prep.encode import Encoded, Encoder, encode_splits
from data_prep.fetch import fetch_all
from data_prep.manifest import (
    HELD_OUT,
    SOURCE_LANG,
    SPLITS,
    TARGET_LANG,
    DataSpec,
    Manifest,
    Overlap,
    SplitCounts,
    Subset,
    digest,
    write_json,
)
from data_prep.overlap import measure_overlap
from data_prep.progress import Advance
from data_prep.result import WORK, only_one, publish, read_finished, result_files
from data_prep.space import require_space, size_of
from data_prep.steps import Step, Steps
from data_prep.text import open_for_writing, read_text, text_files
from data_prep.vocabulary import DICTIONARY_NAME, MODEL_NAME, train_vocabulary

# Part of every request: raise it when the same request gives other data than before.
RECIPE = 1
DOWNLOADS = "downloads"
STEPS = ("extract", "clean", "vocabulary", "encode", "binarize", "compare")
TIMINGS = "timings.json"  # in logs: seconds and pairs of the steps of the last run
NO_RESULT = type(None)
# What WORK takes at the most, estimated in docs/wmt14.md.
WORK_BYTES_PER_PAIR = 1900
PACKAGES = ("sentencepiece", "scikit-learn", "ve-fairseq", "fairseq-fixed")


def prepare(
    spec: DataSpec,
    out: Path,
    *,
    mirror: str | None = None,
    workers: int = 1,
    force: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Prepare `spec` in the folder `out` and return its manifest.

    Nothing is done where it is done already, unless `force`. `mirror` is a folder or URL to take
    downloads from; `workers` processes share the work and change nothing in the result. Progress
    goes to `console`, by default the error stream. Raises DataError, and leaves what was prepared
    before as it was, when an input or a setting cannot be used.
    """
    console = console or Console(stderr=True)
    corpus = open_corpus(spec)
    settings = [spec.name, spec.vocab_size, spec.max_pieces, spec.max_ratio]
    request = digest([RECIPE, settings, corpus.inputs])
    with only_one(out, console):
        if force:
            shutil.rmtree(out / WORK, ignore_errors=True)
        elif done := read_finished(out, request):
            return done
        if corpus.downloads:
            require_space(out, _missing_bytes(corpus, out))
            fetch_all(corpus.downloads, out / DOWNLOADS, mirror, console)
        finished = _run_steps(spec, corpus, out, workers, console)
        manifest = _describe(spec, corpus, request, finished)
        publish(finished.results, manifest, out)
        return manifest


def _missing_bytes(corpus: Corpus, out: Path) -> int:
    """What the downloads and the work will take, less what `out` has of them."""
    archives = sum(download.size_bytes or 0 for download in corpus.downloads)
    work = corpus.training_pairs * WORK_BYTES_PER_PAIR
    have = [size_of(out / DOWNLOADS), size_of(out / WORK)]
    return max(archives - have[0], 0) + max(work - have[1], 0)


class _Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps counted, and those of them that made results."""

    cleaned: Cleaned
    encoded: dict[str, Encoded]
    overlap: dict[str, Overlap]
    subsets: dict[str, Subset]
    results: list[Step[Any]]


def _run_steps(
    spec: DataSpec, corpus: Corpus, out: Path, workers: int, console: Console
) -> _Finished:
    steps = Steps(out / WORK, RECIPE, console)
    logs = out / "logs"

    def extract(folder: Path, advance: Advance) -> dict[str, Subset]:
        corpus.extract(out / DOWNLOADS, folder)
        advance(corpus.training_pairs)
        return _write_subsets(corpus.subsets(folder), folder)

    texts, subsets, results = out / DOWNLOADS, dict[str, Subset](), list[Step[Any]]()
    if corpus.in_archives:
        extracted = steps.run("extract", corpus.inputs, extract, dict[str, Subset])
        texts, subsets, results = extracted.folder, extracted.result, [extracted]

    def clean(folder: Path, advance: Advance) -> Cleaned:
        return clean_splits(lambda split: corpus.pairs(split, texts), folder, advance, workers)

    cleaned = steps.run("clean", corpus.inputs, clean, Cleaned)
    training_pairs = cleaned.result.read["train"] - sum(cleaned.result.dropped.values())

    def train_pieces(folder: Path, advance: Advance) -> None:
        train = text_files(cleaned.folder, "train")
        train_vocabulary(train, spec.vocab_size, folder, logs / "vocabulary.log")
        advance(training_pairs)

    vocabulary = steps.run("vocabulary", [cleaned.files, spec.vocab_size], train_pieces, NO_RESULT)

    def encode(folder: Path, advance: Advance) -> dict[str, Encoded]:
        encoder = Encoder(vocabulary.folder / MODEL_NAME)
        limits = spec.max_pieces, spec.max_ratio
        return encode_splits(cleaned.folder, encoder, *limits, folder, advance, workers)

    encode_inputs = [cleaned.files, vocabulary.files, spec.max_pieces, spec.max_ratio]
    encoded = steps.run("encode", encode_inputs, encode, dict[str, Encoded])

    def to_binary(folder: Path, advance: Advance) -> None:
        dictionary = vocabulary.folder / DICTIONARY_NAME
        log = logs / "binarize.log"
        binarize(encoded.folder / "pieces", dictionary, folder / "bin", workers, log)
        advance(encoded.result["train"].kept)

    binarized = steps.run("binarize", [encoded.files, vocabulary.files], to_binary, NO_RESULT)

    def compare(folder: Path, advance: Advance) -> dict[str, Overlap]:
        nearest = corpus.nearest_baseline
        return _compare(encoded.folder / "text", folder / "baselines", nearest, advance)

    inputs = [encoded.files, corpus.nearest_baseline]
    compared = steps.run("compare", inputs, compare, dict[str, Overlap])
    if steps.timings:
        write_json(logs / TIMINGS, steps.timings)

    return _Finished(
        cleaned=cleaned.result,
        encoded=encoded.result,
        overlap=compared.result,
        subsets=subsets,
        results=[*results, vocabulary, encoded, binarized, compared],
    )


def _write_subsets(subsets: dict[str, list[int]], folder: Path) -> dict[str, Subset]:
    """Write the line numbers of each subset, one a line, into `folder`/text."""
    found = {}
    for name, numbers in subsets.items():
        file = f"text/test.{name}.lines"
        with open_for_writing(folder / file) as stream:
            stream.writelines(f"{number}\n" for number in numbers)
        found[name] = Subset(file=file, lines=len(numbers))
    return found


def _compare(texts: Path, out: Path, nearest: bool, advance: Advance) -> dict[str, Overlap]:
    """Write the baselines into `out`; returns the overlap of dev and test with train.

    Train is held in memory for the `nearest` baseline alone.
    """
    sources = {split: [source for source, _ in read_text(texts, split)] for split in HELD_OUT}
    write_baselines(list(read_text(texts, "train")) if nearest else None, sources["test"], out)

    def train_sources() -> Iterator[str]:
        for source, _ in read_text(texts, "train"):
            advance(1)
            yield source

    return measure_overlap(train_sources(), sources)


def _describe(spec: DataSpec, corpus: Corpus, request: str, finished: _Finished) -> Manifest:
    files = result_files(finished.results)
    return Manifest(
        name=spec.name,
        source_lang=SOURCE_LANG,
        target_lang=TARGET_LANG,
        licence=corpus.licence,
        vocab_size=spec.vocab_size,
        max_pieces=spec.max_pieces,
        max_ratio=spec.max_ratio,
        request=request,
        inputs=corpus.inputs,
        splits={
            split: _split_counts(split, finished.cleaned, finished.encoded[split])
            for split in SPLITS
        },
        overlap=finished.overlap,
        subsets=finished.subsets,
        note=corpus.note,
        files=files,
        checksum=digest(files),
        versions=_versions(),
    )


def _split_counts(split: str, cleaned: Cleaned, encoded: Encoded) -> SplitCounts:
    """Both passes over a split together; its constructor asserts that kept + dropped is read."""
    dropped = dict(encoded.dropped)
    if split == "train":
        dropped = {reason: count + cleaned.dropped[reason] for reason, count in dropped.items()}
    return SplitCounts(
        read=cleaned.read[split],
        kept=encoded.kept,
        dropped=dropped,
        source_pieces=encoded.source_pieces,
        target_pieces=encoded.target_pieces,
    )


def _versions() -> dict[str, str]:
    """Versions of what writes the data; fairseq is one of two packages."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
