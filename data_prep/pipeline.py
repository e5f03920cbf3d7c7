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

from data_prep.corpora.corpus import Corpus
from data_prep.corpora.registry import RECIPE, open_corpus, request_for
from data_prep.download.fetch import fetch_all
from data_prep.result import WORK, only_one, publish, read_finished, result_files
from data_prep.spec import (
    HELD_OUT,
    SPLITS,
    DataError,
    DataSpec,
    Languages,
    Manifest,
    Overlap,
    SplitCounts,
    Subset,
    digest,
)
from data_prep.steps import Step, Steps
from data_prep.system.files import write_json
from data_prep.system.progress import Advance
from data_prep.system.space import require_space, size_of
from data_prep.system.surroundings import console_of
from data_prep.text import Pair, open_for_writing, read_text, text_files
from data_prep.transform.baselines import write_baselines
from data_prep.transform.binarize import binarize
from data_prep.transform.clean import Cleaned, clean_splits
from data_prep.transform.encode import Encoded, Encoder, encode_splits
from data_prep.transform.overlap import measure_overlap
from data_prep.transform.vocabulary import DICTIONARY_NAME, MODEL_NAME, train_vocabulary

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
    workers: int = 1,
    force: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Prepare `spec` in the folder `out` and return its manifest.

    Where it is done already, nothing is done or written, unless `force`. `workers` processes share
    the work and change nothing in the result. Progress goes to `console`, by default the error
    stream. Raises DataError, and leaves what was prepared before as it was, when an input or a
    setting cannot be used, and, unless `force`, when `out` holds data of another request.
    """
    console = console or console_of(stderr=True)
    corpus = open_corpus(spec)
    request = request_for(spec, corpus)

    def finished_before() -> Manifest | None:
        return None if force else read_finished(out, spec, corpus.inputs, request)

    if done := finished_before():  # no lock is needed, so that the folder may be read-only
        return done
    with only_one(out, console):
        if done := finished_before():  # by a process that had the lock until now
            return done
        if force:
            shutil.rmtree(out / WORK, ignore_errors=True)
        if corpus.downloads:
            require_space(out, _missing_bytes(corpus, out))
            fetch_all(corpus.downloads, out / DOWNLOADS, spec.mirror, console)
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

    # Every later step depends on which language is the source.
    languages = spec.languages

    def clean(folder: Path, advance: Advance) -> Cleaned:
        def pairs(split: str) -> Iterator[Pair]:
            return _in_direction(languages, corpus, split, texts)

        near = corpus.drops_near_duplicates
        cleaned = clean_splits(pairs, languages, folder, advance, workers, near_duplicates=near)
        if open_corpus(spec).inputs != corpus.inputs:
            raise DataError("an input file has changed while it was read: run this again")
        return cleaned

    clean_inputs = [languages, corpus.inputs, corpus.drops_near_duplicates]
    cleaned = steps.run("clean", clean_inputs, clean, Cleaned)
    training_pairs = cleaned.result.read["train"] - sum(cleaned.result.dropped.values())

    def train_pieces(folder: Path, advance: Advance) -> None:
        train = text_files(cleaned.folder, "train", languages)
        train_vocabulary(train, spec.vocab_size, folder, logs / "vocabulary.log")
        advance(training_pairs)

    vocabulary_inputs = [languages, cleaned.files, spec.vocab_size]
    vocabulary = steps.run("vocabulary", vocabulary_inputs, train_pieces, NO_RESULT)

    def encode(folder: Path, advance: Advance) -> dict[str, Encoded]:
        encoder = Encoder(vocabulary.folder / MODEL_NAME)
        return encode_splits(
            cleaned.folder,
            languages,
            encoder,
            spec.max_pieces,
            spec.max_ratio,
            folder,
            advance,
            workers,
            cleaned.result.dropped,
        )

    encode_inputs = [languages, cleaned.files, vocabulary.files, spec.max_pieces, spec.max_ratio]
    encoded = steps.run("encode", encode_inputs, encode, dict[str, Encoded])

    def to_binary(folder: Path, advance: Advance) -> None:
        dictionary = vocabulary.folder / DICTIONARY_NAME
        log = logs / "binarize.log"
        binarize(encoded.folder / "pieces", languages, dictionary, folder / "bin", workers, log)
        advance(encoded.result["train"].kept)

    binarize_inputs = [languages, encoded.files, vocabulary.files]
    binarized = steps.run("binarize", binarize_inputs, to_binary, NO_RESULT)

    def compare(folder: Path, advance: Advance) -> dict[str, Overlap]:
        texts, out = encoded.folder / "text", folder / "baselines"
        nearest = corpus.nearest_baseline
        return _compare(texts, languages, out, nearest, advance, console)

    compare_inputs = [languages, encoded.files, corpus.nearest_baseline]
    compared = steps.run("compare", compare_inputs, compare, dict[str, Overlap])
    if steps.timings:
        write_json(logs / TIMINGS, steps.timings)

    return _Finished(
        cleaned=cleaned.result,
        encoded=encoded.result,
        overlap=compared.result,
        subsets=subsets,
        results=[*results, vocabulary, encoded, binarized, compared],
    )


def _in_direction(languages: Languages, corpus: Corpus, split: str, folder: Path) -> Iterator[Pair]:
    """The pairs of a split with the side of `languages[0]` first."""
    pairs = corpus.pairs(split, folder)
    if corpus.languages == languages:
        return pairs
    return ((target, source) for source, target in pairs)


def _write_subsets(subsets: dict[str, list[int]], folder: Path) -> dict[str, Subset]:
    """Write the line numbers of each subset, one a line, into `folder`/text."""
    found = {}
    for name, numbers in subsets.items():
        file = f"text/test.{name}.lines"
        with open_for_writing(folder / file) as stream:
            stream.writelines(f"{number}\n" for number in numbers)
        found[name] = Subset(file=file, lines=len(numbers))
    return found


def _compare(
    texts: Path, languages: Languages, out: Path, nearest: bool, advance: Advance, console: Console
) -> dict[str, Overlap]:
    """Write the baselines into `out`; returns the overlap of dev and test with train."""
    sources = {
        split: [source for source, _ in read_text(texts, split, languages)] for split in HELD_OUT
    }
    train = (lambda: read_text(texts, "train", languages)) if nearest else None
    write_baselines(train, sources["test"], languages[1], out, console.print)

    def train_sources() -> Iterator[str]:
        for source, _ in read_text(texts, "train", languages):
            advance(1)
            yield source

    return measure_overlap(train_sources(), sources)


def _describe(spec: DataSpec, corpus: Corpus, request: str, finished: _Finished) -> Manifest:
    files = result_files(finished.results)
    return Manifest(
        name=spec.name,
        source_lang=spec.source_lang,
        target_lang=spec.target_lang,
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
