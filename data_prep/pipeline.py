"""A corpus from its text to what fairseq trains on, as steps that are done once.

    fetch -> clean -> vocabulary -> encode -> binarize
                                      +----> compare (overlap with train, baselines)

Steps work below DIR/work. When all are done, what they made moves to its place and manifest.json is
written, last: a folder that has it is complete.
"""

import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from data_prep.binarize import binarize
from data_prep.clean import Cleaned, clean_splits
from data_prep.corpora import Corpus, open_corpus
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
    digest,
)
from data_prep.overlap import measure_overlap
from data_prep.progress import Advance, show
from data_prep.result import WORK, only_one, publish, read_finished, result_files
from data_prep.steps import Step, Steps
from data_prep.text import read_text, text_files
from data_prep.vocabulary import DICTIONARY_NAME, MODEL_NAME, train_vocabulary

# Part of every request: raise it when the same request gives other data than before.
RECIPE = 1
DOWNLOADS = "downloads"
NO_RESULT = type(None)
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
        if corpus.urls:
            with show(console, "fetch", "bytes") as advance:
                fetch_all(corpus.urls, corpus.inputs, out / DOWNLOADS, mirror, advance)
        finished = _run_steps(spec, corpus, out, workers, console)
        manifest = _describe(spec, corpus, request, finished)
        publish(finished.results, manifest, out)
        return manifest


class _Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps counted, and those of them that made results."""

    cleaned: Cleaned
    encoded: dict[str, Encoded]
    overlap: dict[str, Overlap]
    results: list[Step[Any]]


def _run_steps(
    spec: DataSpec, corpus: Corpus, out: Path, workers: int, console: Console
) -> _Finished:
    steps = Steps(out / WORK, RECIPE, console)
    logs = out / "logs"

    def clean(folder: Path, advance: Advance) -> Cleaned:
        return clean_splits(lambda split: corpus.pairs(split, out / DOWNLOADS), folder, advance)

    cleaned = steps.run("clean", corpus.inputs, clean, Cleaned)

    def train_pieces(folder: Path, advance: Advance) -> None:
        texts = text_files(cleaned.folder, "train")
        train_vocabulary(texts, spec.vocab_size, folder, logs / "vocabulary.log")

    vocabulary = steps.run("vocabulary", [cleaned.files, spec.vocab_size], train_pieces, NO_RESULT)

    def encode(folder: Path, advance: Advance) -> dict[str, Encoded]:
        encoder = Encoder(vocabulary.folder / MODEL_NAME, workers)
        limits = spec.max_pieces, spec.max_ratio
        return encode_splits(cleaned.folder, encoder, *limits, folder, advance)

    encode_inputs = [cleaned.files, vocabulary.files, spec.max_pieces, spec.max_ratio]
    encoded = steps.run("encode", encode_inputs, encode, dict[str, Encoded])

    def to_binary(folder: Path, advance: Advance) -> None:
        dictionary = vocabulary.folder / DICTIONARY_NAME
        log = logs / "binarize.log"
        binarize(encoded.folder / "pieces", dictionary, folder / "bin", workers, log)

    binarized = steps.run("binarize", [encoded.files, vocabulary.files], to_binary, NO_RESULT)

    def compare(folder: Path, advance: Advance) -> dict[str, Overlap]:
        return _compare(encoded.folder / "text", folder / "baselines", advance)

    compared = steps.run("compare", encoded.files, compare, dict[str, Overlap])

    return _Finished(
        cleaned=cleaned.result,
        encoded=encoded.result,
        overlap=compared.result,
        results=[vocabulary, encoded, binarized, compared],
    )


def _compare(texts: Path, out: Path, advance: Advance) -> dict[str, Overlap]:
    """Write the baselines into `out`; returns the overlap of dev and test with train."""
    # Only here is scikit-learn wanted, which takes longer to import than all else.
    from data_prep.baselines import write_baselines

    train = list(read_text(texts, "train"))
    sources = {split: [source for source, _ in read_text(texts, split)] for split in HELD_OUT}
    write_baselines(train, sources["test"], out, advance)
    return measure_overlap((source for source, _ in train), sources)


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
